#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "api/network.pb.h"
#include "base/error.h"

// A workload's network identity: reading it where it runs, asking whether a host can take it over,
// removing it. "Host" is the network namespace this process is in; the workload's own is bound at
// identity.path(). An empty path is a workload without one: every function is then a no-op.
//
// Functions from any thread; they keep no state. All spawn waft-netns-helper at most once and wait
// for the kernel; only Objections() waits for the network.
namespace waft::netns {

// Links but lo with their addresses and bridge, and the main table's routes. Left out is what the
// kernel or a router advertisement makes again: its own routes, fe80::/64 addresses. What is there
// and cannot be carried is refused by name (kUnsupported): links that are no veth, a veth without a
// host end that is a port of a bridge of ours, addresses on lo, policy rules, other routing tables,
// routes of other kinds, nftables, a bridge that filters VLANs.
base::Result<v1::NetworkIdentity> Capture(const std::filesystem::path& path);

// kBadArgument unless the identity, which may come from a peer, is one Prepare() can try to build.
base::Status Validate(const v1::NetworkIdentity& identity);

// Why this host cannot take the identity over; empty if it can. Asks the segment behind the bridges
// for the IPv4 addresses (RFC 5227 probes, 200 ms): an answer from the workload's own MAC is fine,
// it still runs at the source.
std::vector<std::string> Objections(const v1::NetworkIdentity& identity);

// Removes host ends and the bound namespace; nothing there is not an error. The host ends go first,
// and with them the links inside: gone on return, also while some process still holds the
// namespace.
base::Status Destroy(const v1::NetworkIdentity& identity);

}  // namespace waft::netns
