"""The programs of tests/workloads in containers."""

import errno
import os
import shutil
from pathlib import Path

from lab import testbed
from lab.workload import Workload

DIRECTORY = Path(os.environ.get("WAFT_WORKLOADS_DIR", testbed.REPOSITORY / "build" / "tests"))

# What confined.cc may call: its own needs, and those of runc between its filter and exec.
ALLOWED = """
    accept4 arch_prctl bind brk capget capset chdir clone clone3 clock_gettime clock_nanosleep
    close dup3 epoll_create1 epoll_ctl epoll_pwait execve exit exit_group fcntl fork fstat
    fstatfs futex getdents64 getpid getppid getrandom getsockopt gettid getuid ioctl kill listen
    lseek madvise mmap mprotect munmap nanosleep newfstatat openat pipe2 poll ppoll prctl
    pread64 prlimit64 read readlinkat recvfrom restart_syscall rseq rt_sigaction rt_sigprocmask
    rt_sigreturn sched_getaffinity sched_yield sendto set_robust_list set_tid_address setsockopt
    sigaltstack socket statfs tgkill uname wait4 waitid write writev
""".split()
# No reason that a kernel has for refusing mkdir(), so it tells that the filter did.
REFUSED = errno.EADDRNOTAVAIL
SECCOMP = {
    "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": REFUSED,
    "syscalls": [{"names": ALLOWED, "action": "SCMP_ACT_ALLOW"},
                 {"names": ["ptrace"], "action": "SCMP_ACT_KILL_PROCESS"}],
}


class Program(Workload):
    """One of them, /NAME in its container; its port is line_client.PORT."""

    def __init__(self, name, address, *arguments, **options):
        super().__init__(name, address, [f"/{name}", *arguments], **options)

    def _prepare(self, programs, files, directories, config):
        # Where it was built may be below a directory that the container has a tmpfs for.
        super()._prepare(programs[1:], files, directories, config)
        shutil.copy2(DIRECTORY / self.name, self.path_on("a", self.name))
        self.copy_to_other_host()

    def system_calls(self, host):
        """The numbers of the system calls that its threads are in, "running" for the others."""
        script = f"cat /proc/{self.pid(host)}/task/*/syscall"
        lines = testbed.execute(host, "sh", "-c", script).stdout.splitlines()
        return [line.split()[0] for line in lines]


class Threads(Program):
    def __init__(self):
        super().__init__("threads", "10.77.0.53")


class Confined(Program):
    """uid 65534, no capabilities, no new privileges, a seccomp filter that denies by default."""

    def __init__(self):
        super().__init__("confined", "10.77.0.54", user=65534, capabilities=(), seccomp=SECCOMP)


class Tree(Program):
    FILE = "/data/pattern"

    def __init__(self):
        super().__init__("tree", "10.77.0.55", self.FILE, directories=["data"])
        self.path_on("a", self.FILE).write_bytes(pattern_bytes(0, 0, 1 << 20))
        self.copy_to_other_host()


class Ticker(Program):
    def __init__(self):
        super().__init__("ticker", "10.77.0.56")


def pattern_bytes(owner, generation, length):
    """PatternBytes() of tests/workloads/support.h."""
    mask = (1 << 64) - 1
    base = (owner * 0x9e3779b97f4a7c15 & mask) ^ (generation * 0xc2b2ae3d27d4eb4f & mask)
    words = []
    for index in range(length // 8):
        word = base ^ index
        word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9 & mask
        words.append((word ^ (word >> 31)).to_bytes(8, "little"))
    return b"".join(words)
