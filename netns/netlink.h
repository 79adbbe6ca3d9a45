#pragma once

#include <netlink/addr.h>
#include <netlink/cache.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "netns/frames.h"

// netns's own view of rtnetlink(7); other parts include identity.h, prepared_network.h and gate.h.
namespace waft::netns {

template <auto kFree>
struct Freer {
  void operator()(auto* object) const { kFree(object); }
};
using CachePtr = std::unique_ptr<nl_cache, Freer<nl_cache_free>>;

// A request being put together. What does not fit is noticed when it is sent.
class Message {
 public:
  template <typename Header>
  Message(int type, int flags, const Header& header) : Message(type, flags) {
    Append(&header, sizeof(header));
  }
  Message& Put(int attribute, const void* data, size_t len_bytes);
  Message& PutU32(int attribute, uint32_t value) { return Put(attribute, &value, sizeof(value)); }
  Message& PutString(int attribute, const std::string& text) {
    return Put(attribute, text.c_str(), text.size() + 1);
  }
  Message& PutIp(int attribute, const IpAddress& address) {
    return Put(attribute, address.bytes.data(), address.size());
  }
  // Attributes that `fill` adds, and the header it may Append() first, go inside `attribute`.
  Message& Nest(int attribute, const std::function<void()>& fill);
  Message& Append(const void* data, size_t len_bytes);

  bool complete() const { return complete_; }
  nl_msg* get() const { return message_.get(); }

 private:
  Message(int type, int flags);
  std::unique_ptr<nl_msg, Freer<nlmsg_free>> message_;
  bool complete_ = true;
};

// One netlink socket. It acts in the network namespace it was opened in, whoever holds it now. Not
// thread-safe; every call waits for the kernel's answer (and rtnl_lock), nothing else.
class Netlink {
 public:
  static base::Result<Netlink> Open();  // NETLINK_ROUTE in the caller's namespace
  static base::Result<Netlink> FromFd(base::UniqueFd fd, int protocol);

  // Sends `message` and waits for its acknowledgement, or the end of its dump; each message of the
  // answer goes to `on_answer`. The error carries the kernel's errno.
  base::Status Transact(std::string_view what, const Message& message,
                        const std::function<void(nlmsghdr*)>& on_answer = {});
  nl_sock* get() const { return socket_.get(); }

 private:
  explicit Netlink(nl_sock* socket) : socket_(socket) {}
  std::unique_ptr<nl_sock, Freer<nl_socket_free>> socket_;
};

// For libnl's own error numbers.
std::unexpected<base::Error> FailNetlink(std::string_view what, int nl_error);

// A link, as far as waft looks at it. Index numbers mean something only in their namespace.
struct LinkInfo {
  int index = 0;
  std::string name;
  std::string kind;  // "veth", "bridge"; empty for hardware
  Mac mac{};
  uint32_t mtu = 0;
  unsigned flags = 0;    // IFF_*
  int peer_index = 0;    // IFLA_LINK: for a veth its other end
  int peer_nsid = -1;    // of the namespace the other end is in; -1: in this one
  int master_index = 0;  // the bridge it is a port of
  bool carries = false;  // operational state is up: frames pass
};
base::Result<std::vector<LinkInfo>> ReadLinks(Netlink& netlink);
const LinkInfo* FindLink(const std::vector<LinkInfo>& links, std::string_view name);
const LinkInfo* FindLink(const std::vector<LinkInfo>& links, int index);

// What a new port of a bridge has to expect.
struct BridgeTraits {
  bool spanning_tree = false;  // it forwards only after twice a delay of at least 2 s
  bool filters_vlans = false;  // a port's VLANs matter
};
base::Result<BridgeTraits> ReadBridge(Netlink& netlink, int index);

// Makes the kernel act on a carrier change now. Its link watch otherwise takes up to a second where
// both ends of a veth happen to have the same index (linkwatch_urgent_event(),
// net/core/link_watch.c; rtnl_getlink() runs it since Linux 6.8).
base::Status SyncCarrier(Netlink& netlink, int index);

base::Status SetLinkFlags(Netlink& netlink, int index, unsigned flags, unsigned mask);

// Nothing for a null pointer or another family's address.
std::optional<IpAddress> ToIpAddress(const nl_addr* address);

// As `netlink`'s namespace numbers the one behind `namespace_fd`; -1 if it has no number for it.
base::Result<int> NamespaceNumber(Netlink& netlink, int namespace_fd);

}  // namespace waft::netns
