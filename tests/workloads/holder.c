// holder THING[=PATH]... -- PROGRAM [ARGUMENT...]: becomes PROGRAM, with a child that holds the
// things named. For tests of what a workload may hold and what keeps it from being moved.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

static void Require(int good, const char* what) {
  if (good) return;
  perror(what);
  exit(1);
}

static void HoldMptcpListener(void) {
  const struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(7000)};
  const int fd = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP);
  Require(fd >= 0 && bind(fd, (const struct sockaddr*)&address, sizeof(address)) == 0 &&
              listen(fd, 1) == 0,
          "MPTCP listener");
}

static void HoldUnixListener(const char* path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  Require(fd >= 0 && bind(fd, (const struct sockaddr*)&address, sizeof(address)) == 0 &&
              listen(fd, 1) == 0,
          path);
}

// An open file whose name is gone while another name of it is left.
static void HoldRenamedFile(const char* path) {
  char other[512];
  snprintf(other, sizeof(other), "%s.other", path);
  Require(open(path, O_RDWR | O_CREAT | O_EXCL, 0600) >= 0 && link(path, other) == 0 &&
              unlink(path) == 0,
          path);
}

static void HoldTracee(void) {
  const pid_t child = fork();
  if (child == 0) {
    for (;;) pause();
  }
  Require(child > 0 && ptrace(PTRACE_SEIZE, child, NULL, NULL) == 0, "PTRACE_SEIZE");
}

static void Hold(const char* thing) {
  const char* equals = strchr(thing, '=');
  const char* path = equals == NULL ? "" : equals + 1;
  if (strcmp(thing, "io_uring") == 0) {
    struct io_uring_params parameters = {0};
    Require(syscall(SYS_io_uring_setup, 4, &parameters) >= 0, thing);
  } else if (strcmp(thing, "userfaultfd") == 0) {
    Require(syscall(SYS_userfaultfd, O_CLOEXEC | 1 /* UFFD_USER_MODE_ONLY */) >= 0, thing);
  } else if (strcmp(thing, "vsock") == 0) {
    Require(socket(AF_VSOCK, SOCK_STREAM, 0) >= 0, thing);
  } else if (strcmp(thing, "mptcp") == 0) {
    HoldMptcpListener();
  } else if (strcmp(thing, "tracee") == 0) {
    HoldTracee();
  } else if (strncmp(thing, "unix=", 5) == 0) {
    HoldUnixListener(path);
  } else if (strncmp(thing, "renamed=", 8) == 0) {
    HoldRenamedFile(path);
  } else {
    fprintf(stderr, "holder: what is %s?\n", thing);
    exit(2);
  }
}

int main(int argc, char** argv) {
  int program = 1;
  while (program < argc && strcmp(argv[program], "--") != 0) ++program;
  if (++program >= argc) return 2;
  int ready[2];
  Require(pipe2(ready, O_CLOEXEC) == 0, "pipe");
  const pid_t child = fork();
  Require(child >= 0, "fork");
  if (child == 0) {
    close(ready[0]);
    for (int i = 1; i < program - 1; ++i) Hold(argv[i]);
    Require(write(ready[1], "", 1) == 1, "write");
    close(ready[1]);
    for (;;) pause();
  }
  close(ready[1]);
  char byte;
  if (read(ready[0], &byte, 1) != 1) return 1;  // the child could not hold one of them
  execv(argv[program], argv + program);
  perror(argv[program]);
  return 1;
}
