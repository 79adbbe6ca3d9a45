#pragma once

#include <sys/resource.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

// Reads one RLIMIT_* of a task from /proc/PID/limits. 0, or -1 if it is not to be had.
// NOLINTNEXTLINE(readability-identifier-naming): a C name
int waft_read_limit(pid_t pid, int resource, struct rlimit* limit);

#ifdef __cplusplus
}
#endif
