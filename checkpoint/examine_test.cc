#include "checkpoint/examine.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/unique_fd.h"

namespace waft::checkpoint {
namespace {

namespace fs = std::filesystem;
using base::UniqueFd;
using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint64_t kMib = 1 << 20;

TEST(DescriptorRefusalTest, WhatCriuDumpsPasses) {
  for (const char* target :
       {"/etc/passwd", "socket:[123]", "pipe:[7]", "/dev/null", "/memfd:x (deleted)", "",
        "anon_inode:[eventfd]", "anon_inode:[eventpoll]", "anon_inode:[signalfd]",
        "anon_inode:[timerfd]", "anon_inode:inotify", "anon_inode:[fanotify]",
        "anon_inode:[pidfd]"}) {
    EXPECT_EQ(DescriptorRefusal(target), "") << target;
  }
}

TEST(DescriptorRefusalTest, WhatItDoesNotIsNamed) {
  EXPECT_EQ(DescriptorRefusal("anon_inode:[io_uring]"),
            "io_uring, which CRIU cannot dump: run it with io_uring switched off");
  EXPECT_THAT(DescriptorRefusal("anon_inode:[userfaultfd]"), HasSubstr("still being filled"));
  EXPECT_THAT(DescriptorRefusal("anon_inode:[perf_event]"), HasSubstr("profiler"));
  for (const char* target : {"anon_inode:bpf-prog", "anon_inode:bpf-map", "anon_inode:kvm-vm",
                             "anon_inode:[landlock-ruleset]", "anon_inode:seccomp notify",
                             "anon_inode:", "anon_inode:[", "anon_inode:[]"}) {
    EXPECT_THAT(DescriptorRefusal(target), HasSubstr("cannot dump")) << target;
  }
}

struct SocketCase {
  int domain;
  int type;
  int protocol;
  const char* refusal;  // a part of it; empty: none
};

class SocketRefusalTest : public testing::TestWithParam<SocketCase> {};

TEST_P(SocketRefusalTest, IsAsInTheTable) {
  const SocketCase& row = GetParam();
  const std::string refusal = SocketRefusal(row.domain, row.type, row.protocol);
  if (*row.refusal == '\0') {
    EXPECT_EQ(refusal, "");
  } else {
    EXPECT_THAT(refusal, AllOf(HasSubstr(row.refusal), HasSubstr("cannot dump")));
  }
}

constexpr int kMptcp = 262;

INSTANTIATE_TEST_SUITE_P(
    Table, SocketRefusalTest,
    testing::Values(SocketCase{AF_UNIX, SOCK_STREAM, 0, ""}, SocketCase{AF_UNIX, SOCK_DGRAM, 0, ""},
                    SocketCase{AF_NETLINK, SOCK_RAW, 0, ""}, SocketCase{AF_PACKET, SOCK_RAW, 3, ""},
                    SocketCase{AF_INET, SOCK_STREAM, IPPROTO_TCP, ""},
                    SocketCase{AF_INET6, SOCK_STREAM, IPPROTO_TCP, ""},
                    SocketCase{AF_INET, SOCK_DGRAM, IPPROTO_UDP, ""},
                    SocketCase{AF_INET6, SOCK_DGRAM, IPPROTO_UDPLITE, ""},
                    SocketCase{AF_INET, SOCK_RAW, IPPROTO_ICMP, ""},
                    SocketCase{AF_INET, SOCK_DGRAM, IPPROTO_ICMP, "protocol 1"},
                    SocketCase{AF_INET, SOCK_STREAM, kMptcp, "GODEBUG=multipathtcp=0"},
                    SocketCase{AF_INET6, SOCK_STREAM, kMptcp, "MPTCP"},
                    SocketCase{AF_INET, SOCK_STREAM, IPPROTO_SCTP, "SCTP"},
                    SocketCase{AF_INET, SOCK_SEQPACKET, IPPROTO_SCTP, "SCTP"},
                    SocketCase{AF_VSOCK, SOCK_STREAM, 0, "AF_VSOCK"},
                    SocketCase{AF_ALG, SOCK_SEQPACKET, 0, "AF_ALG"},
                    SocketCase{AF_XDP, SOCK_RAW, 0, "AF_XDP"},
                    SocketCase{AF_CAN, SOCK_RAW, 1, "AF_CAN"},
                    SocketCase{AF_BLUETOOTH, SOCK_RAW, 0, "address family 31"}));

// A real task to look at: a child that keeps no descriptor of ours, does what the test says,
// reports and waits.
class ExamineTest : public testing::Test {
 protected:
  ExamineTest() {
    std::string name = (fs::temp_directory_path() / "waft-examine-XXXXXX").string();
    directory_ = fs::canonical(::mkdtemp(name.data()));
  }
  ~ExamineTest() override {
    for (const pid_t pid : children_) End(pid);
    EXPECT_TRUE(base::RemoveTree(directory_));
  }

  // `work` runs in the child and says whether it could do what it had to; nullopt if it could not.
  std::optional<pid_t> Start(const std::function<bool()>& work) {
    std::array<int, 2> ready{};
    EXPECT_EQ(::pipe2(ready.data(), O_CLOEXEC), 0);
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int report = ::dup3(ready[1], 1000, O_CLOEXEC);
      ::syscall(SYS_close_range, 0, 999, 0);
      ::syscall(SYS_close_range, 1001, ~0U, 0);
      const bool done = work();
      if (::write(report, done ? "y" : "n", 1) != 1) ::_exit(1);
      ::close(report);
      for (;;) ::pause();
    }
    ::close(ready[1]);
    char answer = 'n';
    EXPECT_EQ(::read(ready[0], &answer, 1), 1) << "the child died";
    ::close(ready[0]);
    children_.push_back(pid);
    if (answer != 'y') return std::nullopt;
    return pid;
  }

  void End(pid_t pid) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }

  Examination Look(pid_t pid, const HostPaths& paths = {.rootfs = "/"}) {
    auto result = Examine(pid, {pid}, paths);
    EXPECT_TRUE(result) << result.error().message();
    return result.value_or(Examination{});
  }

  fs::path Write(const std::string& name, const std::string& text, mode_t mode = 0640) const {
    const fs::path path = directory_ / name;
    fs::create_directories(path.parent_path());
    std::ofstream(path) << text;
    EXPECT_EQ(::chmod(path.c_str(), mode), 0);
    return path;
  }

  static const v1::FileFact* Find(const Examination& found, const fs::path& path) {
    const auto at = std::find_if(found.files.begin(), found.files.end(),
                                 [&](const v1::FileFact& fact) { return fact.path() == path; });
    return at == found.files.end() ? nullptr : &*at;
  }

  fs::path directory_;
  std::vector<pid_t> children_;
};

TEST_F(ExamineTest, APlainTaskIsNotRefused) {
  const auto pid = Start([] { return ::chdir("/") == 0; });
  ASSERT_TRUE(pid);
  const Examination found = Look(*pid);
  EXPECT_THAT(found.refusals, IsEmpty());
  EXPECT_EQ(found.tasks, 1U);
  EXPECT_GT(found.memory_bytes, 0U);
  EXPECT_GT(found.image_bytes, found.memory_bytes);
  // Its program is mapped, so it is needed there.
  EXPECT_NE(Find(found, fs::read_symlink("/proc/self/exe")), nullptr);
}

TEST_F(ExamineTest, OpenFilesComeWithContentAndMode) {
  const fs::path file = Write("data.txt", "abc", 0640);
  const fs::path mapped = Write("mapped.bin", std::string(4096, 'm'), 0600);
  fs::create_directory(directory_ / "cwd");
  const auto pid = Start([&] {
    const int fd = ::open(mapped.c_str(), O_RDONLY);
    const bool is_mapped =
        ::mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE, fd, 0) != MAP_FAILED && ::close(fd) == 0;
    return is_mapped && ::open(file.c_str(), O_RDWR) >= 0 && ::open("/dev/null", O_RDWR) >= 0 &&
           ::chdir((directory_ / "cwd").c_str()) == 0;
  });
  ASSERT_TRUE(pid);
  const Examination found = Look(*pid);
  EXPECT_THAT(found.refusals, IsEmpty());

  const v1::FileFact* fact = Find(found, file);
  ASSERT_NE(fact, nullptr);
  // sha256 of "abc": FIPS 180-2, B.1.
  EXPECT_EQ(fact->sha256(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(fact->mode(), static_cast<uint32_t>(S_IFREG | 0640));
  ASSERT_NE(Find(found, mapped), nullptr) << "mapped, not open";
  EXPECT_EQ(Find(found, mapped)->mode(), static_cast<uint32_t>(S_IFREG | 0600));
  const v1::FileFact* cwd = Find(found, directory_ / "cwd");
  ASSERT_NE(cwd, nullptr);
  EXPECT_EQ(cwd->sha256(), "") << "a directory";
  EXPECT_TRUE(S_ISDIR(cwd->mode()));
  EXPECT_EQ(Find(found, "/dev/null"), nullptr) << "CRIU makes devices anew";
}

TEST_F(ExamineTest, ALargeRemovedFileIsRefusedASmallOneIsNot) {
  const auto with_removed = [&](uint64_t bytes) {
    const fs::path path = Write("gone.dat", "x");
    const auto pid = Start([&] {
      return ::open(path.c_str(), O_RDWR) >= 0 &&
             ::truncate(path.c_str(), static_cast<off_t>(bytes)) == 0 &&
             ::unlink(path.c_str()) == 0;
    });
    return pid ? Look(*pid).refusals : std::vector<std::string>{"no child"};
  };
  EXPECT_THAT(with_removed(kMib), IsEmpty()) << "CRIU takes up to --ghost-limit, 1 MiB";
  EXPECT_THAT(with_removed(kMib + 1),
              ElementsAre(AllOf(HasSubstr("gone.dat"), HasSubstr("removed file"),
                                HasSubstr("1048577 bytes"))));
}

TEST_F(ExamineTest, AFileThatWasReplacedByAnotherNameIsFoundMissing) {
  const fs::path path = Write("moved/file", "x");
  const auto pid = Start([&] { return ::open(path.c_str(), O_RDONLY) >= 0; });
  ASSERT_TRUE(pid);
  const Examination found = Look(*pid, {.rootfs = directory_ / "not-the-rootfs"});
  EXPECT_THAT(found.refusals, Contains(HasSubstr("cannot be found under that path")));
}

TEST_F(ExamineTest, AFileFromOutsideItsMountsIsRefused) {
  const fs::path outside = Write("outside.log", "x");
  const fs::path inside = Write("inside.log", "x");
  const auto pid = Start([&] {
    return ::open(outside.c_str(), O_RDWR) >= 0 && ::unshare(CLONE_NEWNS) == 0 &&
           ::open(inside.c_str(), O_RDWR) >= 0;
  });
  if (!pid) GTEST_SKIP() << "a mount namespace needs CAP_SYS_ADMIN";
  const Examination found = Look(*pid);
  EXPECT_THAT(found.refusals, ElementsAre(AllOf(HasSubstr("descriptor 0"), HasSubstr("outside.log"),
                                                HasSubstr("outside its own mounts"))));
  EXPECT_EQ(Find(found, outside), nullptr);
  EXPECT_NE(Find(found, inside), nullptr);
}

TEST_F(ExamineTest, PathsAreTranslatedToTheHosts) {
  // A bind mount and a tmpfs, seen by the child alone.
  const fs::path on_host = Write("volume/data", "volume");
  const fs::path hidden = Write("mnt/data", "hidden by the mount");
  fs::create_directory(directory_ / "tmp");
  const auto bare = Start([] { return true; });
  ASSERT_TRUE(bare);
  const auto pid = Start([&] {
    return ::unshare(CLONE_NEWNS) == 0 &&
           ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
           ::mount((directory_ / "volume").c_str(), (directory_ / "mnt").c_str(), nullptr, MS_BIND,
                   nullptr) == 0 &&
           ::mount("test", (directory_ / "tmp").c_str(), "tmpfs", 0, "size=8m") == 0 &&
           ::open((directory_ / "mnt/data").c_str(), O_RDONLY) >= 0 &&
           ::open((directory_ / "tmp/own").c_str(), O_RDWR | O_CREAT, 0600) >= 0 &&
           ::ftruncate(1, 4 * kMib) == 0 && ::fallocate(1, 0, 0, 4 * kMib) == 0;
  });
  if (!pid) GTEST_SKIP() << "mounts need CAP_SYS_ADMIN";
  const Examination found =
      Look(*pid, {.rootfs = "/", .binds = {{directory_ / "mnt", directory_ / "volume"}}});
  EXPECT_THAT(found.refusals, IsEmpty());
  EXPECT_NE(Find(found, on_host), nullptr);
  EXPECT_NE(Find(found, directory_ / "volume"), nullptr) << "what is bound is needed there too";
  EXPECT_EQ(Find(found, hidden), nullptr);
  // CRIU carries a tmpfs and what is on it.
  EXPECT_EQ(Find(found, directory_ / "tmp/own"), nullptr);
  const Examination without = Look(*bare);
  EXPECT_GE(found.image_bytes - found.memory_bytes,
            without.image_bytes - without.memory_bytes + 4 * kMib - kMib / 2);
}

// Compared are children of one moment, before we look at the first: they hold what we held then,
// which with a sanitizer is much.
TEST_F(ExamineTest, TheMemoryEstimateGrowsWithWhatIsTouched) {
  const auto touching = [&](int flags) {
    return Start([=] {
      // Twice as much is mapped as is touched.
      void* space =
          ::mmap(nullptr, 64 * kMib, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
      if (space == MAP_FAILED) return false;
      ::madvise(space, 64 * kMib, MADV_NOHUGEPAGE);
      std::fill_n(static_cast<volatile char*>(space), 32 * kMib, 'x');
      return true;
    });
  };
  const auto none = Start([] { return true; });
  const auto with_private = touching(MAP_PRIVATE);
  const auto with_shared = touching(MAP_SHARED);
  ASSERT_TRUE(none && with_private && with_shared);
  const uint64_t base_bytes = Look(*none).memory_bytes;
  for (const pid_t pid : {*with_private, *with_shared}) {
    const uint64_t bytes = Look(pid).memory_bytes;
    EXPECT_GE(bytes, base_bytes + 31 * kMib);
    EXPECT_LE(bytes, base_bytes + 40 * kMib);
  }
}

TEST_F(ExamineTest, SharedMemoryIsCountedOnceForAllWhoShareIt) {
  void* shared =
      ::mmap(nullptr, 32 * kMib, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(shared, MAP_FAILED);
  const auto touch = [&] {
    std::fill_n(static_cast<volatile char*>(shared), 32 * kMib, 'x');
    return true;
  };
  const auto none = Start([] { return true; });
  const auto one = Start(touch);
  const auto two = Start(touch);
  ASSERT_TRUE(none && one && two);
  ::munmap(shared, 32 * kMib);
  const uint64_t base_bytes = Look(*none).memory_bytes;
  const auto both = Examine(*one, {*one, *two}, {.rootfs = "/"});
  ASSERT_TRUE(both);
  EXPECT_GE(both->memory_bytes, 2 * base_bytes + 31 * kMib);
  EXPECT_LE(both->memory_bytes, 2 * base_bytes + 48 * kMib) << "counted twice";
}

TEST_F(ExamineTest, ATracedTaskIsRefused) {
  const auto pid = Start([] { return true; });
  ASSERT_TRUE(pid);
  if (::ptrace(PTRACE_SEIZE, *pid, nullptr, nullptr) != 0) GTEST_SKIP() << "ptrace is not allowed";
  const Examination found = Look(*pid);
  EXPECT_THAT(found.refusals, ElementsAre(HasSubstr(fmt::format("traced by pid {}", ::getpid()))));
}

TEST_F(ExamineTest, AStrangerIsRefused) {
  // As an open `runc exec` is: in the container, but no child of its init.
  const auto init = Start([] { return true; });
  const auto stranger = Start([] { return true; });
  ASSERT_TRUE(init && stranger);
  const auto found = Examine(*init, {*init, *stranger}, {.rootfs = "/"});
  ASSERT_TRUE(found);
  EXPECT_THAT(found->refusals, ElementsAre(AllOf(HasSubstr(fmt::format("task {} ", *stranger)),
                                                 HasSubstr("runc exec"))));
  EXPECT_EQ(found->tasks, 2U);
}

class SocketTest : public ExamineTest {
 protected:
  std::vector<std::string> RefusalsOf(int domain, int type, int protocol) {
    const auto pid = Start([=] { return ::socket(domain, type, protocol) >= 0; });
    return pid ? Look(*pid).refusals : std::vector<std::string>{"cannot be made here"};
  }
};

TEST_F(SocketTest, OrdinarySocketsPass) {
  EXPECT_THAT(RefusalsOf(AF_INET, SOCK_STREAM, 0), IsEmpty());
  EXPECT_THAT(RefusalsOf(AF_INET6, SOCK_DGRAM, 0), IsEmpty());
  EXPECT_THAT(RefusalsOf(AF_UNIX, SOCK_SEQPACKET, 0), IsEmpty());
}

TEST_F(SocketTest, AnMptcpSocketIsRefused) {
  if (!UniqueFd(::socket(AF_INET, SOCK_STREAM, kMptcp))) GTEST_SKIP() << "no MPTCP here";
  EXPECT_THAT(RefusalsOf(AF_INET, SOCK_STREAM, kMptcp),
              ElementsAre(AllOf(HasSubstr("descriptor 0"), HasSubstr("MPTCP"))));
}

TEST_F(SocketTest, AVsockSocketIsRefused) {
  if (!UniqueFd(::socket(AF_VSOCK, SOCK_STREAM, 0))) GTEST_SKIP() << "no AF_VSOCK here";
  EXPECT_THAT(RefusalsOf(AF_VSOCK, SOCK_STREAM, 0), ElementsAre(HasSubstr("AF_VSOCK")));
}

TEST_F(SocketTest, AnAlgSocketIsRefused) {
  if (!UniqueFd(::socket(AF_ALG, SOCK_SEQPACKET, 0))) GTEST_SKIP() << "no AF_ALG here";
  EXPECT_THAT(RefusalsOf(AF_ALG, SOCK_SEQPACKET, 0), ElementsAre(HasSubstr("AF_ALG")));
}

TEST_F(ExamineTest, AUserfaultfdIsRefused) {
  const auto pid = Start([] { return ::syscall(SYS_userfaultfd, O_CLOEXEC | 1) >= 0; });
  if (!pid) GTEST_SKIP() << "no userfaultfd here";
  EXPECT_THAT(Look(*pid).refusals, ElementsAre(HasSubstr("userfaultfd")));
}

TEST_F(ExamineTest, ADeviceWithStateIsRefused) {
  if (::access("/dev/fuse", R_OK | W_OK) != 0) GTEST_SKIP() << "no /dev/fuse here";
  const auto pid = Start([] { return ::open("/dev/fuse", O_RDWR) >= 0; });
  if (!pid) GTEST_SKIP() << "/dev/fuse cannot be opened";
  EXPECT_THAT(Look(*pid).refusals, ElementsAre(HasSubstr("/dev/fuse")));
}

TEST_F(ExamineTest, OrdinaryDevicesPass) {
  const auto pid = Start([] {
    return ::open("/dev/null", O_RDWR) >= 0 && ::open("/dev/zero", O_RDWR) >= 0 &&
           ::open("/dev/full", O_RDWR) >= 0 && ::open("/dev/urandom", O_RDONLY) >= 0;
  });
  ASSERT_TRUE(pid);
  EXPECT_THAT(Look(*pid).refusals, IsEmpty());
}

TEST_F(ExamineTest, ATaskThatEndedIsLeftOutButNotTheInit) {
  const auto init = Start([] { return true; });
  const auto gone = Start([] { return true; });
  ASSERT_TRUE(init && gone);
  End(*gone);
  const auto found = Examine(*init, {*init, *gone}, {.rootfs = "/"});
  ASSERT_TRUE(found) << found.error().message();
  EXPECT_EQ(found->tasks, 1U);
  EXPECT_FALSE(Examine(*gone, {*gone}, {.rootfs = "/"}));
}

TEST_F(ExamineTest, AZombieIsNoObstacle) {
  const auto init = Start([] {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(0);
    siginfo_t info{};
    return ::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT) == 0;
  });
  ASSERT_TRUE(init);
  std::istringstream children(
      base::ReadFile(fmt::format("/proc/{0}/task/{0}/children", *init)).value());
  pid_t zombie = 0;
  ASSERT_TRUE(children >> zombie);
  const auto found = Examine(*init, {*init, zombie}, {.rootfs = "/"});
  ASSERT_TRUE(found) << found.error().message();
  EXPECT_THAT(found->refusals, IsEmpty());
}

TEST_F(ExamineTest, TasksThatEndWhileTheyAreLookedAtAreNoError) {
  // An init with ten children that each live for about a millisecond, all the time.
  const auto init = Start([] {
    if (::fork() != 0) return true;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int alive = 0;;) {
      if (alive < 10 && ::fork() == 0) {
        ::usleep(static_cast<useconds_t>(::getpid() % 2000));
        ::_exit(0);
      }
      ++alive;
      while (alive > 0 && ::waitpid(-1, nullptr, alive < 10 ? WNOHANG : 0) > 0) --alive;
    }
  });
  ASSERT_TRUE(init);
  const auto children_of = [](pid_t pid) {
    std::vector<pid_t> children;
    std::istringstream in(
        base::ReadFile(fmt::format("/proc/{0}/task/{0}/children", pid)).value_or(""));
    for (pid_t child = 0; in >> child;) children.push_back(child);
    return children;
  };
  const std::vector<pid_t> parent = children_of(*init);
  ASSERT_EQ(parent.size(), 1U);
  size_t looked_at = 0;
  for (int i = 0; i < 60; ++i) {
    std::vector<pid_t> pids{*init, parent[0]};
    const std::vector<pid_t> brief = children_of(parent[0]);
    pids.insert(pids.end(), brief.begin(), brief.end());
    looked_at += brief.size();
    const auto found = Examine(*init, pids, {.rootfs = "/"});
    ASSERT_TRUE(found) << found.error().message();
    ASSERT_THAT(found->refusals, IsEmpty());
  }
  EXPECT_GT(looked_at, 0U) << "nothing was tested";
}

}  // namespace
}  // namespace waft::checkpoint
