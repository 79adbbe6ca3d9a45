#include "criu/relay.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <utility>
#include <vector>

#include "base/log.h"
#include "criu/criu.h"
#include "criu/fd_passing.h"
#include "criu/rpc.pb.h"

namespace waft::criu {
namespace fs = std::filesystem;
using base::UniqueFd;
namespace {

constexpr size_t kMaxFdsPerMessage = 16;

// Waits until `fd` is ready for `events` or hung up; false when the relay is to end first.
bool Await(int fd, short events, int stop) {
  for (;;) {
    std::array<pollfd, 2> wait{{{fd, events, 0}, {stop, POLLIN, 0}}};
    const int ready = ::poll(wait.data(), wait.size(), -1);
    if (ready > 0) return wait[1].revents == 0;
    if (ready < 0 && errno != EINTR) return false;
  }
}

// One message of a SOCK_SEQPACKET peer with the descriptors that came with it.
struct Message {
  std::string bytes;
  std::vector<UniqueFd> fds;
};

// False when the peer has gone.
bool Receive(int socket, Message& message) {
  ssize_t length = 0;
  do {
    length = ::recv(socket, nullptr, 0, MSG_PEEK | MSG_TRUNC);
  } while (length < 0 && errno == EINTR);
  if (length <= 0) return false;
  message.bytes.resize(static_cast<size_t>(length));
  iovec data{message.bytes.data(), message.bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMaxFdsPerMessage)> control{};
  msghdr header{.msg_iov = &data,
                .msg_iovlen = 1,
                .msg_control = control.data(),
                .msg_controllen = control.size()};
  ssize_t got = 0;
  do {
    got = ::recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0) return false;
  for (cmsghdr* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
      message.fds.emplace_back(fd);
    }
  }
  // Looked at last: what came with a message that was cut short must be closed too.
  return got == length && (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0;
}

// False when the peer has gone, or `stop` while it does not read.
bool Send(int socket, const Message& message, int stop) {
  iovec data{const_cast<char*>(message.bytes.data()), message.bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMaxFdsPerMessage)> control{};
  msghdr header{.msg_iov = &data, .msg_iovlen = 1};
  if (!message.fds.empty()) {
    header.msg_control = control.data();
    header.msg_controllen = CMSG_SPACE(sizeof(int) * message.fds.size());
    cmsghdr* part = CMSG_FIRSTHDR(&header);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof(int) * message.fds.size());
    for (size_t i = 0; i < message.fds.size(); ++i) {
      const int fd = message.fds[i].get();
      std::memcpy(CMSG_DATA(part) + i * sizeof(int), &fd, sizeof(int));
    }
  }
  ssize_t sent = 0;
  do {
    if (!Await(socket, POLLOUT, stop)) return false;
    sent = ::sendmsg(socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && (errno == EINTR || errno == EAGAIN));
  return sent == static_cast<ssize_t>(message.bytes.size());
}

// CRIU opens images_dir_fd and its like as /proc/PEER/fd/N (criu/cr-service.c,
// setup_opts_from_req). Its peer is us, so runc's descriptor gets a number in our table, kept open
// in `held`.
bool Reopen(pid_t runc, int& fd, std::vector<UniqueFd>& held) {
  UniqueFd ours(::open(fmt::format("/proc/{}/fd/{}", runc, fd).c_str(), O_RDONLY | O_CLOEXEC));
  if (!ours) return false;
  fd = ours.get();
  held.push_back(std::move(ours));
  return true;
}

// Edits a request of runc's where waft has its own way; leaves any other message alone.
void EditRequest(pid_t runc, Message& message, std::vector<UniqueFd>& held) {
  criu_req request;
  if (!request.ParseFromString(message.bytes) || !request.has_opts()) return;
  if (request.type() != DUMP && request.type() != RESTORE) return;
  criu_opts& options = *request.mutable_opts();
  int images = options.images_dir_fd();
  int work = options.work_dir_fd();
  bool reopened = images < 0 || Reopen(runc, images, held);
  options.set_images_dir_fd(images);
  if (options.has_work_dir_fd()) {
    reopened = Reopen(runc, work, held) && reopened;
    options.set_work_dir_fd(work);
  }
  if (!reopened) base::LogWarning("relay: cannot reopen runc's image or work directory");
  options.set_network_lock(SKIP);
  // If we die before pre-resume nobody freezes the tasks, and CRIU lets go of them all the same.
  if (request.type() == RESTORE) options.set_leave_stopped(true);
  message.bytes = request.SerializeAsString();
}

}  // namespace

base::Result<std::unique_ptr<Relay>> Relay::Start(const fs::path& directory,
                                                  const fs::path& programs, NotifyHook hook) {
  std::error_code error;
  fs::create_directories(directory / "bin", error);
  if (error) {
    return std::unexpected(base::Error::FromErrno("mkdir " + directory.string(), error.value()));
  }
  for (const char* name : {"criu", "gzip"}) {
    fs::create_symlink(programs / "waft-criu", directory / "bin" / name, error);
    if (error && error != std::errc::file_exists) {
      return std::unexpected(base::Error::FromErrno("symlink waft-criu", error.value()));
    }
  }

  std::unique_ptr<Relay> relay(new Relay);
  relay->hook_ = std::move(hook);
  const fs::path socket_path = directory / "relay.sock";
  sockaddr_un address{.sun_family = AF_UNIX};
  if (socket_path.native().size() >= sizeof(address.sun_path)) {
    return base::Fail(base::ErrorCode::kBadArgument,
                      fmt::format("{} is too long for a unix socket: use a shorter --run-dir",
                                  socket_path.string()));
  }
  socket_path.native().copy(address.sun_path, sizeof(address.sun_path) - 1);
  relay->listener_.reset(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  ::unlink(socket_path.c_str());
  if (!relay->listener_ ||
      ::bind(relay->listener_.get(), reinterpret_cast<const sockaddr*>(&address),
             sizeof(address)) != 0 ||
      ::listen(relay->listener_.get(), 8) != 0) {
    return base::FailErrno("listen on " + socket_path.string());
  }
  relay->stop_.reset(::eventfd(0, EFD_CLOEXEC));
  if (!relay->stop_) return base::FailErrno("eventfd");

  const char* path = std::getenv("PATH");
  relay->environment_ = {
      {"PATH", fmt::format("{}:{}", (directory / "bin").string(), path == nullptr ? "" : path)},
      {"WAFT_CRIU", CriuPath().string()},
      {"WAFT_CRIU_RELAY", socket_path.string()},
      {"WAFT_CRIU_PRELOAD", (programs / "libwaft-criu-preload.so").string()},
  };
  relay->thread_ = std::thread([raw = relay.get()] { raw->Serve(); });
  return relay;
}

Relay::~Relay() {
  if (!thread_.joinable()) return;
  ::eventfd_write(stop_.get(), 1);
  thread_.join();
}

void Relay::Serve() {
  while (Await(listener_.get(), POLLIN, stop_.get())) {
    UniqueFd stub(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    // runc asks one CRIU at a time: its version first, then the dump or restore.
    if (stub) ServeConnection(std::move(stub));
  }
}

void Relay::ServeConnection(UniqueFd stub) {
  if (!Await(stub.get(), POLLIN, stop_.get())) return;
  const UniqueFd runc(ReceiveFd(stub.get()));
  ucred peer{};
  ucred criu_peer{};  // the stub's, which becomes CRIU
  socklen_t length = sizeof(peer);
  std::array<int, 2> pair{};
  if (!runc || ::getsockopt(runc.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0 ||
      ::getsockopt(stub.get(), SOL_SOCKET, SO_PEERCRED, &criu_peer, &length) != 0 ||
      ::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair.data()) != 0) {
    base::LogWarning("relay: cannot join runc and CRIU: {}", std::strerror(errno));
    return;
  }
  const UniqueFd criu(pair[0]);
  UniqueFd criu_end(pair[1]);
  if (!SendFd(stub.get(), criu_end.get())) return;
  criu_end.reset();
  stub.reset();

  std::vector<UniqueFd> held;
  for (;;) {
    std::array<pollfd, 3> wait{
        {{runc.get(), POLLIN, 0}, {criu.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}}};
    if (::poll(wait.data(), wait.size(), -1) < 0 && errno != EINTR) return;
    if (wait[2].revents != 0) return;
    Message message;
    if (wait[1].revents != 0) {
      if (!Receive(criu.get(), message)) return;
      criu_resp response;
      if (response.ParseFromString(message.bytes) && response.type() == NOTIFY) {
        base::LogDebug("relay: CRIU notifies {}", response.notify().script());
        hook_({.script = response.notify().script(),
               .workload_pid = response.notify().pid(),
               .criu_pid = criu_peer.pid});
      }
      if (!Send(runc.get(), message, stop_.get())) return;
    } else if (wait[0].revents != 0) {
      if (!Receive(runc.get(), message)) return;
      EditRequest(peer.pid, message, held);
      if (!Send(criu.get(), message, stop_.get())) return;
    }
  }
}

}  // namespace waft::criu
