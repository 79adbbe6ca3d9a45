#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "api/peer.pb.h"
#include "base/error.h"

namespace waft::restore {

// This host, as a peer needs to know it.
base::Result<v1::HostFacts> OwnFacts();

// Each of these returns why a workload cannot come here, one sentence for each reason; none if it
// can.

// Kernel, architecture, CRIU and CPU of a source against ours.
std::vector<std::string> FactObjections(const v1::HostFacts& source);
// Every file must be here, of the same kind, mode and content.
std::vector<std::string> FileObjections(const v1::WorkloadSpec& workload);
// The image set and the restored tasks must both fit, for a while at the same time. No image set
// may be larger than `image_room_bytes`.
std::vector<std::string> RoomObjections(const v1::WorkloadSpec& workload,
                                        uint64_t image_room_bytes);

}  // namespace waft::restore
