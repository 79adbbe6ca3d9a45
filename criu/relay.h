#pragma once

#include <sys/types.h>

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "base/error.h"
#include "base/unique_fd.h"

namespace waft::criu {

// What CRIU says of itself at a named point ("pre-resume"; the list is in criu/action-scripts.c).
struct Notification {
  std::string script;
  pid_t workload_pid = 0;  // of the restored init; 0 where CRIU names none
  pid_t criu_pid = 0;      // of the CRIU that says it
};

// Called on the relay's thread before runc hears of it; CRIU waits meanwhile.
using NotifyHook = std::function<void(const Notification&)>;

// Stands between one runc and the CRIUs it starts, on a thread of its own. Owns a directory with
// the socket and the `criu` that runc finds. Messages pass as they are but for what README.md
// names.
class Relay {
 public:
  // `directory` is created and belongs to the relay. `waft-criu` and the preload library are looked
  // for in `programs`.
  static base::Result<std::unique_ptr<Relay>> Start(const std::filesystem::path& directory,
                                                    const std::filesystem::path& programs,
                                                    NotifyHook hook);
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;
  // Ends the thread. A CRIU still connected sees its peer gone and fails politely.
  ~Relay();

  // What runc must be started with.
  const std::map<std::string, std::string>& environment() const { return environment_; }

 private:
  Relay() = default;
  void Serve();
  void ServeConnection(base::UniqueFd stub);

  NotifyHook hook_;
  std::map<std::string, std::string> environment_;
  base::UniqueFd listener_;
  base::UniqueFd stop_;  // eventfd
  std::thread thread_;
};

}  // namespace waft::criu
