#include "netns/identity.h"

#include <fmt/format.h>
#include <linux/fib_rules.h>
#include <linux/if.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/if_packet.h>
#include <linux/magic.h>
#include <linux/rtnetlink.h>
#include <net/ethernet.h>
#include <netlink/cache.h>
#include <netlink/route/addr.h>
#include <netlink/route/route.h>
#include <netlink/route/rule.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <chrono>
#include <map>
#include <set>
#include <span>
#include <utility>

#include "base/clock.h"
#include "base/file.h"
#include "netns/namespace.h"

namespace waft::netns {
namespace {

constexpr std::chrono::milliseconds kProbeWindow(200);
constexpr std::chrono::milliseconds kProbeInterval(80);
constexpr uint32_t kMinMtu = 68;
constexpr uint32_t kMaxMtu = 65535;
constexpr uint32_t kMaxAddressBits = 128;

// Devices the kernel puts into every new namespace once their module is loaded
// (net.core.fb_tunnels_only_for_init_net); down they carry nothing.
constexpr std::array kFallbackTunnels{"tunl0", "gre0",    "gretap0", "erspan0", "ip_vti0",
                                      "sit0",  "ip6tnl0", "ip6gre0", "ip6_vti0"};

std::unexpected<base::Error> Refuse(const std::filesystem::path& path, std::string_view what) {
  return base::Fail(
      base::ErrorCode::kUnsupported,
      fmt::format("network namespace {}: {}: cannot be carried", path.string(), what));
}

template <typename T>
std::vector<T*> Objects(const CachePtr& cache) {
  std::vector<T*> objects;
  for (nl_object* object = nl_cache_get_first(cache.get()); object != nullptr;
       object = nl_cache_get_next(object)) {
    objects.push_back(reinterpret_cast<T*>(object));
  }
  return objects;
}

base::Result<CachePtr> ReadAddresses(Netlink& netlink) {
  nl_cache* filled = nullptr;
  if (const int error = rtnl_addr_alloc_cache(netlink.get(), &filled); error < 0) {
    return FailNetlink("list addresses", error);
  }
  return CachePtr(filled);
}

base::Result<v1::NetworkLink> CaptureLink(const std::filesystem::path& path, Netlink& host,
                                          const Port& port,
                                          const std::vector<LinkInfo>& host_links) {
  const LinkInfo& inside = port.inside;
  if (inside.kind != "veth") {
    return Refuse(path, fmt::format("link {} is a {}, not a veth", inside.name,
                                    inside.kind.empty() ? "hardware device" : inside.kind));
  }
  if (!port.host) {
    return Refuse(path, fmt::format("veth {} has its other end in a third namespace", inside.name));
  }
  const LinkInfo* bridge = FindLink(host_links, port.host->master_index);
  if (bridge == nullptr || bridge->kind != "bridge") {
    return Refuse(path, fmt::format("veth {}: its host end {} is not a port of a bridge",
                                    inside.name, port.host->name));
  }
  WAFT_ASSIGN(const BridgeTraits traits, ReadBridge(host, bridge->index));
  if (traits.filters_vlans) {
    return Refuse(path, fmt::format("veth {}: bridge {} filters VLANs", inside.name, bridge->name));
  }
  v1::NetworkLink link;
  link.set_name(inside.name);
  link.set_mac(inside.mac.data(), inside.mac.size());
  link.set_mtu(inside.mtu);
  link.set_host_bridge(bridge->name);
  link.set_host_name(port.host->name);
  return link;
}

base::Status CaptureAddress(const std::filesystem::path& path, rtnl_addr* address,
                            std::map<int, v1::NetworkLink>& links) {
  if (rtnl_addr_get_scope(address) != RT_SCOPE_UNIVERSE) return {};
  const auto local = ToIpAddress(rtnl_addr_get_local(address));
  if (!local) return {};
  const auto link = links.find(rtnl_addr_get_ifindex(address));
  if (link == links.end()) {
    return Refuse(path, fmt::format("address {} on lo", local->ToString()));
  }
  const auto peer = ToIpAddress(rtnl_addr_get_peer(address));
  if (peer && *peer != *local) {
    return Refuse(path, fmt::format("address {} is point-to-point", local->ToString()));
  }
  v1::NetworkAddress* captured = link->second.add_addresses();
  captured->set_address(local->ToString());
  captured->set_prefix_length(rtnl_addr_get_prefixlen(address));
  if (const auto broadcast = ToIpAddress(rtnl_addr_get_broadcast(address)); broadcast) {
    captured->set_broadcast(broadcast->ToString());
  }
  return {};
}

bool HasMetrics(rtnl_route* route) {
  unsigned value = 0;
  for (int metric = 1; metric <= RTAX_MAX; ++metric) {
    if (rtnl_route_get_metric(route, metric, &value) == 0) return true;
  }
  return false;
}

// What NetworkRoute has no field for.
bool IsPlain(rtnl_route* route) {
  if (rtnl_route_get_type(route) != RTN_UNICAST || rtnl_route_get_nnexthops(route) != 1) {
    return false;
  }
  rtnl_nexthop* hop = rtnl_route_nexthop_n(route, 0);
  return rtnl_route_get_tos(route) == 0 && rtnl_route_get_src(route) == nullptr &&
         rtnl_route_nh_get_via(hop) == nullptr && !HasMetrics(route);
}

base::Status CaptureRoute(const std::filesystem::path& path, rtnl_route* route,
                          const std::map<int, v1::NetworkLink>& links,
                          v1::NetworkIdentity& identity) {
  const int protocol = rtnl_route_get_protocol(route);
  if (protocol == RTPROT_KERNEL || protocol == RTPROT_RA || protocol == RTPROT_REDIRECT ||
      (rtnl_route_get_flags(route) & RTM_F_CLONED) != 0) {
    return {};
  }
  const nl_addr* destination = rtnl_route_get_dst(route);
  const auto network = ToIpAddress(destination);
  const std::string text =
      network ? fmt::format("{}/{}", network->ToString(), nl_addr_get_prefixlen(destination))
              : "default";
  const uint32_t table = rtnl_route_get_table(route);
  if (table != RT_TABLE_MAIN) {
    return Refuse(path, fmt::format("route {} is in routing table {}", text, table));
  }
  if (!IsPlain(route)) {
    return Refuse(path, fmt::format("route {} is not a plain unicast route", text));
  }
  rtnl_nexthop* hop = rtnl_route_nexthop_n(route, 0);
  const auto link = links.find(rtnl_route_nh_get_ifindex(hop));
  if (link == links.end()) return Refuse(path, fmt::format("route {} leads to lo", text));

  v1::NetworkRoute* captured = identity.add_routes();
  captured->set_destination(text);
  if (const auto gateway = ToIpAddress(rtnl_route_nh_get_gateway(hop)); gateway) {
    captured->set_gateway(gateway->ToString());
  }
  captured->set_interface(link->second.name());
  captured->set_metric(rtnl_route_get_priority(route));
  captured->set_table(table);
  captured->set_scope(rtnl_route_get_scope(route));
  captured->set_family(rtnl_route_get_family(route));
  if (const auto source = ToIpAddress(rtnl_route_get_pref_src(route)); source) {
    captured->set_preferred_source(source->ToString());
  }
  return {};
}

// The rules every namespace starts with (fib_default_rules_init(), net/ipv4/fib_rules.c; IPv6 has
// the first two).
bool IsDefaultRule(rtnl_rule* rule) {
  const std::pair<uint32_t, uint32_t> place{rtnl_rule_get_prio(rule), rtnl_rule_get_table(rule)};
  const bool default_place = place == std::pair{0U, uint32_t{RT_TABLE_LOCAL}} ||
                             place == std::pair{32766U, uint32_t{RT_TABLE_MAIN}} ||
                             place == std::pair{32767U, uint32_t{RT_TABLE_DEFAULT}};
  return default_place && rtnl_rule_get_action(rule) == FR_ACT_TO_TBL &&
         rtnl_rule_get_src(rule) == nullptr && rtnl_rule_get_dst(rule) == nullptr &&
         rtnl_rule_get_iif(rule) == nullptr && rtnl_rule_get_oif(rule) == nullptr &&
         rtnl_rule_get_mark(rule) == 0;
}

base::Status CheckRules(const std::filesystem::path& path, Netlink& netlink, int family) {
  nl_cache* filled = nullptr;
  if (const int error = rtnl_rule_alloc_cache(netlink.get(), family, &filled); error < 0) {
    return FailNetlink("list policy rules", error);
  }
  const CachePtr cache(filled);
  for (rtnl_rule* rule : Objects<rtnl_rule>(cache)) {
    if (rtnl_rule_get_family(rule) == family && !IsDefaultRule(rule)) {
      return Refuse(path, fmt::format("policy rule {}", rtnl_rule_get_prio(rule)));
    }
  }
  return {};
}

base::Status CaptureRoutes(const std::filesystem::path& path, Netlink& netlink, int family,
                           const std::map<int, v1::NetworkLink>& links,
                           v1::NetworkIdentity& identity) {
  nl_cache* filled = nullptr;
  if (const int error = rtnl_route_alloc_cache(netlink.get(), family, 0, &filled); error < 0) {
    return FailNetlink("list routes", error);
  }
  const CachePtr cache(filled);
  for (rtnl_route* route : Objects<rtnl_route>(cache)) {
    if (rtnl_route_get_family(route) != family) continue;
    WAFT_TRY(CaptureRoute(path, route, links, identity));
  }
  return {};
}

bool IsLinkName(std::string_view name) {
  return !name.empty() && name.size() < IFNAMSIZ && name != "." && name != ".." && name != "lo" &&
         std::ranges::all_of(
             name,
             [](unsigned char c) {
               return std::isgraph(c) != 0 && c != '/' && c != ':' && c != '%';
             });
}

std::unexpected<base::Error> Bad(std::string what) {
  return base::Fail(base::ErrorCode::kBadArgument, "network identity: " + std::move(what));
}

base::Status ValidatePath(const std::filesystem::path& path) {
  if (!path.is_absolute() || path.lexically_normal() != path || !path.has_filename()) {
    return Bad(fmt::format("{} is not an absolute, plain path", path.string()));
  }
  for (const char* kernel : {"/proc/", "/sys/"}) {
    if (path.string().starts_with(kernel)) {
      return Bad(
          fmt::format("{} cannot be made on another host: give the workload a named "
                      "namespace such as /run/netns/NAME",
                      path.string()));
    }
  }
  return {};
}

base::Status ValidateLink(const v1::NetworkLink& link) {
  if (!IsLinkName(link.name())) return Bad(fmt::format("'{}' is no link name", link.name()));
  const auto mac = MacFromBytes(link.mac());
  if (!mac || ((*mac)[0] & 1) != 0) return Bad(fmt::format("link {} has no MAC", link.name()));
  if (link.mtu() < kMinMtu || link.mtu() > kMaxMtu) {
    return Bad(fmt::format("link {}: an MTU of {}", link.name(), link.mtu()));
  }
  if (!IsLinkName(link.host_bridge())) {
    return Bad(fmt::format("link {}: '{}' is no bridge name", link.name(), link.host_bridge()));
  }
  if (!link.host_name().empty() && !IsLinkName(link.host_name())) {
    return Bad(fmt::format("link {}: '{}' is no link name", link.name(), link.host_name()));
  }
  for (const v1::NetworkAddress& address : link.addresses()) {
    const auto ip = ParseIp(address.address());
    const auto broadcast = ParseIp(address.broadcast());
    if (!ip || address.prefix_length() > ip->size() * 8 ||
        (!address.broadcast().empty() && (!broadcast || broadcast->family != ip->family))) {
      return Bad(fmt::format("link {}: address '{}/{}'", link.name(), address.address(),
                             std::min(address.prefix_length(), kMaxAddressBits + 1)));
    }
  }
  return {};
}

base::Status ValidateRoute(const v1::NetworkRoute& route, const std::set<std::string>& links) {
  const auto fits = [&](const std::string& text) {
    const auto ip = ParseIp(text);
    return text.empty() || (ip && ip->family == static_cast<int>(route.family()));
  };
  const auto destination = ParsePrefix(route.destination());
  const bool reaches =
      route.destination() == "default" ||
      (destination && destination->address.family == static_cast<int>(route.family()));
  if ((route.family() != AF_INET && route.family() != AF_INET6) || !reaches ||
      !fits(route.gateway()) || !fits(route.preferred_source()) ||
      !links.contains(route.interface()) || route.scope() > RT_SCOPE_NOWHERE ||
      (route.table() != 0 && route.table() != RT_TABLE_MAIN)) {
    return Bad(fmt::format("route '{}' via '{}' on '{}'", route.destination(), route.gateway(),
                           route.interface()));
  }
  return {};
}

// Probes one bridge's segment for the IPv4 addresses of `links`, all of them ports of that bridge.
class ArpProbe {
 public:
  static base::Result<ArpProbe> Open(const LinkInfo& bridge,
                                     const std::vector<const v1::NetworkLink*>& links) {
    ArpProbe probe;
    probe.fd_.reset(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!probe.fd_) return base::FailErrno("packet socket");
    const int on = 1;
    ::setsockopt(probe.fd_.get(), SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on));
    const sockaddr_ll place{
        .sll_family = AF_PACKET, .sll_protocol = htons(ETHERTYPE_ARP), .sll_ifindex = bridge.index};
    if (::bind(probe.fd_.get(), reinterpret_cast<const sockaddr*>(&place), sizeof(place)) != 0) {
      return base::FailErrno("bind a packet socket to bridge " + bridge.name);
    }
    probe.bridge_ = bridge;
    for (const v1::NetworkLink* link : links) {
      for (const v1::NetworkAddress& address : link->addresses()) {
        const auto ip = ParseIp(address.address());
        if (ip && ip->family == AF_INET) {
          probe.wanted_.emplace_back(*ip, MacFromBytes(link->mac()).value_or(Mac{}));
        }
      }
    }
    return probe;
  }

  int fd() const { return fd_.get(); }

  base::Status Send() const {
    const IpAddress nobody{.family = AF_INET};
    for (const auto& [address, own_mac] : wanted_) {
      const Frame frame = ArpRequest(bridge_.mac, nobody, address);
      if (::send(fd(), frame.data(), frame.size(), 0) < 0) {
        return base::FailErrno("probe the segment of bridge " + bridge_.name);
      }
    }
    return {};
  }

  // Takes what has arrived; each conflict is told once.
  void Receive(std::set<std::string>& conflicts) const {
    std::array<uint8_t, 256> buffer;
    for (;;) {
      const ssize_t got = ::recv(fd(), buffer.data(), buffer.size(), 0);
      if (got < 0) return;
      const auto sender = ParseArp(std::span(buffer).first(got));
      if (!sender) continue;
      for (const auto& [address, own_mac] : wanted_) {
        if (sender->address != address || sender->mac == own_mac) continue;
        conflicts.insert(fmt::format("address {} is in use by {} on the segment of bridge {}",
                                     address.ToString(), ToString(sender->mac), bridge_.name));
      }
    }
  }

 private:
  base::UniqueFd fd_;
  LinkInfo bridge_;
  std::vector<std::pair<IpAddress, Mac>> wanted_;
};

base::Status ProbeSegments(const std::vector<ArpProbe>& probes, std::set<std::string>& conflicts) {
  std::vector<pollfd> wait;
  wait.reserve(probes.size());
  for (const ArpProbe& probe : probes) wait.push_back({probe.fd(), POLLIN, 0});
  const base::Deadline end = base::Deadline::After(kProbeWindow);
  while (!end.Passed()) {
    for (const ArpProbe& probe : probes) WAFT_TRY(probe.Send());
    const base::Deadline again = base::Deadline::After(kProbeInterval);
    while (!again.Passed() && !end.Passed()) {
      ::poll(wait.data(), wait.size(), std::min(again.LeftMs(), end.LeftMs()));
      for (const ArpProbe& probe : probes) probe.Receive(conflicts);
    }
  }
  return {};
}

base::Status CheckLocalAddresses(const v1::NetworkIdentity& identity, Netlink& host,
                                 const std::vector<LinkInfo>& host_links,
                                 std::vector<std::string>& objections) {
  WAFT_ASSIGN(const CachePtr addresses, ReadAddresses(host));
  for (rtnl_addr* local : Objects<rtnl_addr>(addresses)) {
    const auto ip = ToIpAddress(rtnl_addr_get_local(local));
    if (!ip) continue;
    for (const v1::NetworkLink& link : identity.links()) {
      for (const v1::NetworkAddress& wanted : link.addresses()) {
        if (ParseIp(wanted.address()) != ip) continue;
        const LinkInfo* owner = FindLink(host_links, rtnl_addr_get_ifindex(local));
        objections.push_back(fmt::format("address {} is this host's own, on {}", ip->ToString(),
                                         owner == nullptr ? "?" : owner->name));
      }
    }
  }
  return {};
}

base::Status AddObjections(const v1::NetworkIdentity& identity,
                           std::vector<std::string>& objections) {
  WAFT_TRY(Validate(identity));
  std::error_code error;
  if (std::filesystem::symlink_status(identity.path(), error).type() !=
      std::filesystem::file_type::not_found) {
    objections.push_back(fmt::format("{} is already there", identity.path()));
  }
  WAFT_ASSIGN(Netlink host, Netlink::Open());
  WAFT_ASSIGN(const std::vector<LinkInfo> host_links, ReadLinks(host));
  std::map<std::string, std::vector<const v1::NetworkLink*>> by_bridge;
  for (const v1::NetworkLink& link : identity.links()) {
    by_bridge[link.host_bridge()].push_back(&link);
  }
  std::vector<ArpProbe> probes;
  for (const auto& [name, links] : by_bridge) {
    const LinkInfo* bridge = FindLink(host_links, name);
    if (bridge == nullptr || bridge->kind != "bridge") {
      objections.push_back(fmt::format("there is no bridge {}", name));
    } else if ((bridge->flags & IFF_UP) == 0) {
      objections.push_back(fmt::format("bridge {} is down", name));
    } else {
      WAFT_ASSIGN(const BridgeTraits traits, ReadBridge(host, bridge->index));
      if (traits.spanning_tree) {
        objections.push_back(
            fmt::format("bridge {} runs spanning tree, which keeps a new port "
                        "silent for twice its forward delay",
                        name));
      }
      if (traits.filters_vlans) {
        objections.push_back(fmt::format("bridge {} filters VLANs, which are not carried", name));
      }
      WAFT_ASSIGN(ArpProbe probe, ArpProbe::Open(*bridge, links));
      probes.push_back(std::move(probe));
    }
  }
  WAFT_TRY(CheckLocalAddresses(identity, host, host_links, objections));
  std::set<std::string> conflicts;
  if (!probes.empty()) WAFT_TRY(ProbeSegments(probes, conflicts));
  objections.insert(objections.end(), conflicts.begin(), conflicts.end());
  return {};
}

bool IsNamespaceFile(const std::string& path) {
  struct statfs info{};
  return ::statfs(path.c_str(), &info) == 0 && info.f_type == NSFS_MAGIC;
}

base::Status DeleteHostEnds(const std::string& path) {
  WAFT_ASSIGN(Netlink host, Netlink::Open());
  WAFT_ASSIGN(Namespace ns, Namespace::Enter(path));
  WAFT_ASSIGN(const std::vector<Port> ports, FindPorts(host, ns));
  for (const Port& port : ports) {
    if (!port.host) continue;
    const Message message(RTM_DELLINK, 0, ifinfomsg{.ifi_index = port.host->index});
    const base::Status deleted = host.Transact("delete " + port.host->name, message);
    if (!deleted && deleted.error().error_number() != ENODEV) return deleted;
  }
  return {};
}

}  // namespace

base::Result<v1::NetworkIdentity> Capture(const std::filesystem::path& path) {
  v1::NetworkIdentity identity;
  if (path.empty()) return identity;
  identity.set_path(path.string());
  WAFT_ASSIGN(Netlink host, Netlink::Open());
  WAFT_ASSIGN(Namespace ns, Namespace::Enter(path));
  WAFT_ASSIGN(const std::vector<Port> ports, FindPorts(host, ns));
  WAFT_ASSIGN(const std::vector<LinkInfo> host_links, ReadLinks(host));

  std::map<int, v1::NetworkLink> links;
  for (const Port& port : ports) {
    const LinkInfo& inside = port.inside;
    const bool up = (inside.flags & IFF_UP) != 0;
    if ((inside.flags & IFF_LOOPBACK) != 0 ||
        (!up && std::ranges::find(kFallbackTunnels, inside.name) != kFallbackTunnels.end())) {
      continue;
    }
    WAFT_ASSIGN(links[inside.index], CaptureLink(path, host, port, host_links));
  }
  WAFT_ASSIGN(const CachePtr addresses, ReadAddresses(ns.route()));
  for (rtnl_addr* address : Objects<rtnl_addr>(addresses)) {
    WAFT_TRY(CaptureAddress(path, address, links));
  }
  for (const int family : {AF_INET, AF_INET6}) {
    WAFT_TRY(CheckRules(path, ns.route(), family));
    WAFT_TRY(CaptureRoutes(path, ns.route(), family, links, identity));
  }
  WAFT_ASSIGN(const bool nftables, ns.HasNftables());
  if (nftables) return Refuse(path, "nftables rules");
  for (auto& [index, link] : links) *identity.add_links() = std::move(link);
  return identity;
}

base::Status Validate(const v1::NetworkIdentity& identity) {
  if (identity.path().empty()) return {};
  WAFT_TRY(ValidatePath(identity.path()));
  std::set<std::string> links;
  for (const v1::NetworkLink& link : identity.links()) {
    WAFT_TRY(ValidateLink(link));
    if (!links.insert(link.name()).second) return Bad("two links are named " + link.name());
  }
  for (const v1::NetworkRoute& route : identity.routes()) WAFT_TRY(ValidateRoute(route, links));
  return {};
}

std::vector<std::string> Objections(const v1::NetworkIdentity& identity) {
  std::vector<std::string> objections;
  if (identity.path().empty()) return objections;
  const base::Status asked = AddObjections(identity, objections);
  if (!asked) objections.push_back(asked.error().message());
  return objections;
}

base::Status Destroy(const v1::NetworkIdentity& identity) {
  const std::string& path = identity.path();
  if (path.empty()) return {};
  WAFT_TRY(ValidatePath(path));
  if (IsNamespaceFile(path)) {
    WAFT_TRY(DeleteHostEnds(path));
    // Several, if others have bound it here too (mount propagation).
    while (IsNamespaceFile(path)) {
      if (::umount2(path.c_str(), MNT_DETACH) != 0) return base::FailErrno("unmount " + path);
    }
  }
  // What is left is the empty file that ours was bound on.
  std::error_code error;
  if (const auto bytes = std::filesystem::file_size(path, error); !error && bytes != 0) {
    return base::Fail(base::ErrorCode::kBadArgument, path + " is not a network namespace");
  }
  if (::unlink(path.c_str()) != 0 && errno != ENOENT && errno != ENOTDIR) {
    return base::FailErrno("remove " + path);
  }
  return {};
}

}  // namespace waft::netns
