#include "netns/frames.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <net/ethernet.h>
#include <netinet/icmp6.h>
#include <netinet/if_ether.h>
#include <netinet/ip6.h>

#include <algorithm>
#include <charconv>
#include <cstring>

namespace waft::netns {
namespace {

constexpr Mac kBroadcast{0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
constexpr uint8_t kNeighbourHopLimit = 255;  // anything else is dropped as coming from off link

struct [[gnu::packed]] ArpFrame {
  ether_header ethernet;
  ether_arp arp;
};

// The advertisement and the solicitation have the same layout (RFC 4861, 4.3 and 4.4).
struct [[gnu::packed]] NeighbourFrame {
  ether_header ethernet;
  ip6_hdr ip;
  nd_neighbor_advert message;
  nd_opt_hdr option;
  Mac option_mac;
};

ether_header EthernetHeader(const Mac& to, const Mac& from, uint16_t type) {
  ether_header header{};
  std::copy(to.begin(), to.end(), header.ether_dhost);
  std::copy(from.begin(), from.end(), header.ether_shost);
  header.ether_type = htons(type);
  return header;
}

template <typename T>
Frame ToFrame(const T& layout) {
  Frame frame(sizeof(layout));
  std::memcpy(frame.data(), &layout, sizeof(layout));
  return frame;
}

void AddWords(uint32_t& sum, std::span<const uint8_t> bytes) {
  for (size_t i = 0; i + 1 < bytes.size(); i += 2) sum += bytes[i] << 8 | bytes[i + 1];
}

// RFC 4443, 2.3; the length is even.
uint16_t Icmp6Checksum(const ip6_hdr& ip, std::span<const uint8_t> payload) {
  uint32_t sum = payload.size() + IPPROTO_ICMPV6;
  AddWords(sum, {ip.ip6_src.s6_addr, sizeof(in6_addr)});
  AddWords(sum, {ip.ip6_dst.s6_addr, sizeof(in6_addr)});
  AddWords(sum, payload);
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return htons(static_cast<uint16_t>(~sum));
}

Frame NeighbourMessage(uint8_t type, uint32_t flags, const Mac& mac, const IpAddress& sender,
                       const IpAddress& group, const IpAddress& target) {
  NeighbourFrame layout{};
  // RFC 2464, 7: the group's last four bytes.
  const Mac group_mac{0x33,           0x33, group.bytes[12], group.bytes[13], group.bytes[14],
                      group.bytes[15]};
  layout.ethernet = EthernetHeader(group_mac, mac, ETHERTYPE_IPV6);
  constexpr size_t kPayloadBytes = sizeof(NeighbourFrame) - offsetof(NeighbourFrame, message);
  layout.ip.ip6_flow = htonl(6U << 28);
  layout.ip.ip6_plen = htons(kPayloadBytes);
  layout.ip.ip6_nxt = IPPROTO_ICMPV6;
  layout.ip.ip6_hlim = kNeighbourHopLimit;
  std::memcpy(&layout.ip.ip6_src, sender.bytes.data(), sizeof(in6_addr));
  std::memcpy(&layout.ip.ip6_dst, group.bytes.data(), sizeof(in6_addr));
  layout.message.nd_na_hdr.icmp6_type = type;
  layout.message.nd_na_hdr.icmp6_data32[0] = flags;
  std::memcpy(&layout.message.nd_na_target, target.bytes.data(), sizeof(in6_addr));
  layout.option.nd_opt_type =
      type == ND_NEIGHBOR_ADVERT ? ND_OPT_TARGET_LINKADDR : ND_OPT_SOURCE_LINKADDR;
  layout.option.nd_opt_len = 1;  // in units of 8 bytes
  layout.option_mac = mac;
  Frame frame = ToFrame(layout);
  layout.message.nd_na_hdr.icmp6_cksum =
      Icmp6Checksum(layout.ip, std::span(frame).subspan(offsetof(NeighbourFrame, message)));
  return ToFrame(layout);
}

}  // namespace

std::optional<Mac> MacFromBytes(std::string_view bytes) {
  Mac mac;
  if (bytes.size() != mac.size()) return std::nullopt;
  std::copy(bytes.begin(), bytes.end(), mac.begin());
  return mac;
}

std::string ToString(const Mac& mac) {
  return fmt::format("{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", mac[0], mac[1], mac[2], mac[3],
                     mac[4], mac[5]);
}

size_t IpAddress::size() const { return family == AF_INET ? sizeof(in_addr) : sizeof(in6_addr); }

std::string IpAddress::ToString() const {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (::inet_ntop(family, bytes.data(), text.data(), text.size()) == nullptr) return "?";
  return text.data();
}

std::optional<IpAddress> ParseIp(std::string_view text) {
  const std::string terminated(text);
  for (const int family : {AF_INET, AF_INET6}) {
    IpAddress address{.family = family};
    if (::inet_pton(family, terminated.c_str(), address.bytes.data()) == 1) return address;
  }
  return std::nullopt;
}

IpAddress IpFromBytes(int family, const void* bytes) {
  IpAddress address{.family = family};
  std::memcpy(address.bytes.data(), bytes, address.size());
  return address;
}

std::optional<IpPrefix> ParsePrefix(std::string_view text) {
  const size_t slash = text.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  const auto address = ParseIp(text.substr(0, slash));
  if (!address) return std::nullopt;
  IpPrefix prefix{.address = *address};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data() + slash + 1, end, prefix.length);
  if (error != std::errc() || stop != end || prefix.length > address->size() * 8) {
    return std::nullopt;
  }
  return prefix;
}

Frame ArpRequest(const Mac& mac, const IpAddress& sender, const IpAddress& target) {
  ArpFrame layout{};
  layout.ethernet = EthernetHeader(kBroadcast, mac, ETHERTYPE_ARP);
  layout.arp.ea_hdr.ar_hrd = htons(ARPHRD_ETHER);
  layout.arp.ea_hdr.ar_pro = htons(ETHERTYPE_IP);
  layout.arp.ea_hdr.ar_hln = sizeof(Mac);
  layout.arp.ea_hdr.ar_pln = sizeof(in_addr);
  layout.arp.ea_hdr.ar_op = htons(ARPOP_REQUEST);
  std::copy(mac.begin(), mac.end(), layout.arp.arp_sha);
  std::memcpy(layout.arp.arp_spa, sender.bytes.data(), sizeof(in_addr));
  std::memcpy(layout.arp.arp_tpa, target.bytes.data(), sizeof(in_addr));
  return ToFrame(layout);
}

Frame NeighbourAdvertisement(const Mac& mac, const IpAddress& address) {
  IpAddress all_nodes{.family = AF_INET6, .bytes = {0xff, 0x02}};
  all_nodes.bytes[15] = 1;
  return NeighbourMessage(ND_NEIGHBOR_ADVERT, ND_NA_FLAG_OVERRIDE, mac, address, all_nodes,
                          address);
}

Frame NeighbourSolicitation(const Mac& mac, const IpAddress& sender, const IpAddress& target) {
  IpAddress group{.family = AF_INET6, .bytes = {0xff, 0x02}};
  group.bytes[11] = 1;
  group.bytes[12] = 0xff;
  std::copy(target.bytes.begin() + 13, target.bytes.end(), group.bytes.begin() + 13);
  return NeighbourMessage(ND_NEIGHBOR_SOLICIT, 0, mac, sender, group, target);
}

std::optional<ArpSender> ParseArp(std::span<const uint8_t> frame) {
  ArpFrame layout;
  if (frame.size() < sizeof(layout)) return std::nullopt;
  std::memcpy(&layout, frame.data(), sizeof(layout));
  if (layout.ethernet.ether_type != htons(ETHERTYPE_ARP) ||
      layout.arp.ea_hdr.ar_pro != htons(ETHERTYPE_IP) || layout.arp.ea_hdr.ar_hln != sizeof(Mac) ||
      layout.arp.ea_hdr.ar_pln != sizeof(in_addr)) {
    return std::nullopt;
  }
  ArpSender sender{.address = IpFromBytes(AF_INET, layout.arp.arp_spa)};
  std::memcpy(sender.mac.data(), layout.arp.arp_sha, sender.mac.size());
  return sender;
}

}  // namespace waft::netns
