#include "cli/client.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <grpcpp/create_channel_posix.h>
#include <grpcpp/grpcpp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "api/control.grpc.pb.h"
#include "base/unique_fd.h"

namespace waft::cli {
namespace {

constexpr std::chrono::seconds kAnswerLimit{10};
constexpr int kTickMs = 200;

std::string ConnectMessage(const std::filesystem::path& socket, int error_number) {
  switch (error_number) {
    case ENOENT:
    case ECONNREFUSED:
      return fmt::format(
          "waftd is not running on this host (socket {}): start it with `systemctl start waftd` or "
          "`waftd`, or name its socket with --socket",
          socket.string());
    case EACCES:
    case EPERM:
      return fmt::format("not allowed to use waftd's socket {}: run waft as root", socket.string());
    case EPROTOTYPE:
    case ENOTSOCK:
      return fmt::format("{} is not the socket of a waftd: name the right one with --socket",
                         socket.string());
    default:
      return fmt::format("cannot connect to waftd's socket {}: {}", socket.string(),
                         std::generic_category().message(error_number));
  }
}

// What gRPC says, for a person. waftd's own words come through; gRPC's are translated.
std::string CallMessage(const grpc::Status& status) {
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      return "the connection to waftd broke: it has stopped or restarted";
    case grpc::StatusCode::UNIMPLEMENTED:
      return "this waftd does not know the request: waft and waftd are of different versions; "
             "install "
             "the same one of both and restart waftd";
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return fmt::format("waftd took the connection but has not answered for {} s: look at its log",
                         kAnswerLimit.count());
    case grpc::StatusCode::CANCELLED:
      return "waftd dropped the request: look at its log";
    default:
      return status.error_message().empty()
                 ? fmt::format("waftd answered with error {}: look at its log",
                               static_cast<int>(status.error_code()))
                 : status.error_message();
  }
}

// Whether the status is waftd's own answer to the request, rather than the call coming to grief.
bool IsRefusal(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::INVALID_ARGUMENT:
    case grpc::StatusCode::NOT_FOUND:
    case grpc::StatusCode::ALREADY_EXISTS:
    case grpc::StatusCode::PERMISSION_DENIED:
    case grpc::StatusCode::UNAUTHENTICATED:
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
    case grpc::StatusCode::FAILED_PRECONDITION:
    case grpc::StatusCode::OUT_OF_RANGE:
      return true;
    default:
      return false;
  }
}

// A question changes nothing, so whatever goes wrong with it, nothing was started.
CallError QuestionError(const grpc::Status& status) {
  return {IsRefusal(status.error_code()) ? CallEnd::kRefused : CallEnd::kUnreachable,
          CallMessage(status)};
}

CallError MigrateError(const grpc::Status& status, bool begun) {
  if (!begun && status.error_code() == grpc::StatusCode::UNIMPLEMENTED) {
    return {CallEnd::kUnreachable, CallMessage(status)};
  }
  if (!begun && IsRefusal(status.error_code())) return {CallEnd::kRefused, CallMessage(status)};
  return {CallEnd::kBroken, status.ok() ? "waftd ended the call without a report: look at its log"
                                        : CallMessage(status)};
}

// While it lives, a thread waits for SIGINT and SIGTERM (blocked by the caller) and ticks.
class Watcher {
 public:
  Watcher(std::function<void()> on_signal, std::function<void()> on_tick)
      : signals_(OpenSignalFd()),
        stop_(::eventfd(0, EFD_CLOEXEC)),
        thread_([this, signal = std::move(on_signal), tick = std::move(on_tick)] {
          Watch(signal, tick);
        }) {}
  Watcher(const Watcher&) = delete;
  Watcher& operator=(const Watcher&) = delete;
  ~Watcher() {
    ::eventfd_write(stop_.get(), 1);
    thread_.join();
  }
  bool interrupted() const { return interrupted_; }

 private:
  static base::UniqueFd OpenSignalFd() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    return base::UniqueFd(::signalfd(-1, &set, SFD_CLOEXEC));
  }

  void Watch(const std::function<void()>& on_signal, const std::function<void()>& on_tick) {
    for (;;) {
      std::array<pollfd, 2> wait{{{signals_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}}};
      const int ready = ::poll(wait.data(), wait.size(), kTickMs);
      if (ready == 0) on_tick();
      if (ready <= 0) continue;
      if (wait[1].revents != 0) return;
      signalfd_siginfo info{};
      if (::read(signals_.get(), &info, sizeof(info)) != sizeof(info)) continue;
      interrupted_ = true;
      on_signal();
    }
  }

  base::UniqueFd signals_;
  base::UniqueFd stop_;
  std::atomic<bool> interrupted_ = false;
  std::thread thread_;  // last: it uses the rest
};

}  // namespace

struct ControlClient::Connection {
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Control::Stub> stub;
};

ControlClient::ControlClient(std::unique_ptr<Connection> connection)
    : connection_(std::move(connection)) {}
ControlClient::ControlClient(ControlClient&&) noexcept = default;
ControlClient& ControlClient::operator=(ControlClient&&) noexcept = default;
ControlClient::~ControlClient() = default;

// connect(2) by hand, because its errno says what gRPC's "failed to connect to all addresses"
// hides.
CallResult<ControlClient> ControlClient::Connect(const std::filesystem::path& socket) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string& path = socket.native();
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return std::unexpected(CallError{
        CallEnd::kUnreachable, fmt::format("the socket path '{}' must have 1 to {} characters",
                                           path, sizeof(address.sun_path) - 1)});
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  base::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd ||
      ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      ::fcntl(fd.get(), F_SETFL, O_NONBLOCK) != 0) {
    return std::unexpected(CallError{CallEnd::kUnreachable, ConnectMessage(socket, errno)});
  }
  auto connection = std::make_unique<Connection>();
  connection->channel = grpc::CreateInsecureChannelFromFd("waftd", fd.release());
  connection->stub = v1::Control::NewStub(connection->channel);
  return ControlClient(std::move(connection));
}

CallResult<v1::ListWorkloadsReply> ControlClient::ListWorkloads() {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kAnswerLimit);
  v1::ListWorkloadsReply reply;
  const grpc::Status status = connection_->stub->ListWorkloads(&context, {}, &reply);
  if (!status.ok()) return std::unexpected(QuestionError(status));
  return reply;
}

CallResult<v1::ListMigrationsReply> ControlClient::ListMigrations() {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kAnswerLimit);
  v1::ListMigrationsReply reply;
  const grpc::Status status = connection_->stub->ListMigrations(&context, {}, &reply);
  if (!status.ok()) return std::unexpected(QuestionError(status));
  return reply;
}

CallResult<v1::Report> ControlClient::Migrate(const v1::MigrateRequest& request,
                                              const MigrateHooks& hooks) {
  grpc::ClientContext context;
  std::mutex hooks_mutex;
  const Watcher watcher([&] { context.TryCancel(); },
                        [&] {
                          const std::lock_guard lock(hooks_mutex);
                          hooks.on_tick();
                        });
  const auto stream = connection_->stub->Migrate(&context, request);
  v1::MigrateEvent event;
  std::optional<v1::Report> report;
  bool begun = false;
  while (stream->Read(&event)) {
    begun = true;
    if (event.has_report()) report = event.report();
    if (event.has_progress()) {
      const std::lock_guard lock(hooks_mutex);
      hooks.on_progress(event.progress());
    }
  }
  const grpc::Status status = stream->Finish();
  // The report is the outcome, however the call ends after it.
  if (report) return *std::move(report);
  if (watcher.interrupted()) {
    return std::unexpected(CallError{
        CallEnd::kInterrupted,
        begun ? "you stopped waiting, but the migration belongs to waftd and goes on"
              : "you stopped waiting before waftd answered: it may have begun, and then goes "
                "on"});
  }
  return std::unexpected(MigrateError(status, begun));
}

}  // namespace waft::cli
