#pragma once

#include <memory>

#include "api/network.pb.h"
#include "base/error.h"

namespace waft::netns {

// The source's switch on a workload's packets: its host ends, down or up. The kernel holds the
// position, not this object, so a cut outlives both it and the process.
//
// Owns netlink sockets, opened beforehand so that Cut() is one message per link. Not thread-safe.
// ForWorkload() spawns waft-netns-helper; Cut() and Restore() wait for the kernel only. For a
// workload without a namespace path everything is a no-op.
class Gate {
 public:
  static base::Result<Gate> ForWorkload(const v1::NetworkIdentity& identity);

  Gate(Gate&&) noexcept;
  Gate& operator=(Gate&&) noexcept;
  ~Gate();

  // On return no frame passes in either direction. The links inside lose their carrier and keep
  // addresses and routes. If it fails some links may be cut: cut again, or restore.
  base::Status Cut();

  // Undoes Cut(). Nothing need be announced: the MAC never showed anywhere else.
  base::Status Restore();

  // Whether every link is cut; found out at first, then the outcome of Cut() and Restore().
  bool IsCut() const;

 private:
  struct State;
  explicit Gate(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace waft::netns
