#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>

#include "agent/credentials.h"
#include "agent/runner.h"
#include "api/control.grpc.pb.h"
#include "engine/runc.h"
#include "migration/settings.h"
#include "migration/source.h"

namespace waft::agent {

// What the command line on this host may ask. gRPC calls each method on a thread of its own pool.
class ControlService final : public v1::Control::Service {
 public:
  ControlService(const migration::Settings& settings, const engine::Runc& runc,
                 const Credentials& credentials, migration::Source& source, Runner& runner)
      : settings_(settings),
        runc_(runc),
        credentials_(credentials),
        source_(source),
        runner_(runner) {}

  // Ends the streams of callers still listening; their migrations go on.
  void Stop() { stopping_ = true; }

  grpc::Status ListWorkloads(grpc::ServerContext* context, const v1::ListWorkloadsRequest* request,
                             v1::ListWorkloadsReply* reply) override;
  grpc::Status Migrate(grpc::ServerContext* context, const v1::MigrateRequest* request,
                       grpc::ServerWriter<v1::MigrateEvent>* writer) override;
  grpc::Status ListMigrations(grpc::ServerContext* context,
                              const v1::ListMigrationsRequest* request,
                              v1::ListMigrationsReply* reply) override;

 private:
  const migration::Settings& settings_;
  const engine::Runc& runc_;
  const Credentials& credentials_;
  migration::Source& source_;
  Runner& runner_;
  std::atomic<bool> stopping_ = false;
};

}  // namespace waft::agent
