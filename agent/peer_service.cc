#include "agent/peer_service.h"

#include <memory>

#include "base/clock.h"
#include "base/log.h"

namespace waft::agent {

grpc::Status PeerService::Ping(grpc::ServerContext* /*context*/, const v1::PingRequest* /*request*/,
                               v1::PingReply* reply) {
  reply->set_realtime_ns(base::RealtimeNs());
  reply->set_host(host_name_);
  return grpc::Status::OK;
}

grpc::Status PeerService::Preflight(grpc::ServerContext* /*context*/,
                                    const v1::PreflightRequest* request,
                                    v1::PreflightReply* reply) {
  *reply = destination_.Preflight(*request);
  return grpc::Status::OK;
}

grpc::Status PeerService::Session(
    grpc::ServerContext* /*context*/,
    grpc::ServerReaderWriter<v1::SessionReply, v1::SessionRequest>* stream) {
  v1::SessionRequest request;
  if (!stream->Read(&request)) return grpc::Status::OK;
  if (!request.has_prepare()) {
    return {grpc::StatusCode::FAILED_PRECONDITION, "a session begins with Prepare"};
  }
  v1::SessionReply reply;
  const base::Result<std::unique_ptr<migration::Incoming>> incoming =
      destination_.Prepare(request.prepare(), reply.mutable_prepared());
  if (!incoming) {
    reply.mutable_aborted()->set_reason(incoming.error().message());
    stream->Write(reply);
    return grpc::Status::OK;
  }
  // If the stream ends here, so does `incoming`, and that aborts the migration.
  if (!stream->Write(reply) || !stream->Read(&request) || !request.has_handover()) {
    return grpc::Status::OK;
  }
  // From the Handover on the decision is ours, whether or not the source still listens.
  const base::Status completed = (*incoming)->Complete(
      request.handover(),
      [stream] {
        v1::SessionReply ready;
        ready.mutable_ready();
        stream->Write(ready);
      },
      [stream](const v1::Committed& committed) {
        v1::SessionReply done;
        *done.mutable_committed() = committed;
        stream->Write(done);
      });
  if (!completed) {
    reply.mutable_aborted()->set_reason(completed.error().message());
    stream->Write(reply);
  }
  return grpc::Status::OK;
}

grpc::Status PeerService::Outcome(grpc::ServerContext* /*context*/,
                                  const v1::OutcomeRequest* request, v1::OutcomeReply* reply) {
  base::Result<v1::OutcomeReply> outcome = destination_.Outcome(request->migration_id());
  if (!outcome) {
    base::LogWarning("outcome of {}: {}", request->migration_id(), outcome.error().message());
    return {grpc::StatusCode::INTERNAL, outcome.error().message()};
  }
  *reply = *std::move(outcome);
  return grpc::Status::OK;
}

}  // namespace waft::agent
