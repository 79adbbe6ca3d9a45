// Loaded into CRIU by LD_PRELOAD (criu/stub.cc). Links libc only.
//
// CRIU reads the limits of each task with syscall(SYS_prlimit64, pid, resource, NULL, &old)
// (criu/parasite-syscall.c, criu/cr-dump.c). Without CAP_SYS_RESOURCE the kernel refuses that for a
// task of another uid, and CRIU then refuses to dump it. /proc/PID/limits holds the same figures
// and needs no more than CRIU has, so a refused read is answered from there. A write is never
// touched.
#include "criu/preload.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/types.h>

struct LimitName {
  int resource;
  const char* name;
};

// The names in fs/proc/base.c, lnames[].
static const struct LimitName kLimitNames[] = {
    {RLIMIT_CPU, "Max cpu time"},
    {RLIMIT_FSIZE, "Max file size"},
    {RLIMIT_DATA, "Max data size"},
    {RLIMIT_STACK, "Max stack size"},
    {RLIMIT_CORE, "Max core file size"},
    {RLIMIT_RSS, "Max resident set"},
    {RLIMIT_NPROC, "Max processes"},
    {RLIMIT_NOFILE, "Max open files"},
    {RLIMIT_MEMLOCK, "Max locked memory"},
    {RLIMIT_AS, "Max address space"},
    {RLIMIT_LOCKS, "Max file locks"},
    {RLIMIT_SIGPENDING, "Max pending signals"},
    {RLIMIT_MSGQUEUE, "Max msgqueue size"},
    {RLIMIT_NICE, "Max nice priority"},
    {RLIMIT_RTPRIO, "Max realtime priority"},
    {RLIMIT_RTTIME, "Max realtime timeout"},
};

static rlim_t ParseLimit(const char* word) {
  return strcmp(word, "unlimited") == 0 ? RLIM_INFINITY : (rlim_t)strtoull(word, NULL, 10);
}

int waft_read_limit(pid_t pid, int resource, struct rlimit* limit) {
  const char* name = NULL;
  for (size_t i = 0; i < sizeof(kLimitNames) / sizeof(kLimitNames[0]); ++i) {
    if (kLimitNames[i].resource == resource) name = kLimitNames[i].name;
  }
  if (name == NULL) return -1;
  char path[64];
  snprintf(path, sizeof(path), "/proc/%d/limits", (int)pid);
  FILE* file = fopen(path, "re");
  if (file == NULL) return -1;
  int found = -1;
  char line[256];
  while (found != 0 && fgets(line, sizeof(line), file) != NULL) {
    char soft[32];
    char hard[32];
    const size_t length = strlen(name);
    if (strncmp(line, name, length) == 0 && line[length] == ' ' &&
        sscanf(line + length, " %31s %31s", soft, hard) == 2) {
      limit->rlim_cur = ParseLimit(soft);
      limit->rlim_max = ParseLimit(hard);
      found = 0;
    }
  }
  fclose(file);
  return found;
}

typedef long (*SyscallFunction)(long number, ...);

long syscall(long number, ...) {
  static SyscallFunction next;
  if (next == NULL) next = (SyscallFunction)dlsym(RTLD_NEXT, "syscall");

  va_list arguments;
  long a[6];
  va_start(arguments, number);
  for (int i = 0; i < 6; ++i) a[i] = va_arg(arguments, long);
  va_end(arguments);

  const long result = next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
  if (number != SYS_prlimit64 || result != -1 || errno != EPERM) return result;
  if (a[2] != 0 || a[3] == 0) return result;
  // NOLINTNEXTLINE(performance-no-int-to-ptr): a system call takes numbers
  if (waft_read_limit((pid_t)a[0], (int)a[1], (struct rlimit*)a[3]) == 0) return 0;
  errno = EPERM;
  return -1;
}
