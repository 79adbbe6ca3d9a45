#pragma once

#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include "api/control.pb.h"
#include "api/report.pb.h"
#include "base/error.h"
#include "engine/runc.h"
#include "migration/claims.h"
#include "migration/journal.h"
#include "migration/peer.h"
#include "migration/settings.h"
#include "transfer/tls_context.h"

namespace waft::migration {

// What a caller is told while a migration runs. Called on the migration's thread.
struct SourceEvents {
  std::function<void(const v1::Progress&)> progress;
  // Once; with outcome IN_DOUBT it comes while the source still asks.
  std::function<void(const v1::Report&)> report;
};

// The source side of migrations: runs one after the caller's request, and finishes those that an
// earlier waftd left behind. Thread-safe: one thread per migration may be in Run() or Recover().
class Source {
 public:
  Source(const Settings& settings, const engine::Runc& runc, const transfer::TlsContext& tls,
         Claims& claims)
      : settings_(settings), runc_(runc), tls_(tls), claims_(claims) {}

  // Moves `workload` to `peer` and returns when that is settled, or when `stop` is asked for while
  // in doubt: then the workload stays frozen and the journal says so.
  void Run(const std::string& workload, Peer& peer, const SourceEvents& events,
           const std::stop_token& stop);

  // Brings a migration begun by an earlier waftd to its end: rolls it back if that was ours to
  // decide, otherwise asks `peer` until it answers or `stop`.
  base::Status Recover(Journal& journal, Peer& peer, const std::stop_token& stop);

 private:
  class Attempt;
  const Settings& settings_;
  const engine::Runc& runc_;
  const transfer::TlsContext& tls_;
  Claims& claims_;
};

}  // namespace waft::migration
