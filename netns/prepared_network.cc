#include "netns/prepared_network.h"

#include <fmt/format.h>
#include <linux/if.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "netns/identity.h"
#include "netns/namespace.h"

namespace waft::netns {
namespace {

constexpr int kLoopbackIndex = 1;  // in every namespace (LOOPBACK_IFINDEX, include/net/flow.h)
constexpr uint8_t kAddressGenerationNone = IN6_ADDR_GEN_MODE_NONE;
// Above the second that the kernel's link watch may take where SyncCarrier() does not help.
constexpr std::chrono::milliseconds kCarrierTimeout(1500);

// A bridge without a MAC of its own takes its ports' lowest, and changing it cuts its host off for
// a while: ours must never be the lowest. libvirt does the same.
Mac HostEndMac() {
  std::random_device random;
  Mac mac;
  std::ranges::generate(mac, std::ref(random));
  mac[0] = 0xfe;
  return mac;
}

base::Status CreateVeth(Netlink& host, const Namespace& ns, const v1::NetworkLink& link,
                        const std::string& host_name) {
  const Mac host_mac = HostEndMac();
  Message message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, ifinfomsg{});
  message.PutString(IFLA_IFNAME, host_name)
      .Put(IFLA_ADDRESS, host_mac.data(), host_mac.size())
      .PutU32(IFLA_MTU, link.mtu());
  const auto fill_peer = [&] {
    const ifinfomsg header{};
    message.Append(&header, sizeof(header));
    message.PutString(IFLA_IFNAME, link.name())
        .Put(IFLA_ADDRESS, link.mac().data(), link.mac().size())
        .PutU32(IFLA_MTU, link.mtu())
        .PutU32(IFLA_NET_NS_FD, ns.fd());
  };
  message.Nest(IFLA_LINKINFO, [&] {
    message.PutString(IFLA_INFO_KIND, "veth");
    message.Nest(IFLA_INFO_DATA, [&] { message.Nest(VETH_INFO_PEER, fill_peer); });
  });
  return host.Transact(fmt::format("create veth {}", host_name), message);
}

// No frame of the host's own stack may pass between it and a workload behind a shut gate: no ARP,
// no IPv6 address to answer from.
base::Status RaiseHostEnd(Netlink& host, int index) {
  Message message(RTM_NEWLINK, 0, ifinfomsg{.ifi_index = index});
  message.Nest(IFLA_AF_SPEC, [&] {
    message.Nest(AF_INET6, [&] {
      message.Put(IFLA_INET6_ADDR_GEN_MODE, &kAddressGenerationNone, sizeof(uint8_t));
    });
  });
  const base::Status set = host.Transact("keep IPv6 off a host end", message);
  // A kernel without IPv6 has nothing to keep off.
  if (!set && set.error().error_number() != EAFNOSUPPORT) return set;
  return SetLinkFlags(host, index, IFF_UP | IFF_NOARP, IFF_UP | IFF_NOARP);
}

base::Status AddAddress(Netlink& inside, int index, const v1::NetworkAddress& address) {
  const auto ip = ParseIp(address.address());
  const auto broadcast = ParseIp(address.broadcast());
  if (!ip) return base::Fail(base::ErrorCode::kBadArgument, "address " + address.address());
  ifaddrmsg header{.ifa_family = static_cast<uint8_t>(ip->family),
                   .ifa_prefixlen = static_cast<uint8_t>(address.prefix_length()),
                   .ifa_scope = RT_SCOPE_UNIVERSE,
                   .ifa_index = static_cast<uint32_t>(index)};
  // Detection would find the source, which still has it, and costs 1.3-1.7 s.
  if (ip->family == AF_INET6) header.ifa_flags = IFA_F_NODAD;
  Message message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, header);
  message.PutIp(IFA_LOCAL, *ip).PutIp(IFA_ADDRESS, *ip);
  if (broadcast) message.PutIp(IFA_BROADCAST, *broadcast);
  return inside.Transact("add address " + address.address(), message);
}

base::Status AddRoute(Netlink& inside, int index, const v1::NetworkRoute& route) {
  const auto destination = ParsePrefix(route.destination());
  const auto gateway = ParseIp(route.gateway());
  const auto source = ParseIp(route.preferred_source());
  const auto add = [&](unsigned flags) {
    Message message(
        RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL,
        rtmsg{.rtm_family = static_cast<uint8_t>(route.family()),
              .rtm_dst_len = static_cast<uint8_t>(destination ? destination->length : 0),
              .rtm_table = RT_TABLE_MAIN,
              .rtm_protocol = RTPROT_STATIC,
              .rtm_scope = static_cast<uint8_t>(route.scope()),
              .rtm_type = RTN_UNICAST,
              .rtm_flags = flags});
    if (destination) message.PutIp(RTA_DST, destination->address);
    if (gateway) message.PutIp(RTA_GATEWAY, *gateway);
    if (source) message.PutIp(RTA_PREFSRC, *source);
    message.PutU32(RTA_OIF, index).PutU32(RTA_PRIORITY, route.metric());
    return inside.Transact(fmt::format("add route {}", route.destination()), message);
  };
  const base::Status added = add(0);
  // A gateway outside every prefix was added with `onlink` at the source too.
  if (!added && gateway) return add(RTNH_F_ONLINK);
  return added;
}

base::Status AwaitCarrier(Netlink& netlink, int index, const std::string& name) {
  const base::Deadline deadline = base::Deadline::After(kCarrierTimeout);
  for (;;) {
    WAFT_TRY(SyncCarrier(netlink, index));
    WAFT_ASSIGN(const std::vector<LinkInfo> links, ReadLinks(netlink));
    const LinkInfo* link = FindLink(links, index);
    if (link != nullptr && link->carries) return {};
    if (deadline.Passed()) {
      return base::Fail(base::ErrorCode::kRetry, fmt::format("link {} does not come up", name));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

base::Status Enslave(Netlink& host, int index, int bridge_index) {
  Message message(RTM_NEWLINK, 0, ifinfomsg{.ifi_index = index});
  message.PutU32(IFLA_MASTER, bridge_index);
  return host.Transact("add a host end to its bridge", message);
}

}  // namespace

struct PreparedNetwork::State {
  struct Gate {
    const v1::NetworkLink* link;  // in `identity`
    int inside_index;
    int host_index;
    int bridge_index;
    std::vector<Frame> announcements;
  };

  State(v1::NetworkIdentity wanted, Namespace workload_ns, Netlink host_netlink)
      : identity(std::move(wanted)), ns(std::move(workload_ns)), host(std::move(host_netlink)) {}
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    if (committed) return;
    base::LogIfError(Destroy(identity), "undo a prepared network");
  }

  // Looks up what is there: `gates`, one for each link of the identity.
  base::Status FindGates();
  base::Status Build();
  base::Status BuildLink(const v1::NetworkLink& link);
  base::Status BuildRoutes();

  const v1::NetworkIdentity identity;
  Namespace ns;
  Netlink host;
  std::vector<Gate> gates;
  bool committed = false;
};

base::Status PreparedNetwork::State::FindGates() {
  WAFT_ASSIGN(const std::vector<Port> ports, FindPorts(host, ns));
  WAFT_ASSIGN(const std::vector<LinkInfo> host_links, ReadLinks(host));
  gates.clear();
  for (const v1::NetworkLink& link : identity.links()) {
    const auto port = std::ranges::find_if(
        ports, [&](const Port& candidate) { return candidate.inside.name == link.name(); });
    if (port == ports.end() || !port->host) {
      return base::Fail(base::ErrorCode::kRollBack,
                        fmt::format("network namespace {} has no veth {} to this host",
                                    identity.path(), link.name()));
    }
    const LinkInfo* bridge = FindLink(host_links, link.host_bridge());
    if (bridge == nullptr || bridge->kind != "bridge") {
      return base::Fail(base::ErrorCode::kRollBack, "there is no bridge " + link.host_bridge());
    }
    Gate gate{.link = &link,
              .inside_index = port->inside.index,
              .host_index = port->host->index,
              .bridge_index = bridge->index,
              .announcements = {}};
    for (const v1::NetworkAddress& address : link.addresses()) {
      const auto ip = ParseIp(address.address());
      const auto mac = MacFromBytes(link.mac());
      if (!ip || !mac) continue;  // Validate() has seen to it
      gate.announcements.push_back(ip->family == AF_INET ? ArpRequest(*mac, *ip, *ip)
                                                         : NeighbourAdvertisement(*mac, *ip));
    }
    gates.push_back(std::move(gate));
  }
  return {};
}

base::Status PreparedNetwork::State::BuildLink(const v1::NetworkLink& link) {
  const std::string any_name = "waft%d";  // dev_alloc_name() fills in the number
  base::Status created =
      CreateVeth(host, ns, link, link.host_name().empty() ? any_name : link.host_name());
  if (!created && created.error().error_number() == EEXIST) {
    created = CreateVeth(host, ns, link, any_name);
  }
  return created;
}

base::Status PreparedNetwork::State::BuildRoutes() {
  // On-link routes first: gateways are reached through them.
  std::vector<const v1::NetworkRoute*> routes;
  for (const v1::NetworkRoute& route : identity.routes()) routes.push_back(&route);
  std::ranges::stable_partition(
      routes, [](const v1::NetworkRoute* route) { return route->gateway().empty(); });
  for (const v1::NetworkRoute* route : routes) {
    const auto gate = std::ranges::find_if(
        gates, [&](const Gate& candidate) { return candidate.link->name() == route->interface(); });
    WAFT_TRY(AddRoute(ns.route(), gate->inside_index, *route));
  }
  return {};
}

base::Status PreparedNetwork::State::Build() {
  WAFT_TRY(SetLinkFlags(ns.route(), kLoopbackIndex, IFF_UP, IFF_UP));
  for (const v1::NetworkLink& link : identity.links()) WAFT_TRY(BuildLink(link));
  WAFT_TRY(FindGates());
  for (const Gate& gate : gates) {
    WAFT_TRY(RaiseHostEnd(host, gate.host_index));
    WAFT_TRY(SetLinkFlags(ns.route(), gate.inside_index, IFF_UP, IFF_UP));
    for (const v1::NetworkAddress& address : gate.link->addresses()) {
      WAFT_TRY(AddAddress(ns.route(), gate.inside_index, address));
    }
  }
  WAFT_TRY(BuildRoutes());
  // With both ends running now, Open() need not wait for a carrier.
  for (const Gate& gate : gates) {
    WAFT_TRY(AwaitCarrier(host, gate.host_index, "outside of " + gate.link->name()));
    WAFT_TRY(AwaitCarrier(ns.route(), gate.inside_index, gate.link->name()));
  }
  return {};
}

PreparedNetwork::PreparedNetwork(std::unique_ptr<State> state) : state_(std::move(state)) {}
PreparedNetwork::PreparedNetwork(PreparedNetwork&&) noexcept = default;
PreparedNetwork& PreparedNetwork::operator=(PreparedNetwork&&) noexcept = default;
PreparedNetwork::~PreparedNetwork() = default;

base::Result<PreparedNetwork> PreparedNetwork::Prepare(const v1::NetworkIdentity& identity) {
  WAFT_TRY(Validate(identity));
  if (identity.path().empty()) return PreparedNetwork(nullptr);
  WAFT_ASSIGN(Netlink host, Netlink::Open());
  WAFT_ASSIGN(Namespace ns, Namespace::Create(identity.path()));
  auto state = std::make_unique<State>(identity, std::move(ns), std::move(host));
  WAFT_TRY(state->Build());
  return PreparedNetwork(std::move(state));
}

base::Result<PreparedNetwork> PreparedNetwork::Adopt(const v1::NetworkIdentity& identity) {
  WAFT_TRY(Validate(identity));
  if (identity.path().empty()) return PreparedNetwork(nullptr);
  WAFT_ASSIGN(Netlink host, Netlink::Open());
  WAFT_ASSIGN(Namespace ns, Namespace::Enter(identity.path()));
  auto state = std::make_unique<State>(identity, std::move(ns), std::move(host));
  state->committed = true;
  WAFT_TRY(state->FindGates());
  return PreparedNetwork(std::move(state));
}

base::Status PreparedNetwork::Open() {
  if (state_ == nullptr) return {};
  for (const State::Gate& gate : state_->gates) {
    WAFT_TRY(Enslave(state_->host, gate.host_index, gate.bridge_index));
  }
  WAFT_TRY(Announce());
  for (const State::Gate& gate : state_->gates) {
    WAFT_TRY(SolicitUnresolved(state_->ns, *gate.link, gate.inside_index));
  }
  return {};
}

base::Status PreparedNetwork::Announce() {
  if (state_ == nullptr) return {};
  for (const State::Gate& gate : state_->gates) {
    for (const Frame& frame : gate.announcements) {
      WAFT_TRY(state_->ns.SendFrame(gate.inside_index, frame));
    }
  }
  return {};
}

void PreparedNetwork::Commit() {
  if (state_ != nullptr) state_->committed = true;
}

}  // namespace waft::netns
