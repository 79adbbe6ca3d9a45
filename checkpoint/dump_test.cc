// Dump() around shell commands in a checkpoint's place, on a real frozen task. The real CRIU under
// it is tests/move_test.py's.
#include "checkpoint/dump.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "base/file.h"

namespace waft::checkpoint {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

constexpr std::chrono::seconds kLimit{10};

class DumpTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "waft-dump-XXXXXX").string();
    directory_ = ::mkdtemp(name.data());
    fs::create_directories(directory_ / "images");
    auto relay = criu::Relay::Start(directory_ / "work", "/nowhere", [](const auto&) {});
    ASSERT_TRUE(relay) << relay.error().message();
    relay_ = std::move(*relay);

    const auto own = base::Freezer::ForProcess(::getpid());
    if (!own) GTEST_SKIP() << own.error().message();
    const fs::path group = own->directory() / ("waft-dump-test-" + std::to_string(::getpid()));
    if (::mkdir(group.c_str(), 0755) != 0) GTEST_SKIP() << "a cgroup needs root";
    freezer_ = base::Freezer::AtPath(group);
    task_ = ::fork();
    if (task_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (;;) ::pause();
    }
    ASSERT_TRUE(base::WriteControlFile(group / "cgroup.procs", std::to_string(task_)));
    ASSERT_TRUE(freezer_->Freeze(kLimit));
  }

  void TearDown() override {
    relay_.reset();
    if (task_ > 0) {
      ::kill(task_, SIGKILL);
      EXPECT_TRUE(freezer_->Thaw());
      ::waitpid(task_, nullptr, 0);
    }
    // The cgroup is busy until the kernel has let go of its last task.
    for (int i = 0; freezer_ && i < 5000 && ::rmdir(freezer_->directory().c_str()) != 0; ++i) {
      ::usleep(1000);
    }
    EXPECT_TRUE(base::RemoveTree(directory_));
  }

  // `script` runs in the directory that holds images/ and work/.
  base::Result<DumpResult> DumpBy(const std::string& script,
                                  std::chrono::milliseconds timeout = kLimit) {
    return Dump({.argv = {"sh", "-ec", script}, .directory = directory_}, *relay_, *freezer_,
                directory_ / "images", directory_ / "work", timeout);
  }

  fs::path directory_;
  std::unique_ptr<criu::Relay> relay_;
  std::optional<base::Freezer> freezer_;
  pid_t task_ = -1;
};

TEST_F(DumpTest, CountsFilesBytesAndPages) {
  const auto page = std::to_string(::sysconf(_SC_PAGESIZE));
  const auto result = DumpBy(
      "cd images; head -c 100 /dev/zero > core-1.img; : > inventory.img;"
      "head -c $((3 * " +
      page +
      ")) /dev/zero > pages-1.img;"
      "head -c " +
      page +
      " /dev/zero > pages-2.img;"
      "head -c " +
      page + " /dev/zero > tmpfs-dev-1.tar.gz.img");
  ASSERT_TRUE(result) << result.error().message();
  EXPECT_EQ(result->files, 5U);
  EXPECT_EQ(result->pages, 4U);
  EXPECT_EQ(result->bytes, 100 + 5 * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)));
  EXPECT_TRUE(freezer_->IsFrozen().value());
}

TEST_F(DumpTest, TheCommandRunsUnderTheRelay) {
  const auto result = DumpBy("printenv WAFT_CRIU_RELAY PATH > images/environment");
  ASSERT_TRUE(result) << result.error().message();
  const std::string environment = base::ReadFile(directory_ / "images/environment").value();
  EXPECT_THAT(environment, HasSubstr((directory_ / "work/relay.sock").string() + "\n"));
  EXPECT_THAT(environment, HasSubstr((directory_ / "work/bin").string() + ":"));
}

TEST_F(DumpTest, AFailureIsToldInCriusWords) {
  const auto result = DumpBy(
      "echo '(00.1) Error (criu/sk-inet.c:1): unsupported socket' > work/dump.log;"
      "echo 'criu failed: see dump.log' >&2; exit 1");
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code(), base::ErrorCode::kRollBack);
  EXPECT_THAT(result.error().message(), HasSubstr("unsupported socket"));
  EXPECT_THAT(result.error().message(), Not(HasSubstr("see dump.log")));
}

TEST_F(DumpTest, WithoutALogTheCommandsOwnWordsAreTold) {
  const auto result = DumpBy("echo 'container is not running' >&2; exit 1");
  ASSERT_FALSE(result);
  EXPECT_THAT(result.error().message(), HasSubstr("container is not running"));
}

TEST_F(DumpTest, ADumpThatLetTheTasksRunIsWorthNothing) {
  const auto result = DumpBy("echo x > images/core-1.img; cd '" + freezer_->directory().string() +
                             "'; if [ -e cgroup.freeze ]; then echo 0 > cgroup.freeze;"
                             "else echo THAWED > freezer.state; fi");
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code(), base::ErrorCode::kRollBack);
  EXPECT_THAT(result.error().message(), HasSubstr("thawed during the dump"));
}

TEST_F(DumpTest, NoImagesAreAnError) {
  const auto none = DumpBy("true");
  ASSERT_FALSE(none);
  EXPECT_THAT(none.error().message(), HasSubstr("no images"));
  EXPECT_FALSE(DumpBy("rmdir images"));
}

TEST_F(DumpTest, ACommandThatCannotRunIsAnError) {
  EXPECT_FALSE(Dump({.argv = {"/no/such/runc"}}, *relay_, *freezer_, directory_ / "images",
                    directory_ / "work", kLimit));
}

TEST_F(DumpTest, ADumpThatWaitsForAFrozenTaskIsLetGo) {
  const auto result = DumpBy("cd '" + freezer_->directory().string() +
                                 "'; until grep -qs THAWED freezer.state ||"
                                 " grep -qs 'frozen 0' cgroup.events; do sleep 0.01; done",
                             std::chrono::milliseconds(200));
  ASSERT_FALSE(result);
  EXPECT_THAT(result.error().message(), HasSubstr("did not finish"));
  EXPECT_FALSE(freezer_->IsFrozen().value());
}

}  // namespace
}  // namespace waft::checkpoint
