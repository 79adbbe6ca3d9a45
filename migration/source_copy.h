#pragma once

#include <optional>
#include <string>

#include "api/network.pb.h"
#include "base/cgroup.h"
#include "base/error.h"
#include "engine/runc.h"
#include "netns/gate.h"

namespace waft::migration {

// The source's copy of a workload from the freeze on. It is one of three: running, held (frozen,
// its link cut) or released (gone). Destroying the object changes nothing: who may do which is the
// state machine's to say.
class SourceCopy {
 public:
  // For a workload that runs, before the freeze: opens all that the window of downtime needs.
  static base::Result<SourceCopy> Open(const engine::Runc& runc, std::string workload,
                                       base::Freezer freezer, v1::NetworkIdentity network);

  base::Freezer& freezer() { return freezer_; }

  // Frozen first, then cut: nothing it said before the freeze is lost.
  base::Status Hold();
  // Running again, reachable again.
  base::Status Resume();
  // Gone from this host: tasks, container, cgroup, network namespace. The link is cut before the
  // first task dies and stays so, since a dying task's sockets say goodbye for connections that
  // live on elsewhere (fact 6). Can be repeated.
  base::Status Release();

 private:
  SourceCopy(const engine::Runc& runc, std::string workload, base::Freezer freezer,
             v1::NetworkIdentity network)
      : runc_(&runc),
        workload_(std::move(workload)),
        freezer_(std::move(freezer)),
        network_(std::move(network)) {}

  const engine::Runc* runc_;
  std::string workload_;
  base::Freezer freezer_;
  v1::NetworkIdentity network_;
  std::optional<netns::Gate> gate_;  // none once its namespace is gone
};

}  // namespace waft::migration
