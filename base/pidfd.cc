#include "base/pidfd.h"

#include <fmt/format.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace waft::base {

Result<UniqueFd> OpenPidfd(pid_t pid) {
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd) return FailErrno(fmt::format("pidfd_open {}", pid));
  return pidfd;
}

Result<UniqueFd> DuplicateFd(int pidfd, int fd) {
  UniqueFd ours(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd, fd, 0)));
  if (!ours) return FailErrno(fmt::format("pidfd_getfd {}", fd));
  return ours;
}

Status SignalPidfd(int pidfd, int signal) {
  if (::syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0) != 0 && errno != ESRCH) {
    return FailErrno("pidfd_send_signal");
  }
  return {};
}

}  // namespace waft::base
