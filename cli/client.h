#pragma once

#include <filesystem>
#include <functional>
#include <memory>

#include "api/control.pb.h"
#include "cli/exit_code.h"

namespace waft::cli {

// One connection to the waftd of this host, over its unix socket. It owns the connection and never
// makes a second one: when waftd goes away a call ends with CallEnd::kBroken. One thread at a time;
// the gRPC headers stay in client.cc, because they compile slowly.
class ControlClient {
 public:
  // Connects now; the error says why waftd cannot be reached and what to do.
  static CallResult<ControlClient> Connect(const std::filesystem::path& socket);
  ControlClient(ControlClient&&) noexcept;
  ControlClient& operator=(ControlClient&&) noexcept;
  ~ControlClient();

  // Each blocks until waftd answers, at most ten seconds.
  CallResult<v1::ListWorkloadsReply> ListWorkloads();
  CallResult<v1::ListMigrationsReply> ListMigrations();

  struct MigrateHooks {
    // For every progress event, and `on_tick` a few times a second between them. Never at once.
    std::function<void(const v1::Progress&)> on_progress;
    std::function<void()> on_tick;
  };
  // Blocks until the migration has ended, without a time limit. SIGINT and SIGTERM end the waiting,
  // not the migration (CallEnd::kInterrupted); the caller has blocked both before Connect(), so
  // that no thread of gRPC takes them.
  CallResult<v1::Report> Migrate(const v1::MigrateRequest& request, const MigrateHooks& hooks);

 private:
  struct Connection;
  explicit ControlClient(std::unique_ptr<Connection> connection);
  std::unique_ptr<Connection> connection_;
};

}  // namespace waft::cli
