#include "netns/netlink.h"

#include <fmt/format.h>
#include <linux/if.h>
#include <linux/if_link.h>
#include <linux/net_namespace.h>
#include <linux/rtnetlink.h>
#include <netlink/attr.h>
#include <netlink/cache.h>
#include <netlink/msg.h>
#include <netlink/route/link.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace waft::netns {
namespace {

struct Exchange {
  const std::function<void(nlmsghdr*)>& on_answer;
  bool done = false;
  int error_number = 0;
};

int OnAnswer(nl_msg* message, void* argument) {
  const auto& exchange = *static_cast<Exchange*>(argument);
  if (exchange.on_answer) exchange.on_answer(nlmsg_hdr(message));
  return NL_OK;
}

int OnEnd(nl_msg* /*message*/, void* argument) {
  static_cast<Exchange*>(argument)->done = true;
  return NL_STOP;
}

int OnError(sockaddr_nl* /*from*/, nlmsgerr* error, void* argument) {
  static_cast<Exchange*>(argument)->error_number = -error->error;
  return NL_STOP;
}

LinkInfo ToLinkInfo(rtnl_link* link) {
  LinkInfo info;
  info.index = rtnl_link_get_ifindex(link);
  info.name = rtnl_link_get_name(link);
  if (const char* kind = rtnl_link_get_type(link); kind != nullptr) info.kind = kind;
  if (nl_addr* mac = rtnl_link_get_addr(link);
      mac != nullptr && nl_addr_get_len(mac) == info.mac.size()) {
    std::memcpy(info.mac.data(), nl_addr_get_binary_addr(mac), info.mac.size());
  }
  info.mtu = rtnl_link_get_mtu(link);
  info.flags = rtnl_link_get_flags(link);
  info.peer_index = rtnl_link_get_link(link);
  if (int32_t nsid = 0; rtnl_link_get_link_netnsid(link, &nsid) == 0) info.peer_nsid = nsid;
  info.master_index = rtnl_link_get_master(link);
  info.carries = rtnl_link_get_operstate(link) == IF_OPER_UP;
  return info;
}

}  // namespace

std::unexpected<base::Error> FailNetlink(std::string_view what, int nl_error) {
  return base::Fail(base::ErrorCode::kRollBack, fmt::format("{}: {}", what, nl_geterror(nl_error)));
}

Message::Message(int type, int flags) : message_(nlmsg_alloc_simple(type, flags)) {
  complete_ = message_ != nullptr;
}

Message& Message::Append(const void* data, size_t len_bytes) {
  complete_ = complete_ &&
              nlmsg_append(message_.get(), const_cast<void*>(data), len_bytes, NLMSG_ALIGNTO) == 0;
  return *this;
}

Message& Message::Put(int attribute, const void* data, size_t len_bytes) {
  complete_ =
      complete_ && nla_put(message_.get(), attribute, static_cast<int>(len_bytes), data) == 0;
  return *this;
}

Message& Message::Nest(int attribute, const std::function<void()>& fill) {
  nlattr* nest = complete_ ? nla_nest_start(message_.get(), attribute) : nullptr;
  complete_ = nest != nullptr;
  if (!complete_) return *this;
  fill();
  complete_ = complete_ && nla_nest_end(message_.get(), nest) == 0;
  return *this;
}

base::Result<Netlink> Netlink::Open() {
  Netlink netlink(nl_socket_alloc());
  if (netlink.socket_ == nullptr) return FailNetlink("netlink socket", -NLE_NOMEM);
  if (const int error = nl_connect(netlink.get(), NETLINK_ROUTE); error < 0) {
    return FailNetlink("netlink socket", error);
  }
  return netlink;
}

base::Result<Netlink> Netlink::FromFd(base::UniqueFd fd, int protocol) {
  Netlink netlink(nl_socket_alloc());
  if (netlink.socket_ == nullptr) return FailNetlink("netlink socket", -NLE_NOMEM);
  if (const int error = nl_socket_set_fd(netlink.get(), protocol, fd.get()); error < 0) {
    return FailNetlink("adopt a netlink socket", error);
  }
  (void)fd.release();  // nl_socket_free() closes it
  return netlink;
}

base::Status Netlink::Transact(std::string_view what, const Message& message,
                               const std::function<void(nlmsghdr*)>& on_answer) {
  if (!message.complete()) return FailNetlink(what, -NLE_NOMEM);
  const std::unique_ptr<nl_cb, Freer<nl_cb_put>> callbacks(nl_cb_alloc(NL_CB_DEFAULT));
  if (callbacks == nullptr) return FailNetlink(what, -NLE_NOMEM);
  Exchange exchange{.on_answer = on_answer};
  nl_cb_set(callbacks.get(), NL_CB_VALID, NL_CB_CUSTOM, OnAnswer, &exchange);
  nl_cb_set(callbacks.get(), NL_CB_ACK, NL_CB_CUSTOM, OnEnd, &exchange);
  nl_cb_set(callbacks.get(), NL_CB_FINISH, NL_CB_CUSTOM, OnEnd, &exchange);
  nl_cb_err(callbacks.get(), NL_CB_CUSTOM, OnError, &exchange);
  if (const int sent = nl_send_auto(get(), message.get()); sent < 0) return FailNetlink(what, sent);
  while (!exchange.done) {
    const int received = nl_recvmsgs(get(), callbacks.get());
    if (exchange.error_number != 0) {
      return std::unexpected(base::Error::FromErrno(what, exchange.error_number));
    }
    if (received < 0) return FailNetlink(what, received);
  }
  return {};
}

base::Result<std::vector<LinkInfo>> ReadLinks(Netlink& netlink) {
  nl_cache* filled = nullptr;
  if (const int error = rtnl_link_alloc_cache(netlink.get(), AF_UNSPEC, &filled); error < 0) {
    return FailNetlink("list links", error);
  }
  const CachePtr cache(filled);
  std::vector<LinkInfo> links;
  for (nl_object* object = nl_cache_get_first(filled); object != nullptr;
       object = nl_cache_get_next(object)) {
    links.push_back(ToLinkInfo(reinterpret_cast<rtnl_link*>(object)));
  }
  return links;
}

const LinkInfo* FindLink(const std::vector<LinkInfo>& links, std::string_view name) {
  const auto found = std::ranges::find(links, name, &LinkInfo::name);
  return found == links.end() ? nullptr : &*found;
}

const LinkInfo* FindLink(const std::vector<LinkInfo>& links, int index) {
  const auto found = std::ranges::find(links, index, &LinkInfo::index);
  return found == links.end() ? nullptr : &*found;
}

base::Result<BridgeTraits> ReadBridge(Netlink& netlink, int index) {
  BridgeTraits traits;
  const auto parse = [&](nlmsghdr* answer) {
    std::array<nlattr*, IFLA_INFO_MAX + 1> info{};
    std::array<nlattr*, IFLA_BR_MAX + 1> bridge{};
    nlattr* nest = nlmsg_find_attr(answer, sizeof(ifinfomsg), IFLA_LINKINFO);
    if (nest == nullptr || nla_parse_nested(info.data(), IFLA_INFO_MAX, nest, nullptr) < 0 ||
        info[IFLA_INFO_DATA] == nullptr ||
        nla_parse_nested(bridge.data(), IFLA_BR_MAX, info[IFLA_INFO_DATA], nullptr) < 0) {
      return;
    }
    const nlattr* stp = bridge[IFLA_BR_STP_STATE];
    const nlattr* vlans = bridge[IFLA_BR_VLAN_FILTERING];
    traits.spanning_tree = stp != nullptr && nla_get_u32(stp) != 0;
    traits.filters_vlans = vlans != nullptr && nla_get_u8(vlans) != 0;
  };
  const Message message(RTM_GETLINK, 0, ifinfomsg{.ifi_index = index});
  WAFT_TRY(netlink.Transact("look at a bridge", message, parse));
  return traits;
}

base::Status SyncCarrier(Netlink& netlink, int index) {
  const Message message(RTM_GETLINK, 0, ifinfomsg{.ifi_index = index});
  return netlink.Transact("look at a link", message);
}

base::Status SetLinkFlags(Netlink& netlink, int index, unsigned flags, unsigned mask) {
  const Message message(RTM_NEWLINK, 0,
                        ifinfomsg{.ifi_index = index, .ifi_flags = flags, .ifi_change = mask});
  return netlink.Transact(fmt::format("set the flags of link {}", index), message);
}

std::optional<IpAddress> ToIpAddress(const nl_addr* address) {
  if (address == nullptr) return std::nullopt;
  const int family = nl_addr_get_family(address);
  if (family != AF_INET && family != AF_INET6) return std::nullopt;
  IpAddress converted{.family = family};
  if (nl_addr_get_len(address) != converted.size()) return std::nullopt;
  return IpFromBytes(family, nl_addr_get_binary_addr(address));
}

base::Result<int> NamespaceNumber(Netlink& netlink, int namespace_fd) {
  Message message(RTM_GETNSID, 0, rtgenmsg{});
  message.PutU32(NETNSA_FD, namespace_fd);
  int number = -1;
  WAFT_TRY(netlink.Transact("number of a network namespace", message, [&](nlmsghdr* answer) {
    const nlattr* found = nlmsg_find_attr(answer, sizeof(rtgenmsg), NETNSA_NSID);
    if (found != nullptr) number = nla_get_s32(found);
  }));
  return number;
}

}  // namespace waft::netns
