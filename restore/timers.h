#pragma once

#include <sys/types.h>

#include <vector>

#include "base/error.h"

namespace waft::restore {

// Starts the periodic timerfds of the frozen tasks `pids` that CRIU restored as stopped.
//
// A periodic timerfd that has expired and was not read yet has no time left: the kernel rearms it
// on read (fs/timerfd.c). CRIU gives it the expirations back but arms it with that zero, which
// disarms (criu/pie/restorer.c, timerfd_arm), and it would never expire again. Nothing need be
// wrong at the source for that: a frozen task cannot read, so every period shorter than the dump is
// affected. Thread-safe; doesn't block.
base::Status RearmTimers(const std::vector<pid_t>& pids);

}  // namespace waft::restore
