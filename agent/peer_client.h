#pragma once

#include <memory>
#include <string>

#include "agent/credentials.h"
#include "base/error.h"
#include "migration/peer.h"

namespace waft::agent {

constexpr int kDefaultPeerPort = 7420;

// Another host's waftd over gRPC with mutual TLS. `target` is HOST or HOST:PORT; HOST is looked up
// now and must be in the peer's certificate. No connection is made before the first call.
base::Result<std::unique_ptr<migration::Peer>> ConnectPeer(const std::string& target,
                                                           const Credentials& credentials);

}  // namespace waft::agent
