#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "api/peer.pb.h"
#include "base/error.h"
#include "engine/runc.h"
#include "migration/claims.h"
#include "migration/journal.h"
#include "migration/settings.h"
#include "transfer/image_listener.h"

namespace waft::migration {

class Incoming;

// The destination side of migrations: says whether a workload may come, takes it, decides, and
// answers for what was decided. Thread-safe.
class Destination {
 public:
  Destination(const Settings& settings, const engine::Runc& runc, transfer::ImageListener& listener,
              Claims& claims)
      : settings_(settings), runc_(runc), listener_(listener), claims_(claims) {}

  // Everything against it; nothing is touched. Takes as long as hashing the workload's files does.
  v1::PreflightReply Preflight(const v1::PreflightRequest& request);

  // Makes room: journal, image tmpfs, network namespace, an expected data stream.
  base::Result<std::unique_ptr<Incoming>> Prepare(const v1::Prepare& request, v1::Prepared* reply);

  // What was decided. An id never heard of is decided now: aborted, for good.
  base::Result<v1::OutcomeReply> Outcome(const std::string& migration_id);

  // Brings what an earlier waftd left to its end: resumed if it was committed, removed if not. Call
  // before Outcome() can be asked.
  base::Status Recover(Journal& journal);

 private:
  friend class Incoming;
  const Settings& settings_;
  const engine::Runc& runc_;
  transfer::ImageListener& listener_;
  Claims& claims_;
  std::mutex mutex_;
  std::set<std::string> undecided_;  // ids of Incomings that live
};

// One workload on its way in. Destroying it before Complete() aborts the migration. One thread.
class Incoming {
 public:
  ~Incoming();
  Incoming(const Incoming&) = delete;
  Incoming& operator=(const Incoming&) = delete;

  // After the source's Handover. Restores, decides and resumes; `on_ready` and `on_committed` are
  // called as that happens, the latter with the workload running. Returns when this host is tidy.
  // An error means it is aborted and journalled so.
  base::Status Complete(const v1::Handover& handover, const std::function<void()>& on_ready,
                        const std::function<void(const v1::Committed&)>& on_committed);

 private:
  friend class Destination;
  struct Parts;
  Incoming(Destination& destination, std::unique_ptr<Parts> parts);
  base::Result<v1::Committed> RestoreAndCommit(const v1::Handover& handover,
                                               const std::function<void()>& on_ready);
  void Abort(const std::string& reason);

  Destination& destination_;
  std::unique_ptr<Parts> parts_;
};

}  // namespace waft::migration
