// The real library: its function by dlopen(3), its syscall() by LD_PRELOAD into this program run
// again as a helper (main() below), which calls libc's syscall() as CRIU does.
#include "criu/preload.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/process.h"

namespace waft::criu {
namespace {

namespace fs = std::filesystem;

constexpr uid_t kNobody = 65534;
constexpr int kCapSysResource = 24;  // linux/capability.h

fs::path OwnProgram() { return fs::read_symlink("/proc/self/exe"); }
fs::path Library() {
  return OwnProgram().parent_path().parent_path() / "bin" / "libwaft-criu-preload.so";
}

int ReadLimit(pid_t pid, int resource, rlimit* limit) {
  using Function = int (*)(pid_t, int, rlimit*);
  void* const library = ::dlopen(Library().c_str(), RTLD_NOW | RTLD_LOCAL);
  void* const symbol = library == nullptr ? nullptr : ::dlsym(library, "waft_read_limit");
  if (symbol == nullptr) {
    ADD_FAILURE() << ::dlerror();
    return -2;
  }
  return reinterpret_cast<Function>(symbol)(pid, resource, limit);
}

bool HasSysResource() {
  const std::string status = base::ReadFile("/proc/self/status").value();
  const size_t at = status.find("CapEff:\t");
  return ((std::stoull(status.substr(at + 8), nullptr, 16) >> kCapSysResource) & 1) != 0;
}

using Limits = std::array<rlimit, RLIM_NLIMITS>;

Limits OwnLimits() {
  Limits limits{};
  for (int i = 0; i < RLIM_NLIMITS; ++i) {
    EXPECT_EQ(::getrlimit(static_cast<__rlimit_resource>(i), &limits[i]), 0) << i;
  }
  return limits;
}

// A child that changed its limits, took another uid, and says what its limits are.
class LimitedChild {
 public:
  explicit LimitedChild(uid_t uid) {
    void* shared =
        ::mmap(nullptr, sizeof(Limits), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    limits_ = static_cast<Limits*>(shared);
    std::array<int, 2> ready{};
    EXPECT_EQ(::pipe2(ready.data(), O_CLOEXEC), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      Lower(RLIMIT_NOFILE, 100, 200);
      Lower(RLIMIT_CORE, 0, 4096);
      Lower(RLIMIT_FSIZE, 12'345'678'901, RLIM_INFINITY);
      Lower(RLIMIT_STACK, 1 << 20, 2 << 20);
      Lower(RLIMIT_NICE, 0, 0);
      if (uid != 0 && ::setresuid(uid, uid, uid) != 0) ::_exit(1);
      for (int i = 0; i < RLIM_NLIMITS; ++i) {
        ::getrlimit(static_cast<__rlimit_resource>(i), &(*limits_)[i]);
      }
      if (::write(ready[1], "", 1) != 1) ::_exit(1);
      for (;;) ::pause();
    }
    char byte = 0;
    ::close(ready[1]);
    EXPECT_EQ(::read(ready[0], &byte, 1), 1) << "the child could not be set up";
    ::close(ready[0]);
  }
  LimitedChild(const LimitedChild&) = delete;
  LimitedChild& operator=(const LimitedChild&) = delete;
  ~LimitedChild() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::munmap(limits_, sizeof(Limits));
  }

  pid_t pid() const { return pid_; }
  const Limits& limits() const { return *limits_; }

 private:
  static void Lower(__rlimit_resource resource, rlim_t soft, rlim_t hard) {
    rlimit now{};
    ::getrlimit(resource, &now);
    const rlimit wanted{.rlim_cur = std::min(soft, now.rlim_max),
                        .rlim_max = std::min(hard, now.rlim_max)};
    if (::setrlimit(resource, &wanted) != 0) ::_exit(1);
  }

  pid_t pid_ = -1;
  Limits* limits_ = nullptr;
};

void ExpectSameLimits(pid_t pid, const Limits& expected) {
  for (int i = 0; i < RLIM_NLIMITS; ++i) {
    rlimit got{};
    ASSERT_EQ(ReadLimit(pid, i, &got), 0) << "resource " << i;
    EXPECT_EQ(got.rlim_cur, expected[i].rlim_cur) << "resource " << i;
    EXPECT_EQ(got.rlim_max, expected[i].rlim_max) << "resource " << i;
  }
}

TEST(ReadLimitTest, OurOwnAreWhatGetrlimitSays) { ExpectSameLimits(::getpid(), OwnLimits()); }

TEST(ReadLimitTest, AChildsAreItsOwn) {
  const LimitedChild child(0);
  EXPECT_EQ(child.limits()[RLIMIT_NOFILE].rlim_cur, 100U);
  EXPECT_NE(child.limits()[RLIMIT_NOFILE].rlim_cur, OwnLimits()[RLIMIT_NOFILE].rlim_cur);
  ExpectSameLimits(child.pid(), child.limits());
}

TEST(ReadLimitTest, UnlimitedIsInfinity) {
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_CPU, &limit), 0);
  if (limit.rlim_max != RLIM_INFINITY) GTEST_SKIP() << "our own CPU time is limited";
  limit = {};
  ASSERT_EQ(ReadLimit(::getpid(), RLIMIT_CPU, &limit), 0);
  EXPECT_EQ(limit.rlim_max, RLIM_INFINITY);
}

TEST(ReadLimitTest, AnUnknownResourceIsAnError) {
  rlimit limit{.rlim_cur = 7, .rlim_max = 8};
  EXPECT_EQ(ReadLimit(::getpid(), RLIM_NLIMITS, &limit), -1);
  EXPECT_EQ(ReadLimit(::getpid(), -1, &limit), -1);
  EXPECT_EQ(limit.rlim_cur, 7U);
  EXPECT_EQ(limit.rlim_max, 8U);
}

TEST(ReadLimitTest, ATaskThatIsGoneIsAnError) {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(0);
  ASSERT_EQ(::waitpid(pid, nullptr, 0), pid);
  rlimit limit{};
  EXPECT_EQ(ReadLimit(pid, RLIMIT_NOFILE, &limit), -1);
}

// What the helper prints of one call: its result, its errno, and a limit.
struct Answer {
  long result = 0;
  int error = 0;
  rlim_t soft = 0;
  rlim_t hard = 0;
};

enum class Preload { kNo, kYes };

Answer Ask(Preload preload, const std::vector<std::string>& what) {
  base::Command command{.argv = {OwnProgram(), "--helper"}};
  command.argv.insert(command.argv.end(), what.begin(), what.end());
  if (preload == Preload::kYes) {
    command.environment["LD_PRELOAD"] = Library();
    command.environment["ASAN_OPTIONS"] = "verify_asan_link_order=0";
  }
  Answer answer;
  const auto run = base::RunFor(command, std::chrono::seconds(30));
  EXPECT_TRUE(run && run->exit.Ok())
      << (run ? run->exit.ToString() + run->err : run.error().message());
  if (!run) return answer;
  std::istringstream in(run->out);
  in >> answer.result >> answer.error >> answer.soft >> answer.hard;
  EXPECT_TRUE(in) << run->out;
  return answer;
}

class InterposedSyscallTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(fs::exists(Library())) << Library();
    if (::geteuid() != 0) GTEST_SKIP() << "a child of another uid needs root";
    if (HasSysResource()) {
      GTEST_SKIP() << "with CAP_SYS_RESOURCE the kernel refuses nothing: nothing to step in for";
    }
  }
};

TEST_F(InterposedSyscallTest, ARefusedReadIsAnswered) {
  const LimitedChild child(kNobody);
  const std::string pid = std::to_string(child.pid());
  for (int i = 0; i < RLIM_NLIMITS; ++i) {
    const Answer without = Ask(Preload::kNo, {"read", pid, std::to_string(i)});
    ASSERT_EQ(without.result, -1) << "the kernel does not refuse: nothing is tested";
    ASSERT_EQ(without.error, EPERM);

    const Answer with = Ask(Preload::kYes, {"read", pid, std::to_string(i)});
    EXPECT_EQ(with.result, 0) << "resource " << i << ": " << std::strerror(with.error);
    EXPECT_EQ(with.soft, child.limits()[i].rlim_cur) << "resource " << i;
    EXPECT_EQ(with.hard, child.limits()[i].rlim_max) << "resource " << i;
  }
}

TEST_F(InterposedSyscallTest, AWriteIsStillRefused) {
  const LimitedChild child(kNobody);
  const Answer answer =
      Ask(Preload::kYes, {"write", std::to_string(child.pid()), std::to_string(RLIMIT_NOFILE)});
  EXPECT_EQ(answer.result, -1);
  EXPECT_EQ(answer.error, EPERM);
  ExpectSameLimits(child.pid(), child.limits());
}

TEST_F(InterposedSyscallTest, OtherErrorsStayAsTheyAre) {
  const LimitedChild child(kNobody);
  const std::string pid = std::to_string(child.pid());
  for (const std::vector<std::string>& what : std::vector<std::vector<std::string>>{
           {"read", pid, std::to_string(RLIM_NLIMITS)},  // no such resource
           {"read", "2147483647", "0"},                  // no such task
           {"neither", pid, "0"}}) {                     // nothing to be read
    const Answer without = Ask(Preload::kNo, what);
    const Answer with = Ask(Preload::kYes, what);
    EXPECT_EQ(without.result, -1) << what[0] << ' ' << what[1] << ' ' << what[2];
    EXPECT_EQ(with.result, -1) << what[0] << ' ' << what[1] << ' ' << what[2];
    EXPECT_EQ(with.error, without.error) << what[0] << ' ' << what[1] << ' ' << what[2];
  }
}

TEST_F(InterposedSyscallTest, WhatTheKernelAllowsIsItsOwnAnswer) {
  const LimitedChild child(0);
  const Answer answer =
      Ask(Preload::kYes, {"read", std::to_string(child.pid()), std::to_string(RLIMIT_NOFILE)});
  EXPECT_EQ(answer.result, 0);
  EXPECT_EQ(answer.soft, 100U);
  EXPECT_EQ(answer.hard, 200U);
}

TEST(InterposedOthersTest, OtherSystemCallsAreUntouched) {
  const Answer open = Ask(Preload::kYes, {"open"});
  EXPECT_EQ(open.result, -1);
  EXPECT_EQ(open.error, ENOENT);
  EXPECT_EQ(Ask(Preload::kYes, {"copy", "0"}).result, 100);
  const Answer flags = Ask(Preload::kYes, {"copy", "1"});
  EXPECT_EQ(flags.result, -1) << "the sixth argument did not arrive";
  EXPECT_EQ(flags.error, EINVAL);
}

// The other end of Ask(): one system call through libc's syscall(), as CRIU makes it.
int Helper(const std::vector<std::string>& what) {
  rlimit old{};
  const rlimit wanted{.rlim_cur = 1, .rlim_max = 1};
  const auto number = [&](size_t i) { return what.size() > i ? std::stol(what[i]) : 0; };
  const rlimit* const none = nullptr;
  long result = -1;
  errno = 0;
  if (what[0] == "read") {
    result = ::syscall(SYS_prlimit64, number(1), number(2), none, &old);
  } else if (what[0] == "write") {
    result = ::syscall(SYS_prlimit64, number(1), number(2), &wanted, &old);
  } else if (what[0] == "neither") {
    result = ::syscall(SYS_prlimit64, number(1), number(2), none, none);
  } else if (what[0] == "open") {
    result = ::syscall(SYS_openat, AT_FDCWD, "/no/such/file", O_RDONLY, 0);
  } else if (what[0] == "copy") {
    // Six arguments; the sixth must be 0 (copy_file_range(2)).
    const std::string text(100, 'x');
    const int from = ::memfd_create("from", MFD_CLOEXEC);
    const int to = ::memfd_create("to", MFD_CLOEXEC);
    if (::pwrite(from, text.data(), text.size(), 0) != 100) return 1;
    result = ::syscall(SYS_copy_file_range, from, nullptr, to, nullptr, 4096, number(1));
  }
  const int error = errno;
  fmt::print("{} {} {} {}\n", result, error, old.rlim_cur, old.rlim_max);
  return 0;
}

}  // namespace
}  // namespace waft::criu

int main(int argc, char** argv) {
  if (argc > 2 && std::strcmp(argv[1], "--helper") == 0) {
    return waft::criu::Helper({argv + 2, argv + argc});
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
