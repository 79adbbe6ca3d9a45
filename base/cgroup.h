#pragma once

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace waft::base {

// The freezer of one cgroup, v1 (`freezer.state`) or v2 (`cgroup.freeze`). It holds a path, no
// state: destroying it changes nothing, and a frozen group outlives the process that froze it. That
// is the point: what has not been committed stays frozen whoever dies.
class Freezer {
 public:
  // The cgroup of `pid`: in the v1 freezer hierarchy where one is mounted, else in v2.
  static Result<Freezer> ForProcess(pid_t pid);
  // For a cgroup whose directory is known (journalled).
  static Freezer AtPath(std::filesystem::path directory) { return Freezer(std::move(directory)); }

  const std::filesystem::path& directory() const { return directory_; }

  // Returns once every task is frozen; thaws again and fails after `timeout`.
  Status Freeze(std::chrono::milliseconds timeout);
  // Asks without waiting: tasks stopped by a tracer freeze when it lets go of them.
  Status StartFreeze();
  Status Thaw();
  Result<bool> IsFrozen() const;
  bool Exists() const;

  // Thread-group leaders in the cgroup and below it.
  Result<std::vector<pid_t>> Processes() const;

  // SIGKILL to all, then thaw (a frozen v1 task dies only when thawed); returns when none is left.
  Status KillAll(std::chrono::milliseconds timeout);

 private:
  explicit Freezer(std::filesystem::path directory) : directory_(std::move(directory)) {}
  bool IsV2() const;
  std::filesystem::path directory_;
};

// Where `pid` is in the hierarchy of `controller` ("memory", "" for v2), as a directory.
Result<std::filesystem::path> CgroupDirectory(pid_t pid, std::string_view controller);

}  // namespace waft::base
