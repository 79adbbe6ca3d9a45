#pragma once

#include <filesystem>

#include "base/cgroup.h"
#include "base/error.h"
#include "base/process.h"

namespace waft::restore {

// Runs `restore` (a command that restores with CRIU's log in `work`/restore.log) under a relay and
// blocks until it has ended; it is never killed (fact 9). On success every task is restored and
// frozen in the freezer returned. After an error some tasks may be
// left, frozen: the caller removes them with the container.
base::Result<base::Freezer> RestoreFrozen(const base::Command& restore,
                                          const std::filesystem::path& work,
                                          const std::filesystem::path& programs);

// Lets the tasks of RestoreFrozen() run.
base::Status Resume(base::Freezer& freezer);

}  // namespace waft::restore
