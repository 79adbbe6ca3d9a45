#include "agent/peer_client.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <netdb.h>
#include <sys/socket.h>

#include <array>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string_view>
#include <system_error>
#include <utility>

#include "api/peer.grpc.pb.h"

namespace waft::agent {
using base::ErrorCode;
using base::Fail;
namespace {

constexpr std::chrono::seconds kCallTimeout{10};
// Hashing the workload's files there takes as long as it takes.
constexpr std::chrono::seconds kPreflightTimeout{300};
constexpr int kKeepaliveMs = 5000;

std::chrono::system_clock::time_point After(std::chrono::seconds span) {
  return std::chrono::system_clock::now() + span;
}

base::Status FromGrpc(const std::string& peer, const grpc::Status& status) {
  if (status.ok()) return {};
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE ||
      status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
    return Fail(ErrorCode::kRetry,
                fmt::format("cannot reach waftd on {} (is it running, and are both hosts' "
                            "certificates of one `waft cert init`?): {}",
                            peer, status.error_message()));
  }
  return Fail(ErrorCode::kRollBack, fmt::format("{}: {}", peer, status.error_message()));
}

class GrpcSession : public migration::PeerSession {
 public:
  GrpcSession(std::string peer, v1::Peer::Stub& stub)
      : peer_(std::move(peer)), stream_(stub.Session(&context_)) {}
  GrpcSession(const GrpcSession&) = delete;
  GrpcSession& operator=(const GrpcSession&) = delete;
  ~GrpcSession() override {
    if (!ended_) context_.TryCancel();
    EndOfStream();
  }

  base::Result<v1::Prepared> Prepare(const v1::Prepare& request) override {
    v1::SessionRequest message;
    *message.mutable_prepare() = request;
    WAFT_ASSIGN(const v1::SessionReply reply, Ask(message));
    if (reply.has_prepared()) return reply.prepared();
    return Fail(ErrorCode::kRollBack,
                fmt::format("{} refuses: {}", peer_,
                            reply.has_aborted() ? reply.aborted().reason() : "out of turn"));
  }

  base::Result<v1::SessionReply> Handover(const v1::Handover& request,
                                          const std::function<void()>& on_ready) override {
    v1::SessionRequest message;
    *message.mutable_handover() = request;
    WAFT_ASSIGN(v1::SessionReply reply, Ask(message));
    while (reply.has_ready()) {
      on_ready();
      if (!stream_->Read(&reply)) return std::unexpected(EndOfStream());
    }
    if (!reply.has_committed() && !reply.has_aborted()) {
      return Fail(ErrorCode::kRollBack, fmt::format("{} answers out of turn", peer_));
    }
    return reply;
  }

 private:
  base::Result<v1::SessionReply> Ask(const v1::SessionRequest& message) {
    v1::SessionReply reply;
    if (!stream_->Write(message) || !stream_->Read(&reply)) return std::unexpected(EndOfStream());
    return reply;
  }

  // Why the stream ended before its time.
  base::Error EndOfStream() {
    if (std::exchange(ended_, true)) return {ErrorCode::kRetry, "the session has ended"};
    const base::Status status = FromGrpc(peer_, stream_->Finish());
    return status ? base::Error(ErrorCode::kRetry, fmt::format("{} ended the session", peer_))
                  : status.error();
  }

  const std::string peer_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionReply>> stream_;
  bool ended_ = false;
};

class GrpcPeer : public migration::Peer {
 public:
  GrpcPeer(std::string name, std::string host, std::string address,
           const std::shared_ptr<grpc::Channel>& channel)
      : name_(std::move(name)),
        host_(std::move(host)),
        address_(std::move(address)),
        stub_(v1::Peer::NewStub(channel)) {}

  const std::string& name() const override { return name_; }
  const std::string& host() const override { return host_; }
  const std::string& address() const override { return address_; }

  base::Result<v1::PingReply> Ping() override {
    return Call(&v1::Peer::Stub::Ping, v1::PingRequest(), kCallTimeout);
  }
  base::Result<v1::PreflightReply> Preflight(const v1::PreflightRequest& request) override {
    return Call(&v1::Peer::Stub::Preflight, request, kPreflightTimeout);
  }
  base::Result<v1::OutcomeReply> Outcome(const std::string& migration_id) override {
    v1::OutcomeRequest request;
    request.set_migration_id(migration_id);
    return Call(&v1::Peer::Stub::Outcome, request, kCallTimeout);
  }
  base::Result<std::unique_ptr<migration::PeerSession>> OpenSession() override {
    return std::make_unique<GrpcSession>(name_, *stub_);
  }

 private:
  template <typename Request, typename Reply>
  base::Result<Reply> Call(grpc::Status (v1::Peer::Stub::*method)(grpc::ClientContext*,
                                                                  const Request&, Reply*),
                           const Request& request, std::chrono::seconds timeout) {
    grpc::ClientContext context;
    context.set_deadline(After(timeout));
    Reply reply;
    WAFT_TRY(FromGrpc(name_, ((*stub_).*method)(&context, request, &reply)));
    return reply;
  }

  const std::string name_;
  const std::string host_;
  const std::string address_;
  const std::unique_ptr<v1::Peer::Stub> stub_;
};

struct Target {
  std::string host;
  std::string port;
};

// HOST, HOST:PORT, an IPv6 address in brackets or bare.
base::Result<Target> ParseTarget(const std::string& target) {
  Target parsed{.host = target, .port = std::to_string(kDefaultPeerPort)};
  const size_t colon = target.rfind(':');
  if (target.starts_with('[')) {
    const size_t close = target.find(']');
    if (close == std::string::npos) return Fail(ErrorCode::kBadArgument, "'[' without ']'");
    parsed.host = target.substr(1, close - 1);
    const std::string rest = target.substr(close + 1);
    if (!rest.empty()) parsed.port = rest.starts_with(':') ? rest.substr(1) : "";
  } else if (colon != std::string::npos && target.find(':') == colon) {
    parsed.host = target.substr(0, colon);
    parsed.port = target.substr(colon + 1);
  }
  uint16_t port = 0;
  const char* end = parsed.port.data() + parsed.port.size();
  const auto [stop, error] = std::from_chars(parsed.port.data(), end, port);
  if (parsed.host.empty() || error != std::errc() || stop != end || port == 0) {
    return Fail(ErrorCode::kBadArgument, fmt::format("'{}' is not HOST or HOST:PORT", target));
  }
  return parsed;
}

}  // namespace

base::Result<std::unique_ptr<migration::Peer>> ConnectPeer(const std::string& target,
                                                           const Credentials& credentials) {
  WAFT_ASSIGN(const Target parsed, ParseTarget(target));
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = ::getaddrinfo(parsed.host.c_str(), parsed.port.c_str(), &hints, &found);
      error != 0) {
    return Fail(ErrorCode::kBadArgument,
                fmt::format("cannot look up host '{}': {}", parsed.host, ::gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> addresses(found, &::freeaddrinfo);
  std::array<char, NI_MAXHOST> address{};
  ::getnameinfo(addresses->ai_addr, addresses->ai_addrlen, address.data(), address.size(), nullptr,
                0, NI_NUMERICHOST);

  grpc::SslCredentialsOptions options;
  options.pem_root_certs = credentials.ca;
  options.pem_cert_chain = credentials.certificate;
  options.pem_private_key = credentials.key;
  grpc::ChannelArguments arguments;
  arguments.SetSslTargetNameOverride(parsed.host);
  // A host that vanishes without a word must be noticed within a session.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveMs);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const bool v6 = std::string_view(address.data()).find(':') != std::string_view::npos;
  const std::string endpoint = fmt::format(
      v6 ? fmt::runtime("ipv6:[{}]:{}") : fmt::runtime("ipv4:{}:{}"), address.data(), parsed.port);
  return std::make_unique<GrpcPeer>(
      target, parsed.host, address.data(),
      grpc::CreateCustomChannel(endpoint, grpc::SslCredentials(options), arguments));
}

}  // namespace waft::agent
