#include "base/cgroup.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <map>
#include <sstream>
#include <string>
#include <system_error>
#include <thread>

#include "base/clock.h"
#include "base/file.h"
#include "base/proc.h"

namespace waft::base {
namespace fs = std::filesystem;
namespace {

constexpr std::chrono::milliseconds kPoll{1};

// "rw,cpu,cpuacct" holds "cpu".
bool ListHolds(std::string_view list, std::string_view item) {
  while (!list.empty()) {
    const size_t comma = list.find(',');
    if (list.substr(0, comma) == item) return true;
    if (comma == std::string_view::npos) return false;
    list.remove_prefix(comma + 1);
  }
  return false;
}

bool EventIs(std::string_view events, std::string_view line) {
  return events.starts_with(line) || events.find("\n" + std::string(line)) != std::string::npos;
}

// `directory` and every group below it.
std::vector<fs::path> GroupsFrom(const fs::path& directory) {
  std::vector<fs::path> groups{directory};
  std::error_code error;
  for (fs::recursive_directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->is_directory(error)) groups.push_back(entry->path());
  }
  return groups;
}

// v2 calls a group frozen as soon as all groups below it are, whatever its own tasks do, until one
// of those freezes (cgroup_propagate_frozen() in kernel/cgroup/freezer.c). So the tasks of groups
// that have groups below are looked at one by one. Freezing wakes every task, so one that is off
// the CPU again and sleeps interruptibly, or is stopped, is in the freezer. proc_pid_syscall(5) has
// the word for that: a task may call itself sleeping on its way to finding out that it must not.
bool InnerTasksStopped(const fs::path& directory) {
  const std::vector<fs::path> groups = GroupsFrom(directory);
  for (const fs::path& group : groups) {
    const bool inner = std::any_of(groups.begin(), groups.end(), [&](const fs::path& other) {
      return other.parent_path() == group;
    });
    if (!inner) continue;
    std::istringstream threads(ReadFile(group / "cgroup.threads").value_or(""));
    for (pid_t thread = 0; threads >> thread;) {
      const Result<ProcStatus> status = ReadProcStatus(thread);
      if (status && (status->state == 'R' || status->state == 'D')) return false;
      const Result<std::string> syscall = ReadFile(fmt::format("/proc/{}/syscall", thread));
      if (syscall && *syscall == "running\n") return false;
    }
  }
  return true;
}

}  // namespace

Result<fs::path> CgroupDirectory(pid_t pid, std::string_view controller) {
  WAFT_ASSIGN(const auto cgroups, ReadCgroups(pid));
  WAFT_ASSIGN(const auto mounts, ReadMountInfo(getpid()));
  const auto at = std::find_if(cgroups.begin(), cgroups.end(), [&](const auto& entry) {
    return controller.empty() ? entry.first.empty() : ListHolds(entry.first, controller);
  });
  const auto mount = std::find_if(mounts.begin(), mounts.end(), [&](const MountInfo& candidate) {
    return controller.empty()
               ? candidate.fs_type == "cgroup2"
               : candidate.fs_type == "cgroup" && ListHolds(candidate.super_options, controller);
  });
  if (at == cgroups.end() || mount == mounts.end()) {
    return Fail(ErrorCode::kUnsupported, fmt::format("no cgroup hierarchy with {} is mounted",
                                                     controller.empty() ? "v2" : controller));
  }
  const fs::path below = fs::path(at->second).lexically_relative(mount->root);
  return below == "." ? mount->mount_point : mount->mount_point / below;
}

Result<Freezer> Freezer::ForProcess(pid_t pid) {
  Result<fs::path> directory = CgroupDirectory(pid, "freezer");
  if (!directory) directory = CgroupDirectory(pid, "");
  if (!directory) return std::unexpected(directory.error());
  return Freezer(*directory);
}

bool Freezer::Exists() const { return ::access(directory_.c_str(), F_OK) == 0; }

bool Freezer::IsV2() const { return ::access((directory_ / "cgroup.freeze").c_str(), F_OK) == 0; }

Result<bool> Freezer::IsFrozen() const {
  if (IsV2()) {
    WAFT_ASSIGN(const std::string events, ReadFile(directory_ / "cgroup.events"));
    return EventIs(events, "frozen 1") && InnerTasksStopped(directory_);
  }
  WAFT_ASSIGN(const std::string state, ReadFile(directory_ / "freezer.state"));
  return state == "FROZEN\n";
}

Status Freezer::StartFreeze() {
  return IsV2() ? WriteControlFile(directory_ / "cgroup.freeze", "1")
                : WriteControlFile(directory_ / "freezer.state", "FROZEN");
}

Status Freezer::Thaw() {
  return IsV2() ? WriteControlFile(directory_ / "cgroup.freeze", "0")
                : WriteControlFile(directory_ / "freezer.state", "THAWED");
}

Status Freezer::Freeze(std::chrono::milliseconds timeout) {
  const Deadline deadline = Deadline::After(timeout);
  for (;;) {
    // v1 can miss a task that forks while it freezes and then stays at FREEZING: asking again
    // helps.
    WAFT_TRY(StartFreeze());
    WAFT_ASSIGN(const bool frozen, IsFrozen());
    if (frozen) return {};
    if (deadline.Passed()) break;
    std::this_thread::sleep_for(kPoll);
  }
  WAFT_TRY(Thaw());
  return Fail(ErrorCode::kRetry,
              fmt::format("{} did not freeze within {} ms (a task in uninterruptible sleep?)",
                          directory_.string(), timeout.count()));
}

Result<std::vector<pid_t>> Freezer::Processes() const {
  std::vector<pid_t> pids;
  for (const fs::path& group : GroupsFrom(directory_)) {
    const Result<std::string> text = ReadFile(group / "cgroup.procs");
    if (!text) {
      // A group below that was removed since it was listed had no process any more.
      if (group != directory_ && ::access(group.c_str(), F_OK) != 0) continue;
      return std::unexpected(text.error());
    }
    std::istringstream in(*text);
    for (pid_t pid = 0; in >> pid;) pids.push_back(pid);
  }
  return pids;
}

Status Freezer::KillAll(std::chrono::milliseconds timeout) {
  const Deadline deadline = Deadline::After(timeout);
  for (;;) {
    if (!Exists()) return {};
    const Result<std::vector<pid_t>> pids = Processes();
    if (!pids) return Exists() ? Status(std::unexpected(pids.error())) : Status();
    if (pids->empty()) return {};
    if (deadline.Passed()) {
      return Fail(ErrorCode::kFatal,
                  fmt::format("{} tasks in {} survive SIGKILL for {} ms", pids->size(),
                              directory_.string(), timeout.count()));
    }
    // 0 stands for a task outside our pid namespace; kill(0) would be our own group.
    for (const pid_t pid : *pids) {
      if (pid > 0) ::kill(pid, SIGKILL);
    }
    WAFT_TRY(Thaw());
    std::this_thread::sleep_for(kPoll);
  }
}

}  // namespace waft::base
