#pragma once

#include <grpcpp/grpcpp.h>

#include <string>
#include <utility>

#include "api/peer.grpc.pb.h"
#include "migration/destination.h"

namespace waft::agent {

// What other hosts may ask of this one. gRPC calls each method on a thread of its own pool.
class PeerService final : public v1::Peer::Service {
 public:
  PeerService(std::string host_name, migration::Destination& destination)
      : host_name_(std::move(host_name)), destination_(destination) {}

  grpc::Status Ping(grpc::ServerContext* context, const v1::PingRequest* request,
                    v1::PingReply* reply) override;
  grpc::Status Preflight(grpc::ServerContext* context, const v1::PreflightRequest* request,
                         v1::PreflightReply* reply) override;
  grpc::Status Session(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::SessionReply, v1::SessionRequest>* stream) override;
  grpc::Status Outcome(grpc::ServerContext* context, const v1::OutcomeRequest* request,
                       v1::OutcomeReply* reply) override;

 private:
  const std::string host_name_;
  migration::Destination& destination_;
};

}  // namespace waft::agent
