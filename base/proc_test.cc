#include "base/proc.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>

#include "base/file.h"
#include "base/unique_fd.h"

namespace waft::base {
namespace {

namespace fs = std::filesystem;
using testing::Contains;
using testing::Field;
using testing::HasSubstr;

constexpr size_t kMiB = 1 << 20;

// A forked copy of this test that does `prepare`, says so, and then sleeps until this goes.
class Forked {
 public:
  explicit Forked(const std::function<void()>& prepare = [] {}) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) std::abort();
    const UniqueFd reader(ends[0]);
    UniqueFd writer(ends[1]);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      prepare();
      writer.reset();
      for (;;) ::pause();
    }
    writer.reset();
    char byte = 0;
    while (::read(reader.get(), &byte, 1) < 0 && errno == EINTR) {
    }
  }
  Forked(const Forked&) = delete;
  Forked& operator=(const Forked&) = delete;
  ~Forked() { Reap(); }

  pid_t pid() const { return pid_; }
  void Reap() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
};

TEST(ProcTest, OurOwnStatus) {
  const ProcStatus status = ReadProcStatus(::getpid()).value();
  EXPECT_EQ(status.name, "proc_test");
  EXPECT_EQ(status.state, 'R');
  EXPECT_EQ(status.parent_pid, ::getppid());
  EXPECT_EQ(status.tracer_pid, 0);
  EXPECT_EQ(status.uid, ::geteuid());
  EXPECT_EQ(status.threads, 1);
  EXPECT_GT(status.rss_file_bytes, 0);
}

TEST(ProcTest, StatusOfAChildWithKnownMemory) {
  const Forked plain;
  const Forked child([] {
    ::prctl(PR_SET_NAME, "a: odd name");
    const auto map = [](size_t len_bytes, int more_flags) {
      constexpr int kFlags = MAP_ANONYMOUS | MAP_POPULATE;
      void* at = ::mmap(nullptr, len_bytes, PROT_READ | PROT_WRITE, kFlags | more_flags, -1, 0);
      if (at == MAP_FAILED) std::abort();
    };
    map(8 * kMiB, MAP_PRIVATE);
    map(4 * kMiB, MAP_SHARED);
    sock_filter allow{.code = BPF_RET | BPF_K, .jt = 0, .jf = 0, .k = SECCOMP_RET_ALLOW};
    sock_fprog program{.len = 1, .filter = &allow};
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
  });
  // It has said that it is ready, but not yet gone to sleep.
  for (int i = 0; i < 5000 && ReadProcStatus(child.pid())->state != 'S'; ++i) ::usleep(1000);
  const ProcStatus before = ReadProcStatus(plain.pid()).value();
  const ProcStatus status = ReadProcStatus(child.pid()).value();
  EXPECT_EQ(status.name, "a: odd name");
  EXPECT_EQ(status.state, 'S');
  EXPECT_EQ(status.parent_pid, ::getpid());
  EXPECT_EQ(status.seccomp, 2);
  EXPECT_EQ(before.seccomp, ReadProcStatus(::getpid())->seccomp);
  // The kernel counts in batches of pages, so not to the byte.
  EXPECT_NEAR(static_cast<double>(status.rss_anon_bytes - before.rss_anon_bytes), 8.0 * kMiB, kMiB);
  EXPECT_NEAR(static_cast<double>(status.rss_shmem_bytes - before.rss_shmem_bytes), 4.0 * kMiB,
              kMiB);
  EXPECT_EQ(status.hugetlb_bytes, 0);
}

TEST(ProcTest, TheEffectiveUserOfFour) {
  if (::geteuid() != 0) GTEST_SKIP() << "changing the user needs root";
  const Forked child([] { ::setresuid(1001, 1002, 1003); });
  EXPECT_EQ(ReadProcStatus(child.pid())->uid, 1002);
}

TEST(ProcTest, StoppedTracedAndDeadAreTold) {
  const Forked stopped;
  ASSERT_EQ(::kill(stopped.pid(), SIGSTOP), 0);
  int how = 0;
  ASSERT_EQ(::waitpid(stopped.pid(), &how, WUNTRACED), stopped.pid());
  EXPECT_EQ(ReadProcStatus(stopped.pid())->state, 'T');

  const Forked traced;
  ASSERT_EQ(::ptrace(PTRACE_SEIZE, traced.pid(), nullptr, nullptr), 0);
  ASSERT_EQ(::ptrace(PTRACE_INTERRUPT, traced.pid(), nullptr, nullptr), 0);
  ASSERT_EQ(::waitpid(traced.pid(), &how, 0), traced.pid());
  EXPECT_EQ(ReadProcStatus(traced.pid())->state, 't');
  EXPECT_EQ(ReadProcStatus(traced.pid())->tracer_pid, ::getpid());

  const Forked dead;
  ASSERT_EQ(::kill(dead.pid(), SIGKILL), 0);
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(dead.pid()), &info, WEXITED | WNOWAIT), 0);
  EXPECT_EQ(ReadProcStatus(dead.pid())->state, 'Z');
  EXPECT_TRUE(ReadMappings(dead.pid())->empty());
}

TEST(ProcTest, MappingsOfAChild) {
  std::string name = (fs::temp_directory_path() / "waft proc test XXXXXX").string();
  const UniqueFd file(::mkstemp(name.data()));
  ASSERT_TRUE(WriteAll(file.get(), std::string(size_t{3} * 4096, 'x')));
  const auto map = [&](int protection, int flags, int fd) {
    void* at = ::mmap(nullptr, size_t{3} * 4096, protection, flags, fd, 0);
    EXPECT_NE(at, MAP_FAILED);
    return reinterpret_cast<uint64_t>(at);
  };
  const uint64_t anonymous = map(PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  const uint64_t shared = map(PROT_READ | PROT_WRITE, MAP_SHARED, file.get());
  struct stat facts{};
  ASSERT_EQ(::fstat(file.get(), &facts), 0);

  const Forked child;
  const auto at = [&](uint64_t start) {
    const auto mappings = ReadMappings(child.pid()).value();
    // The kernel merges neighbours that are alike, so the mapping may begin before ours.
    const auto found = std::find_if(mappings.begin(), mappings.end(), [&](const Mapping& mapping) {
      return mapping.start <= start && start < mapping.end;
    });
    EXPECT_NE(found, mappings.end());
    return found == mappings.end() ? Mapping{} : *found;
  };
  EXPECT_EQ(at(anonymous).permissions, "---p");
  EXPECT_EQ(at(anonymous).path, "");
  EXPECT_EQ(at(anonymous).inode, 0);
  EXPECT_EQ(at(shared).start, shared);
  EXPECT_EQ(at(shared).end, shared + size_t{3} * 4096);
  EXPECT_EQ(at(shared).permissions, "rw-s");
  EXPECT_EQ(at(shared).inode, facts.st_ino);
  EXPECT_EQ(at(shared).path, name);
  ASSERT_EQ(::unlink(name.c_str()), 0);
  EXPECT_EQ(at(shared).path, name + " (deleted)");
  EXPECT_THAT(ReadMappings(child.pid()).value(), Contains(Field(&Mapping::path, "[stack]")));
}

TEST(ProcTest, DescriptorsOfAChild) {
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd reader(ends[0]);
  const UniqueFd writer(ends[1]);
  const UniqueFd deleted(::memfd_create("proc test", MFD_CLOEXEC));
  const Forked child;
  const auto target = [&](const UniqueFd& fd) -> std::string {
    const auto fds = ReadFds(child.pid()).value();
    for (const FdInfo& info : fds) {
      if (info.fd == fd.get()) return info.target;
    }
    return "not listed";
  };
  EXPECT_EQ(target(null), "/dev/null");
  EXPECT_THAT(target(reader), HasSubstr("pipe:["));
  EXPECT_EQ(target(reader), target(writer));
  EXPECT_EQ(target(deleted), "/memfd:proc test (deleted)");
}

TEST(ProcTest, AProcessThatIsGoneIsTold) {
  Forked child;
  const pid_t pid = child.pid();
  child.Reap();
  const auto expect_gone = [](const auto& result, const char* what) {
    ASSERT_FALSE(result) << what;
    EXPECT_TRUE(IsGone(result.error())) << what << ": " << result.error().message();
  };
  expect_gone(ReadProcStatus(pid), "status");
  expect_gone(ReadMappings(pid), "maps");
  expect_gone(ReadFds(pid), "fd");
  expect_gone(ReadMountInfo(pid), "mountinfo");
  expect_gone(ReadCgroups(pid), "cgroup");
  expect_gone(NamespaceId(pid, "net"), "ns");
  EXPECT_FALSE(IsGone(Error::FromErrno("x", EACCES)));
}

TEST(ProcTest, MountsWithOddNames) {
  if (::geteuid() != 0) GTEST_SKIP() << "making mounts needs CAP_SYS_ADMIN (root)";
  std::string name = (fs::temp_directory_path() / "waft-proc-XXXXXX").string();
  const fs::path root = ::mkdtemp(name.data());
  const fs::path odd = root / "a b\tc\\d\ne";
  fs::create_directory(odd);
  fs::create_directory(root / "nameless");
  // In a mount namespace of the child's own: it ends with the child.
  const Forked child([&] {
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("my source", odd.c_str(), "tmpfs", 0, "size=64k") != 0 ||
        ::mount("", (root / "nameless").c_str(), "tmpfs", 0, nullptr) != 0) {
      ::_exit(1);
    }
  });
  const auto mounts = ReadMountInfo(child.pid()).value();
  const auto find = [&](const fs::path& path) {
    const auto found = std::find_if(mounts.begin(), mounts.end(), [&](const MountInfo& mount) {
      return mount.mount_point == path;
    });
    return found == mounts.end() ? MountInfo{} : *found;
  };
  struct stat facts{};
  const int stat_failed =
      ::stat(("/proc/" + std::to_string(child.pid()) + "/root" + odd.string()).c_str(), &facts);
  fs::remove(odd);
  fs::remove(root / "nameless");
  fs::remove(root);

  ASSERT_EQ(stat_failed, 0);
  EXPECT_EQ(find(odd).fs_type, "tmpfs");
  EXPECT_EQ(find(odd).source, "my source");
  EXPECT_EQ(find(odd).root, "/");
  EXPECT_EQ(find(odd).device, facts.st_dev);
  EXPECT_THAT(find(odd).super_options, testing::StartsWith("rw,"));
  EXPECT_THAT(find(odd).super_options, HasSubstr("size=64k"));
  const MountInfo nameless = find(root / "nameless");
  EXPECT_EQ(nameless.fs_type, "tmpfs") << "an empty source must not hide a mount";
  EXPECT_EQ(nameless.source, "");
  EXPECT_THAT(nameless.super_options, testing::StartsWith("rw"));
  EXPECT_EQ(find("/proc").fs_type, "proc");
  // One for each line: none is left out.
  const std::string text = ReadFile("/proc/self/mountinfo").value();
  EXPECT_EQ(ReadMountInfo(::getpid())->size(), std::count(text.begin(), text.end(), '\n'));
}

TEST(ProcTest, CgroupsByController) {
  const auto cgroups = ReadCgroups(::getpid()).value();
  ASSERT_FALSE(cgroups.empty());
  for (const auto& [controllers, path] : cgroups) {
    EXPECT_TRUE(path.starts_with("/")) << controllers << " " << path;
    EXPECT_THAT(ReadFile("/proc/self/cgroup").value(),
                HasSubstr(fmt::format(":{}:{}\n", controllers, path)));
  }
}

TEST(ProcTest, NamespacesAreToldApart) {
  const std::string ours = NamespaceId(::getpid(), "uts").value();
  EXPECT_THAT(ours, testing::MatchesRegex("uts:\\[[0-9]+\\]"));
  const Forked same;
  EXPECT_EQ(NamespaceId(same.pid(), "uts").value(), ours);
  if (::geteuid() != 0) GTEST_SKIP() << "making a namespace needs root";
  const Forked other([] { ::unshare(CLONE_NEWUTS); });
  EXPECT_NE(NamespaceId(other.pid(), "uts").value(), ours);
}

TEST(ProcTest, AvailableMemoryIsPartOfAll) {
  struct sysinfo info{};
  ASSERT_EQ(::sysinfo(&info), 0);
  const uint64_t available = AvailableMemoryBytes().value();
  EXPECT_GT(available, kMiB);
  EXPECT_LT(available, info.totalram * info.mem_unit);
}

}  // namespace
}  // namespace waft::base
