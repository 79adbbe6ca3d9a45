#pragma once

#include <functional>
#include <memory>
#include <string>

#include "api/peer.pb.h"
#include "base/error.h"

namespace waft::migration {

// One migration's conversation with its destination. While Handover() has not been called,
// destroying the session aborts the migration there.
class PeerSession {
 public:
  virtual ~PeerSession() = default;
  virtual base::Result<v1::Prepared> Prepare(const v1::Prepare& request) = 0;
  // Blocks until the destination has decided: `committed` or `aborted` is set in the reply. An
  // error says nothing of what it decides: the source is in doubt.
  virtual base::Result<v1::SessionReply> Handover(const v1::Handover& request,
                                                  const std::function<void()>& on_ready) = 0;
};

// Another host's waftd. Calls block, with a time limit of their own.
class Peer {
 public:
  virtual ~Peer() = default;
  virtual const std::string& name() const = 0;     // HOST or HOST:PORT, as the caller wrote it
  virtual const std::string& host() const = 0;     // HOST alone, as its certificate says
  virtual const std::string& address() const = 0;  // the IP address that is now
  virtual base::Result<v1::PingReply> Ping() = 0;
  virtual base::Result<v1::PreflightReply> Preflight(const v1::PreflightRequest& request) = 0;
  virtual base::Result<std::unique_ptr<PeerSession>> OpenSession() = 0;
  virtual base::Result<v1::OutcomeReply> Outcome(const std::string& migration_id) = 0;
};

}  // namespace waft::migration
