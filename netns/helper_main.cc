// waft-netns-helper enter|create PATH: opens sockets in a network namespace for a threaded process,
// which may not setns(2) itself, and passes them over descriptor 3.
//
// `enter` takes the namespace bound at PATH; `create` makes a new one and binds it there, which the
// caller sees because both share a mount namespace.
#include <fcntl.h>
#include <linux/netlink.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <span>
#include <string_view>

#include "base/file.h"
#include "base/log.h"
#include "base/unique_fd.h"
#include "netns/helper_protocol.h"

namespace waft::netns {
namespace {

constexpr const char* kAcceptDad = "/proc/sys/net/ipv6/conf/default/accept_dad";

base::Status SendReply(const HelperReply& reply, std::span<const int> fds) {
  iovec bytes{const_cast<HelperReply*>(&reply), sizeof(reply)};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kHelperMaxFds)> control{};
  msghdr message{.msg_iov = &bytes, .msg_iovlen = 1};
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
  }
  if (::sendmsg(kHelperSocketFd, &message, MSG_NOSIGNAL) < 0) return base::FailErrno("sendmsg");
  return {};
}

base::Result<base::UniqueFd> OpenSocket(int family, int protocol, std::string_view what) {
  base::UniqueFd fd(::socket(family, SOCK_RAW | SOCK_CLOEXEC, protocol));
  if (!fd) return base::FailErrno(what);
  if (family == AF_NETLINK) {
    const sockaddr_nl any{.nl_family = AF_NETLINK};
    if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&any), sizeof(any)) != 0) {
      return base::FailErrno(what);
    }
  }
  return fd;
}

base::Status SendSockets(const char* namespace_path) {
  WAFT_ASSIGN(const base::UniqueFd ns, base::Open(namespace_path, O_RDONLY));
  WAFT_ASSIGN(const base::UniqueFd route, OpenSocket(AF_NETLINK, NETLINK_ROUTE, "netlink socket"));
  // Protocol 0: it sends only, and nothing piles up in it.
  WAFT_ASSIGN(const base::UniqueFd packet, OpenSocket(AF_PACKET, 0, "packet socket"));
  const auto netfilter = OpenSocket(AF_NETLINK, NETLINK_NETFILTER, "netfilter socket");
  const std::array<int, kHelperMaxFds> fds{ns.get(), route.get(), packet.get(),
                                           netfilter ? netfilter->get() : -1};
  return SendReply(HelperReply{}, std::span(fds).first(netfilter ? kHelperMaxFds : kHelperMinFds));
}

base::Status Enter(const char* path) {
  WAFT_ASSIGN(const base::UniqueFd ns, base::Open(path, O_RDONLY));
  if (::setns(ns.get(), CLONE_NEWNET) != 0) return base::FailErrno("setns");
  return SendSockets(path);
}

base::Status BindNewNamespace(const char* path) {
  if (::unshare(CLONE_NEWNET) != 0) return base::FailErrno("unshare");
  if (::mount("/proc/self/ns/net", path, "none", MS_BIND, nullptr) != 0) {
    return base::FailErrno("bind mount");
  }
  // Interfaces copy this when they are made. Duplicate address detection would keep the link-local
  // address tentative for 1-2 s, and the address itself still lives at the source. Without IPv6, or
  // with a read-only /proc/sys, that address is merely late: the others are added with nodad.
  const base::Status quick = base::WriteControlFile(kAcceptDad, "0");
  if (!quick) base::LogDebug("{}", quick.error().message());
  const base::Status sent = SendSockets("/proc/self/ns/net");
  if (!sent) ::umount2(path, MNT_DETACH);
  return sent;
}

base::Status Create(const char* path) {
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), error);
  if (error) return std::unexpected(base::Error::FromErrno("create its directory", error.value()));
  WAFT_TRY(base::Open(path, O_RDONLY | O_CREAT | O_EXCL, 0444));
  base::Status bound = BindNewNamespace(path);
  if (!bound) ::unlink(path);
  return bound;
}

base::Status Serve(std::string_view verb, const char* path) {
  if (verb == "enter") return Enter(path);
  if (verb == "create") return Create(path);
  return base::Fail(base::ErrorCode::kBadArgument, "neither enter nor create");
}

}  // namespace
}  // namespace waft::netns

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const waft::base::Status status = waft::netns::Serve(argv[1], argv[2]);
  if (status) return 0;
  waft::netns::HelperReply reply{.error_number = std::max(status.error().error_number(), 1)};
  status.error().message().copy(reply.what.data(), reply.what.size() - 1);
  const waft::base::Status sent = waft::netns::SendReply(reply, {});
  waft::base::LogIfError(sent, "answer the caller");
  return 1;
}
