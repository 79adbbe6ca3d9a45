#pragma once

#include <memory>

#include "api/network.pb.h"
#include "base/error.h"

namespace waft::netns {

// A workload's network namespace at the destination, complete but with its gate shut: host ends are
// up and in no bridge, since a reachable stack without the workload's sockets answers RST.
//
// Owns the namespace, its bind mount and its host ends until Commit(); destroyed before that it
// removes them all. Not thread-safe. Prepare() and Adopt() spawn waft-netns-helper and take some
// milliseconds; Open() and Announce() exchange a few netlink messages and write a few frames.
// With an identity without a path everything is a no-op.
class PreparedNetwork {
 public:
  // Fails, with nothing left behind, if anything is at identity.path() or a bridge is missing. The
  // host end gets the identity's name for it if that is free, else one of the kernel's choice.
  static base::Result<PreparedNetwork> Prepare(const v1::NetworkIdentity& identity);

  // Takes over what another Prepare() built, in this process or one that is gone; open or not. It
  // counts as committed: Destroy() is the way to remove it.
  static base::Result<PreparedNetwork> Adopt(const v1::NetworkIdentity& identity);

  PreparedNetwork(PreparedNetwork&&) noexcept;
  PreparedNetwork& operator=(PreparedNetwork&&) noexcept;
  ~PreparedNetwork();

  // Makes the host ends ports of their bridges and announces every address. Doing it again is fine.
  base::Status Open();

  // One gratuitous ARP request per IPv4 address and one unsolicited neighbour advertisement per
  // IPv6 address, from inside. Repeat it some times over half a second against loss.
  base::Status Announce();

  // From now on the namespace outlives this object.
  void Commit();

 private:
  struct State;
  explicit PreparedNetwork(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;  // null: identity without a path, or moved from
};

}  // namespace waft::netns
