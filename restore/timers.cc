#include "restore/timers.h"

#include <fmt/format.h>
#include <linux/ioctl.h>
#include <linux/types.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>

#include <cstdint>
#include <cstdio>
#include <string>

#include "base/file.h"
#include "base/pidfd.h"
#include "base/proc.h"
#include "base/unique_fd.h"

#ifndef TFD_IOC_SET_TICKS
#define TFD_IOC_SET_TICKS _IOW('T', 0, __u64)  // linux/timerfd.h, which clashes with libc's
#endif

namespace waft::restore {
namespace {

// A timer as /proc/PID/fdinfo/FD shows it (fs/timerfd.c, timerfd_show).
struct Timer {
  uint64_t ticks = 0;  // expirations that nobody has read yet
  itimerspec time{};
};

base::Result<Timer> ReadTimer(pid_t pid, int fd) {
  const std::string path = fmt::format("/proc/{}/fdinfo/{}", pid, fd);
  WAFT_ASSIGN(const std::string info, base::ReadFile(path));
  Timer timer;
  const size_t at = info.find("ticks:");
  if (at == std::string::npos ||
      std::sscanf(info.c_str() + at,
                  "ticks: %lu settime flags: %*o it_value: (%ld, %ld) it_interval: (%ld, %ld)",
                  &timer.ticks, &timer.time.it_value.tv_sec, &timer.time.it_value.tv_nsec,
                  &timer.time.it_interval.tv_sec, &timer.time.it_interval.tv_nsec) != 5) {
    return base::Fail(base::ErrorCode::kUnsupported, fmt::format("{} shows no timer", path));
  }
  return timer;
}

bool IsZero(const timespec& time) { return time.tv_sec == 0 && time.tv_nsec == 0; }

base::Status Rearm(pid_t pid, int fd) {
  WAFT_ASSIGN(Timer timer, ReadTimer(pid, fd));
  if (timer.ticks == 0 || !IsZero(timer.time.it_value) || IsZero(timer.time.it_interval)) return {};
  WAFT_ASSIGN(const base::UniqueFd pidfd, base::OpenPidfd(pid));
  WAFT_ASSIGN(const base::UniqueFd ours, base::DuplicateFd(pidfd.get(), fd));
  timer.time.it_value = timer.time.it_interval;
  // Setting the time forgets the expirations.
  if (::timerfd_settime(ours.get(), 0, &timer.time, nullptr) != 0 ||
      ::ioctl(ours.get(), TFD_IOC_SET_TICKS, &timer.ticks) != 0) {
    return base::FailErrno(fmt::format("rearm timerfd {} of pid {}", fd, pid));
  }
  return {};
}

}  // namespace

base::Status RearmTimers(const std::vector<pid_t>& pids) {
  for (const pid_t pid : pids) {
    const base::Result<std::vector<base::FdInfo>> fds = base::ReadFds(pid);
    if (!fds) {
      if (base::IsGone(fds.error())) continue;
      return std::unexpected(fds.error());
    }
    for (const base::FdInfo& fd : *fds) {
      if (fd.target == "anon_inode:[timerfd]") WAFT_TRY(Rearm(pid, fd.fd));
    }
  }
  return {};
}

}  // namespace waft::restore
