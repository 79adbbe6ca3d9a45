#pragma once

#include <sys/types.h>

#include "base/error.h"
#include "base/unique_fd.h"

// pidfds by their system calls: glibc 2.36 declares its wrappers without C linkage for C++.
namespace waft::base {

// pidfd_open(2). ESRCH in the error if there is no such process.
Result<UniqueFd> OpenPidfd(pid_t pid);

// pidfd_getfd(2): a duplicate, in our table, of descriptor `fd` of the process.
Result<UniqueFd> DuplicateFd(int pidfd, int fd);

// pidfd_send_signal(2); a process that is gone is not an error.
Status SignalPidfd(int pidfd, int signal);

}  // namespace waft::base
