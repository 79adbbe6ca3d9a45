#pragma once

#include <filesystem>
#include <optional>
#include <utility>
#include <vector>

#include "api/network.pb.h"
#include "base/error.h"
#include "base/unique_fd.h"
#include "netns/netlink.h"

namespace waft::netns {

// Where waft-netns-helper is. Without it: beside this program. For tests; call before any thread.
void SetHelperPath(std::filesystem::path path);

// Sockets inside a network namespace that this process is not in. Owns the sockets and a reference
// to the namespace, not the file it is bound at. Not thread-safe. Enter() and Create() spawn the
// helper and wait for it, a few milliseconds; from any thread.
class Namespace {
 public:
  static base::Result<Namespace> Enter(const std::filesystem::path& path);
  // A new one, bound at `path`, where nothing may be yet (EEXIST in the error). Loopback is down.
  static base::Result<Namespace> Create(const std::filesystem::path& path);

  Netlink& route() { return route_; }
  int fd() const { return fd_.get(); }

  // Whether it holds any nftables table; iptables-nft's are among them.
  base::Result<bool> HasNftables();

  // Writes a whole Ethernet frame to the interface with this index in the namespace.
  base::Status SendFrame(int index, const Frame& frame) const;

 private:
  static base::Result<Namespace> Ask(const char* verb, const std::filesystem::path& path);
  Namespace(base::UniqueFd fd, Netlink route, base::UniqueFd packet)
      : fd_(std::move(fd)), route_(std::move(route)), packet_(std::move(packet)) {}
  base::UniqueFd fd_;
  Netlink route_;
  base::UniqueFd packet_;
  std::optional<Netlink> netfilter_;
};

// A link of the workload's namespace and, where it is a veth with its other end in our namespace,
// that host end.
struct Port {
  LinkInfo inside;
  std::optional<LinkInfo> host;
};

// Every link in `ns`, loopback included. `host` is a socket in our own namespace.
base::Result<std::vector<Port>> FindPorts(Netlink& host, Namespace& ns);

// Asks again, in the names of `link`'s addresses, for each neighbour on it that the kernel has
// asked for in vain: a request lost at a shut gate is otherwise repeated only a second later, and
// the packets waiting for its answer with it.
base::Status SolicitUnresolved(Namespace& ns, const v1::NetworkLink& link, int index);

}  // namespace waft::netns
