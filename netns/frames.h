#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

// Addresses and the few Ethernet frames waft writes itself. Values and pure functions: any thread.
namespace waft::netns {

using Mac = std::array<uint8_t, 6>;
using Frame = std::vector<uint8_t>;

std::optional<Mac> MacFromBytes(std::string_view bytes);
std::string ToString(const Mac& mac);

// An IPv4 or IPv6 address in network byte order.
struct IpAddress {
  int family = 0;  // AF_INET or AF_INET6
  std::array<uint8_t, 16> bytes{};

  size_t size() const;  // 4 or 16
  std::string ToString() const;
  bool operator==(const IpAddress&) const = default;
};

std::optional<IpAddress> ParseIp(std::string_view text);
IpAddress IpFromBytes(int family, const void* bytes);

struct IpPrefix {
  IpAddress address;
  uint32_t length = 0;
};

// "10.1.0.0/16"; nothing if either half is not valid.
std::optional<IpPrefix> ParsePrefix(std::string_view text);

// A broadcast ARP request. With `sender` 0.0.0.0 it is a probe, with `sender` == `target` an
// announcement (RFC 5227). Both addresses are IPv4.
Frame ArpRequest(const Mac& mac, const IpAddress& sender, const IpAddress& target);

// An unsolicited neighbour advertisement to all nodes, override flag set (RFC 4861, 7.2.6).
Frame NeighbourAdvertisement(const Mac& mac, const IpAddress& address);

// A neighbour solicitation to the target's solicited-node group (RFC 4861, 7.2.2).
Frame NeighbourSolicitation(const Mac& mac, const IpAddress& sender, const IpAddress& target);

// Whom an Ethernet frame with an ARP packet claims to be from.
struct ArpSender {
  Mac mac{};
  IpAddress address;
};
std::optional<ArpSender> ParseArp(std::span<const uint8_t> frame);

}  // namespace waft::netns
