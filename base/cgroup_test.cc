#include "base/cgroup.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "base/file.h"
#include "base/unique_fd.h"

namespace waft::base {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

constexpr milliseconds kLimit{10'000};

// Each test runs in a cgroup of its own, in both kinds of hierarchy where this machine has them.
class FreezerTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string controller = GetParam();
    const auto ours = CgroupDirectory(::getpid(), controller);
    if (!ours) GTEST_SKIP() << ours.error().message();
    group_ = *ours / ("waft-test-" + std::to_string(::getpid()));
    if (::mkdir(group_.c_str(), 0755) != 0) {
      group_.clear();
      GTEST_SKIP() << "cannot make a cgroup below " << *ours << " (not root?)";
    }
    ASSERT_EQ(::mkdir((group_ / "below").c_str(), 0755), 0);
    void* shared = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(shared, MAP_FAILED);
    counters_ = static_cast<std::atomic<uint64_t>*>(shared);
  }

  void TearDown() override {
    if (group_.empty()) return;
    Freezer freezer = Freezer::AtPath(group_);
    for (const pid_t pid : children_) ::kill(pid, SIGKILL);
    EXPECT_TRUE(freezer.Thaw());
    for (const pid_t pid : children_) ::waitpid(pid, nullptr, 0);
    // A cgroup is busy until the kernel has let go of its last task.
    for (int i = 0; i < 1000 && ::access(group_.c_str(), F_OK) == 0; ++i) {
      ::rmdir((group_ / "below").c_str());
      ::rmdir(group_.c_str());
      ::usleep(1000);
    }
    EXPECT_FALSE(fs::exists(group_));
  }

  // A child in `group` that runs `work` over and over; its counter tells whether it does.
  template <typename Work>
  pid_t StartIn(const fs::path& group, Work work) {
    std::atomic<uint64_t>& counter = counters_[children_.size()];
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (;;) work(counter);
    }
    EXPECT_TRUE(WriteControlFile(group / "cgroup.procs", std::to_string(pid)));
    children_.push_back(pid);
    return pid;
  }
  pid_t StartCounting(const fs::path& group) {
    return StartIn(group, [](std::atomic<uint64_t>& counter) {
      ++counter;
      ::usleep(100);
    });
  }

  // Whether child number `index` does anything for a while.
  bool Counts(size_t index, milliseconds span = milliseconds(50)) const {
    const uint64_t before = counters_[index];
    std::this_thread::sleep_for(span);
    return counters_[index] != before;
  }
  // Whether it begins to, however slow the machine is.
  bool CountsAgain(size_t index) const {
    for (int i = 0; i < 5000; ++i) {
      if (Counts(index, milliseconds(1))) return true;
    }
    return false;
  }

  fs::path group_;
  std::vector<pid_t> children_;
  std::atomic<uint64_t>* counters_ = nullptr;
};

// Waits inside a system call for a page that nobody will ever give: only SIGKILL ends that.
void FaultForever(std::atomic<uint64_t>& counter) {
  const int uffd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC));
  uffdio_api api{.api = UFFD_API, .features = 0, .ioctls = 0};
  ::ioctl(uffd, UFFDIO_API, &api);
  void* page = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  uffdio_register missing{.range = {.start = reinterpret_cast<uint64_t>(page), .len = 4096},
                          .mode = UFFDIO_REGISTER_MODE_MISSING,
                          .ioctls = 0};
  if (::ioctl(uffd, UFFDIO_REGISTER, &missing) != 0) ::_exit(1);
  const int sink = ::memfd_create("sink", MFD_CLOEXEC);
  ++counter;
  ::_exit(::write(sink, page, 1) == 1 ? 2 : 3);
}

INSTANTIATE_TEST_SUITE_P(Hierarchy, FreezerTest, testing::Values("freezer", ""),
                         [](const auto& info) {
                           return std::string(*info.param == '\0' ? "V2" : "V1");
                         });

TEST_P(FreezerTest, FrozenTasksStandStillAndThawedOnesGoOn) {
  StartCounting(group_);
  StartCounting(group_ / "below");
  ASSERT_TRUE(CountsAgain(0));
  ASSERT_TRUE(CountsAgain(1));
  Freezer freezer = Freezer::AtPath(group_);
  EXPECT_FALSE(freezer.IsFrozen().value());

  ASSERT_TRUE(freezer.Freeze(kLimit));
  EXPECT_TRUE(freezer.IsFrozen().value());
  EXPECT_FALSE(Counts(0, milliseconds(200)));
  EXPECT_FALSE(Counts(1));
  EXPECT_TRUE(freezer.Freeze(kLimit)) << "freezing what is frozen";

  ASSERT_TRUE(freezer.Thaw());
  EXPECT_TRUE(CountsAgain(0));
  EXPECT_TRUE(CountsAgain(1));
  EXPECT_FALSE(freezer.IsFrozen().value());
}

TEST_P(FreezerTest, AFrozenGroupOutlivesItsHandle) {
  StartCounting(group_);
  ASSERT_TRUE(Freezer::AtPath(group_).Freeze(kLimit));
  EXPECT_TRUE(Freezer::AtPath(group_).IsFrozen().value());
  EXPECT_FALSE(Counts(0));
}

TEST_P(FreezerTest, StartFreezeDoesNotWait) {
  StartCounting(group_);
  Freezer freezer = Freezer::AtPath(group_);
  ASSERT_TRUE(freezer.StartFreeze());
  for (int i = 0; i < 1000 && !freezer.IsFrozen().value(); ++i) ::usleep(1000);
  EXPECT_TRUE(freezer.IsFrozen().value());
  EXPECT_FALSE(Counts(0));
}

TEST_P(FreezerTest, ATaskThatCannotFreezeGivesAnErrorAndThawsTheRest) {
  if (::geteuid() != 0) GTEST_SKIP() << "userfaultfd(2) needs root";
  // v2 would call the group frozen once the one below it is, whatever this task does.
  StartCounting(group_ / "below");
  StartIn(group_, FaultForever);
  for (int i = 0; i < 1000 && counters_[1] == 0; ++i) ::usleep(1000);
  ASSERT_EQ(counters_[1], 1);
  ::usleep(20'000);

  Freezer freezer = Freezer::AtPath(group_);
  const Status frozen = freezer.Freeze(milliseconds(100));
  ASSERT_FALSE(frozen);
  EXPECT_EQ(frozen.error().code(), ErrorCode::kRetry);
  EXPECT_THAT(frozen.error().message(), HasSubstr("did not freeze within 100 ms"));
  EXPECT_TRUE(CountsAgain(0));
  EXPECT_FALSE(freezer.IsFrozen().value());
  EXPECT_TRUE(freezer.KillAll(kLimit));
}

TEST_P(FreezerTest, ListsTheProcessesOfTheWholeTree) {
  Freezer freezer = Freezer::AtPath(group_);
  EXPECT_THAT(freezer.Processes().value(), IsEmpty());
  const pid_t first = StartCounting(group_);
  const pid_t second = StartCounting(group_ / "below");
  EXPECT_THAT(freezer.Processes().value(), UnorderedElementsAre(first, second));
}

TEST_P(FreezerTest, KillAllEndsAFrozenTree) {
  StartCounting(group_);
  StartCounting(group_ / "below");
  Freezer freezer = Freezer::AtPath(group_);
  ASSERT_TRUE(freezer.Freeze(kLimit));
  const Status killed = freezer.KillAll(kLimit);
  EXPECT_TRUE(killed) << killed.error().message();
  EXPECT_THAT(freezer.Processes().value(), IsEmpty());
  for (const pid_t pid : children_) {
    int how = 0;
    EXPECT_EQ(::waitpid(pid, &how, 0), pid);
    EXPECT_TRUE(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
  }
  children_.clear();
}

TEST_P(FreezerTest, KillAllEndsWhatForksMeanwhile) {
  StartIn(group_, [](std::atomic<uint64_t>& counter) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::usleep(500);
      ::_exit(0);
    }
    ++counter;
    while (::waitpid(-1, nullptr, WNOHANG) > 0) {
    }
    ::usleep(50);
  });
  ASSERT_TRUE(CountsAgain(0));
  Freezer freezer = Freezer::AtPath(group_);
  ASSERT_TRUE(freezer.Freeze(kLimit));
  EXPECT_TRUE(freezer.KillAll(kLimit));
  EXPECT_THAT(freezer.Processes().value(), IsEmpty());
}

TEST_P(FreezerTest, KillAllOfNothingIsDone) {
  EXPECT_TRUE(Freezer::AtPath(group_).KillAll(kLimit));
  EXPECT_TRUE(Freezer::AtPath(group_ / "none").KillAll(kLimit));
  EXPECT_FALSE(Freezer::AtPath(group_ / "none").Exists());
  EXPECT_FALSE(Freezer::AtPath(group_ / "none").Freeze(milliseconds(10)));
}

TEST_P(FreezerTest, FindsTheGroupOfAProcess) {
  const pid_t pid = StartCounting(group_ / "below");
  EXPECT_EQ(CgroupDirectory(pid, GetParam()).value(), group_ / "below");
  // ForProcess() prefers v1, so in v2 it finds this group only where there is no v1 freezer.
  if (*GetParam() == '\0' && CgroupDirectory(pid, "freezer")) return;
  EXPECT_EQ(Freezer::ForProcess(pid)->directory(), group_ / "below");
}

TEST(CgroupTest, AHierarchyThatIsNotMountedIsNamed) {
  const auto none = CgroupDirectory(::getpid(), "no-such-controller");
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code(), ErrorCode::kUnsupported);
  EXPECT_THAT(none.error().message(), HasSubstr("no-such-controller"));
}

}  // namespace
}  // namespace waft::base
