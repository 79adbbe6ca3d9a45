#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>

#include "base/cgroup.h"
#include "base/error.h"
#include "base/process.h"
#include "criu/relay.h"

namespace waft::checkpoint {

struct DumpResult {
  uint32_t files = 0;
  uint64_t bytes = 0;
  uint64_t pages = 0;  // in the page images
};

// Runs `checkpoint` (a command that dumps into `images` with CRIU's log in `work`/dump.log) under
// `relay` and blocks until it has ended; it is never killed (fact 10). The tasks in `freezer` are
// frozen before and after. An error carries CRIU's own words; the tasks are frozen then too, unless
// CRIU let them run, in which case they must be taken as running.
//
// A CRIU that has not ended after `timeout` may wait for good for a task that cannot be seized
// while it is frozen (stopped by SIGSTOP, say). Then the tasks are thawed, which lets it end, and
// the dump has failed.
base::Result<DumpResult> Dump(const base::Command& checkpoint, const criu::Relay& relay,
                              base::Freezer& freezer, const std::filesystem::path& images,
                              const std::filesystem::path& work, std::chrono::milliseconds timeout);

}  // namespace waft::checkpoint
