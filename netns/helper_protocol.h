#pragma once

#include <array>
#include <cstdint>

// Between namespace.cc and waft-netns-helper: one message on a SOCK_SEQPACKET socket.
namespace waft::netns {

constexpr int kHelperSocketFd = 3;  // in the helper

// On success with descriptors attached in this order: the namespace, a NETLINK_ROUTE socket, an
// AF_PACKET socket and, where the kernel has it, a NETLINK_NETFILTER socket.
constexpr size_t kHelperMinFds = 3;
constexpr size_t kHelperMaxFds = 4;

struct HelperReply {
  int32_t error_number = 0;
  std::array<char, 124> what{};  // what failed, zero-terminated
};

}  // namespace waft::netns
