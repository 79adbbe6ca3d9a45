// waftd: the daemon on each host. See README.md.
#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "agent/check.h"
#include "agent/control_service.h"
#include "agent/credentials.h"
#include "agent/peer_client.h"
#include "agent/peer_service.h"
#include "agent/runner.h"
#include "base/error.h"
#include "base/log.h"
#include "migration/destination.h"
#include "migration/source.h"
#include "transfer/image_listener.h"
#include "transfer/tls_context.h"

namespace waft::agent {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::seconds kShutdownGrace{2};
constexpr int kKeepaliveMs = 5000;

struct Options {
  fs::path socket = "/run/waft/waftd.sock";
  fs::path tls_directory = "/etc/waft/tls";
  fs::path state_directory = "/var/lib/waft";
  fs::path run_directory = "/run/waft";
  fs::path runc_root = "/run/runc";
  std::string listen = "0.0.0.0";
  std::string name;
  uint16_t peer_port = kDefaultPeerPort;
  uint16_t data_port = kDefaultPeerPort + 1;
  uint64_t image_room_mib = 65536;
};

std::string HostName() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

base::Result<std::unique_ptr<grpc::Server>> Listen(
    const std::string& address, const std::shared_ptr<grpc::ServerCredentials>& credentials,
    grpc::Service& service) {
  grpc::ServerBuilder builder;
  int bound = -1;
  builder.AddListeningPort(address, credentials, &bound);
  builder.RegisterService(&service);
  // Two daemons on one port would share it silently.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (!server || bound < 0) {
    return base::Fail(base::ErrorCode::kBadArgument,
                      fmt::format("cannot listen on {}: is another waftd running?", address));
  }
  return server;
}

std::shared_ptr<grpc::ServerCredentials> PeerCredentials(const Credentials& credentials) {
  grpc::SslServerCredentialsOptions options(
      GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = credentials.ca;
  options.pem_key_cert_pairs.push_back({credentials.key, credentials.certificate});
  return grpc::SslServerCredentials(options);
}

// Ends what an earlier waftd left: here and now where this host decides, on a thread where another
// host must be asked.
void Recover(const migration::Settings& settings, const Credentials& credentials,
             migration::Source& source, migration::Destination& destination, Runner& runner) {
  for (std::unique_ptr<migration::Journal>& journal :
       migration::Journal::OpenAll(settings.journals)) {
    if (journal->state() == migration::State::kFinished) continue;
    if (journal->role() == migration::Role::kDestination) {
      base::LogIfError(destination.Recover(*journal), "recover " + journal->begin().migration_id());
      continue;
    }
    base::Result<std::unique_ptr<migration::Peer>> peer =
        ConnectPeer(journal->begin().peer(), credentials);
    if (!peer) {
      base::LogWarning("cannot recover {}: {}", journal->begin().migration_id(),
                       peer.error().message());
      continue;
    }
    runner.Start(
        [&source, journal = std::shared_ptr<migration::Journal>(std::move(journal)),
         peer = std::shared_ptr<migration::Peer>(std::move(*peer))](const std::stop_token& stop) {
          base::LogIfError(source.Recover(*journal, *peer, stop),
                           "recover " + journal->begin().migration_id());
        });
  }
}

base::Status Serve(const Options& options, const sigset_t& signals) {
  WAFT_ASSIGN(const Credentials credentials, Credentials::Load(options.tls_directory));
  WAFT_ASSIGN(const transfer::TlsContext tls,
              transfer::TlsContext::Create({.ca = options.tls_directory / "ca.crt",
                                            .certificate = options.tls_directory / "host.crt",
                                            .key = options.tls_directory / "host.key"}));
  std::error_code error;
  fs::create_directories(options.run_directory / "migrations", error);
  if (error) {
    return std::unexpected(
        base::Error::FromErrno("mkdir " + options.run_directory.string(), error.value()));
  }
  const migration::Settings settings{
      .host_name = options.name.empty() ? HostName() : options.name,
      .journals = options.state_directory / "migrations",
      .run_directory = options.run_directory,
      .programs = fs::read_symlink("/proc/self/exe", error).parent_path(),
      .image_room_bytes = options.image_room_mib << 20,
  };
  const engine::Runc runc(options.runc_root);
  migration::Claims claims;
  WAFT_ASSIGN(const std::unique_ptr<transfer::ImageListener> listener,
              transfer::ImageListener::Start(options.listen, options.data_port, tls));
  migration::Source source(settings, runc, tls, claims);
  migration::Destination destination(settings, runc, *listener, claims);
  Runner runner;
  Recover(settings, credentials, source, destination, runner);

  PeerService peer_service(settings.host_name, destination);
  ControlService control_service(settings, runc, credentials, source, runner);
  WAFT_ASSIGN(const std::unique_ptr<grpc::Server> peer_server,
              Listen(fmt::format("{}:{}", options.listen, options.peer_port),
                     PeerCredentials(credentials), peer_service));
  fs::remove(options.socket, error);
  const mode_t old_mask = ::umask(0077);  // the socket is root's alone
  base::Result<std::unique_ptr<grpc::Server>> control_server =
      Listen("unix:" + options.socket.string(), grpc::InsecureServerCredentials(), control_service);
  ::umask(old_mask);
  if (!control_server) return std::unexpected(control_server.error());
  base::LogInfo("'{}' listens on {} and {}:{}", settings.host_name, options.socket.string(),
                options.listen, options.peer_port);

  int signal = 0;
  ::sigwait(&signals, &signal);
  base::LogInfo("stopping on signal {}", signal);
  control_service.Stop();
  (*control_server)->Shutdown(std::chrono::system_clock::now() + kShutdownGrace);
  peer_server->Shutdown(std::chrono::system_clock::now() + kShutdownGrace);
  return {};
}

}  // namespace

int Main(int argc, char** argv) {
  Options options;
  bool check = false;
  bool json = false;
  CLI::App app(
      "waftd moves running containers to other hosts and takes theirs. Run it as root on each "
      "host;\n"
      "`waft` is the command line to it. WAFT_LOG=debug|info|warning|error sets what it logs.");
  app.set_version_flag("--version", WAFT_VERSION);
  app.add_option("--socket", options.socket, "Unix socket for `waft`")->capture_default_str();
  app.add_option("--tls-dir", options.tls_directory,
                 "ca.crt, host.crt and host.key, from `waft cert init`")
      ->capture_default_str();
  app.add_option("--state-dir", options.state_directory, "Journals; must survive a reboot")
      ->capture_default_str();
  app.add_option("--run-dir", options.run_directory, "Images and sockets of running migrations")
      ->capture_default_str();
  app.add_option("--runc-root", options.runc_root, "runc's --root")->capture_default_str();
  app.add_option("--listen", options.listen, "IP address for other hosts")->capture_default_str();
  app.add_option("--port", options.peer_port, "TCP port for other hosts' waftd")
      ->capture_default_str();
  app.add_option("--data-port", options.data_port, "TCP port for their data")
      ->capture_default_str();
  app.add_option("--name", options.name, "This host, as its certificate names it (the hostname)");
  app.add_option("--image-room-mib", options.image_room_mib, "The largest image set taken or made")
      ->capture_default_str();
  app.add_flag("--check", check, "Say what this machine can do and exit; 1 if it cannot migrate");
  app.add_flag("--json", json, "With --check: one JSON object");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (check) {
    const std::vector<Feature> features = CheckMachine();
    std::fputs((json ? FeaturesAsJson(features) : FeaturesAsText(features)).c_str(), stdout);
    return IsMigrationPossible(features) ? 0 : 1;
  }

  base::InitLog("waftd");
  // Blocked before any thread begins, so that only sigwait() takes them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);  // a peer that hangs up is an error value, not an end
  const base::Status served = Serve(options, signals);
  if (served) return 0;
  base::LogLine(base::LogLevel::kError, served.error().message());
  return 1;
}

}  // namespace waft::agent

int main(int argc, char** argv) { return waft::agent::Main(argc, argv); }
