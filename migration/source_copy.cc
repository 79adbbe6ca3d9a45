#include "migration/source_copy.h"

#include <chrono>
#include <utility>

#include "base/log.h"
#include "netns/identity.h"

namespace waft::migration {
namespace {

constexpr std::chrono::seconds kFreezeTimeout{5};
constexpr std::chrono::seconds kKillTimeout{20};

}  // namespace

base::Result<SourceCopy> SourceCopy::Open(const engine::Runc& runc, std::string workload,
                                          base::Freezer freezer, v1::NetworkIdentity network) {
  SourceCopy copy(runc, std::move(workload), std::move(freezer), std::move(network));
  WAFT_ASSIGN(copy.gate_, netns::Gate::ForWorkload(copy.network_));
  return copy;
}

base::Status SourceCopy::Hold() {
  WAFT_TRY(freezer_.Freeze(kFreezeTimeout));
  return gate_->Cut();
}

base::Status SourceCopy::Resume() {
  const base::Status network = gate_->Restore();
  // A workload that runs without its network is better than one that does not run.
  WAFT_TRY(freezer_.Thaw());
  return network;
}

base::Status SourceCopy::Release() {
  WAFT_TRY(gate_->Cut());
  WAFT_TRY(freezer_.KillAll(kKillTimeout));
  WAFT_TRY(runc_->Delete(workload_));
  return netns::Destroy(network_);
}

}  // namespace waft::migration
