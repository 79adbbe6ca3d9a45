#include "netns/namespace.h"

#include <fmt/format.h>
#include <linux/if_packet.h>
#include <linux/neighbour.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <netlink/cache.h>
#include <netlink/route/neighbour.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>

#include "base/clock.h"
#include "base/process.h"
#include "netns/helper_protocol.h"

namespace waft::netns {
namespace {

constexpr std::chrono::seconds kHelperTimeout(10);

std::filesystem::path& HelperPath() {
  static std::filesystem::path path;
  return path;
}

base::Result<std::filesystem::path> FindHelper() {
  if (!HelperPath().empty()) return HelperPath();
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return std::unexpected(base::Error::FromErrno("/proc/self/exe", error.value()));
  return self.parent_path() / "waft-netns-helper";
}

// The helper's answer and what came with it.
base::Result<std::vector<base::UniqueFd>> ReceiveSockets(int socket) {
  pollfd wait{socket, POLLIN, 0};
  const base::Deadline deadline = base::Deadline::After(kHelperTimeout);
  int ready = 0;
  do {
    ready = ::poll(&wait, 1, deadline.LeftMs());
  } while (ready < 0 && errno == EINTR);
  if (ready < 0) return base::FailErrno("poll");
  if (ready == 0) return std::unexpected(base::Error::FromErrno("waft-netns-helper", ETIMEDOUT));

  HelperReply reply;
  iovec bytes{&reply, sizeof(reply)};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kHelperMaxFds)> control{};
  msghdr message{.msg_iov = &bytes,
                 .msg_iovlen = 1,
                 .msg_control = control.data(),
                 .msg_controllen = control.size()};
  const ssize_t got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  if (got < 0) return base::FailErrno("recvmsg");
  std::vector<base::UniqueFd> fds;
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header != nullptr && header->cmsg_type == SCM_RIGHTS) {
    fds.resize((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    for (size_t i = 0; i < fds.size(); ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(fd));
      fds[i].reset(fd);
    }
  }
  if (got != sizeof(reply)) {
    return base::Fail(base::ErrorCode::kFatal, "waft-netns-helper died without an answer");
  }
  if (reply.error_number != 0) {
    reply.what.back() = '\0';
    return std::unexpected(
        base::Error(base::ErrorCode::kRollBack, reply.what.data(), reply.error_number));
  }
  if (fds.size() < kHelperMinFds) {
    return base::Fail(base::ErrorCode::kFatal, "waft-netns-helper sent too few descriptors");
  }
  return fds;
}

}  // namespace

void SetHelperPath(std::filesystem::path path) { HelperPath() = std::move(path); }

base::Result<Namespace> Namespace::Ask(const char* verb, const std::filesystem::path& path) {
  WAFT_ASSIGN(const std::filesystem::path helper, FindHelper());
  std::array<int, 2> pair{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair.data()) != 0) {
    return base::FailErrno("socketpair");
  }
  const base::UniqueFd ours(pair[0]);
  base::UniqueFd theirs(pair[1]);
  WAFT_ASSIGN(base::Child child, base::Child::Spawn({.argv = {helper.string(), verb, path.string()},
                                                     .fds = {{theirs.get(), kHelperSocketFd}}}));
  theirs.reset();
  auto fds = ReceiveSockets(ours.get());
  if (!fds) {
    WAFT_TRY(child.Signal(SIGKILL));  // it may hang in a file system; one that is gone is no error
    WAFT_TRY(child.Wait());
    return std::unexpected(
        fds.error().WithContext(fmt::format("{} network namespace {}", verb, path.string())));
  }
  WAFT_TRY(child.Wait());
  WAFT_ASSIGN(Netlink route, Netlink::FromFd(std::move((*fds)[1]), NETLINK_ROUTE));
  Namespace ns(std::move((*fds)[0]), std::move(route), std::move((*fds)[2]));
  if (fds->size() > kHelperMinFds) {
    WAFT_ASSIGN(ns.netfilter_, Netlink::FromFd(std::move((*fds)[3]), NETLINK_NETFILTER));
  }
  return ns;
}

base::Result<Namespace> Namespace::Enter(const std::filesystem::path& path) {
  return Ask("enter", path);
}

base::Result<Namespace> Namespace::Create(const std::filesystem::path& path) {
  return Ask("create", path);
}

base::Result<bool> Namespace::HasNftables() {
  if (!netfilter_) return false;
  const Message message(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE, NLM_F_DUMP,
                        nfgenmsg{.nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0});
  bool found = false;
  const base::Status listed = netfilter_->Transact("list nftables tables", message,
                                                   [&](nlmsghdr* /*table*/) { found = true; });
  // EINVAL: nfnetlink without nf_tables (nfnetlink_rcv_msg()).
  if (!listed && listed.error().error_number() != EINVAL) return std::unexpected(listed.error());
  return found;
}

base::Status Namespace::SendFrame(int index, const Frame& frame) const {
  const sockaddr_ll to{.sll_family = AF_PACKET, .sll_ifindex = index};
  if (::sendto(packet_.get(), frame.data(), frame.size(), 0, reinterpret_cast<const sockaddr*>(&to),
               sizeof(to)) < 0) {
    return base::FailErrno(fmt::format("send a frame on link {}", index));
  }
  return {};
}

base::Result<std::vector<Port>> FindPorts(Netlink& host, Namespace& ns) {
  // Listing the links first makes the kernel number the namespaces that their peers are in.
  WAFT_ASSIGN(const std::vector<LinkInfo> host_links, ReadLinks(host));
  WAFT_ASSIGN(const int nsid, NamespaceNumber(host, ns.fd()));
  WAFT_ASSIGN(const std::vector<LinkInfo> inside_links, ReadLinks(ns.route()));
  std::vector<Port> ports;
  for (const LinkInfo& inside : inside_links) {
    Port port{.inside = inside};
    const auto is_host_end = [&](const LinkInfo& link) {
      return link.kind == "veth" && link.peer_index == inside.index && link.peer_nsid == nsid;
    };
    const auto found = std::ranges::find_if(host_links, is_host_end);
    if (inside.kind == "veth" && nsid >= 0 && found != host_links.end()) port.host = *found;
    ports.push_back(std::move(port));
  }
  return ports;
}

base::Status SolicitUnresolved(Namespace& ns, const v1::NetworkLink& link, int index) {
  const auto mac = MacFromBytes(link.mac());
  if (!mac) return {};
  nl_cache* filled = nullptr;
  if (const int error = rtnl_neigh_alloc_cache(ns.route().get(), &filled); error < 0) {
    return FailNetlink("list neighbours", error);
  }
  const CachePtr cache(filled);
  for (nl_object* object = nl_cache_get_first(filled); object != nullptr;
       object = nl_cache_get_next(object)) {
    auto* neighbour = reinterpret_cast<rtnl_neigh*>(object);
    const auto target = ToIpAddress(rtnl_neigh_get_dst(neighbour));
    if (!target || rtnl_neigh_get_ifindex(neighbour) != index ||
        (rtnl_neigh_get_state(neighbour) & NUD_INCOMPLETE) == 0) {
      continue;
    }
    for (const v1::NetworkAddress& own : link.addresses()) {
      const auto sender = ParseIp(own.address());
      if (!sender || sender->family != target->family) continue;
      WAFT_TRY(ns.SendFrame(index, target->family == AF_INET
                                       ? ArpRequest(*mac, *sender, *target)
                                       : NeighbourSolicitation(*mac, *sender, *target)));
      break;
    }
  }
  return {};
}

}  // namespace waft::netns
