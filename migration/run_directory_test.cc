#include "migration/run_directory.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/file.h"
#include "base/process.h"

namespace waft::migration {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::AllOf;
using testing::HasSubstr;

constexpr milliseconds kLong{30'000};

class RunDirectoryTest : public testing::Test {
 protected:
  RunDirectoryTest() {
    std::string name = (fs::temp_directory_path() / "waft-run-XXXXXX").string();
    base_ = ::mkdtemp(name.data());
    directory_ = base_ / "migrations" / "0123456789abcdef";
    fs::create_directories(directory_ / "work" / "bin");
    std::ofstream(directory_ / "work" / "dump.log") << "log";
  }
  ~RunDirectoryTest() override {
    for (base::Child& child : children_) {
      EXPECT_TRUE(child.Signal(SIGKILL));
      EXPECT_TRUE(child.Wait());
    }
    if (const auto mounts = base::MountsBelow(base_)) {
      for (const fs::path& mount : *mounts) ::umount2(mount.c_str(), MNT_DETACH);
    }
    EXPECT_TRUE(base::RemoveTree(base_));
  }

  base::Child& Spawn(const base::Command& command) {
    auto child = base::Child::Spawn(command);
    EXPECT_TRUE(child) << child.error().message();
    return children_.emplace_back(std::move(*child));
  }
  // One that lives for a while and names `path` on its command line: a program that lies there.
  base::Child& SpawnNaming(const fs::path& path, const std::string& seconds) {
    fs::create_directories(path);
    fs::copy_file("/bin/sleep", path / "fake-runc", fs::copy_options::skip_existing);
    base::Child& child = Spawn({.argv = {path / "fake-runc", seconds}});
    // For a moment after exec it has no command line yet.
    const fs::path line = fs::path("/proc") / std::to_string(child.pid()) / "cmdline";
    for (int i = 0; i < 10'000 && base::ReadFile(line).value_or("").empty(); ++i) ::usleep(1000);
    return child;
  }

  fs::path base_;
  fs::path directory_;
  std::deque<base::Child> children_;  // whose members stay where they are
};

TEST_F(RunDirectoryTest, RemovesFilesAndNothingElse) {
  std::ofstream(base_ / "migrations" / "neighbour") << "x";
  fs::create_directory_symlink(base_ / "migrations", directory_ / "work" / "link");
  EXPECT_TRUE(RemoveRunDirectory(directory_));
  EXPECT_FALSE(fs::exists(directory_));
  EXPECT_TRUE(fs::exists(base_ / "migrations" / "neighbour"));
  EXPECT_TRUE(RemoveRunDirectory(directory_)) << "what is gone needs no removal";
}

// In a mount namespace of the test's own.
class MountedRunDirectoryTest : public RunDirectoryTest {
 protected:
  void SetUp() override {
    if (::unshare(CLONE_NEWNS) != 0) GTEST_SKIP() << "making mounts needs CAP_SYS_ADMIN (root)";
    ASSERT_EQ(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
  }

  static void MountTmpfs(const fs::path& path) {
    fs::create_directories(path);
    ASSERT_EQ(::mount("test", path.c_str(), "tmpfs", 0, "size=64k"), 0);
  }
};

TEST_F(MountedRunDirectoryTest, UnmountsWhatIsMountedBelow) {
  const fs::path rootfs = base_ / "rootfs";
  fs::create_directory(rootfs);
  std::ofstream(rootfs / "precious") << "data";
  MountTmpfs(directory_ / "images");
  std::ofstream(directory_ / "images" / "pages-1.img") << "pages";
  MountTmpfs(directory_ / "images" / "below");
  // As a killed CRIU leaves it (design, fact 9).
  const fs::path yard = directory_ / "work" / ".criu.cgyard.x";
  fs::create_directory(yard);
  ASSERT_EQ(::mount(rootfs.c_str(), yard.c_str(), nullptr, MS_BIND, nullptr), 0);
  MountTmpfs(base_ / "migrations" / "0123456789abcdef2");  // another's, whose name goes on

  const base::Status removed = RemoveRunDirectory(directory_);
  EXPECT_TRUE(removed) << removed.error().message();
  EXPECT_FALSE(fs::exists(directory_));
  EXPECT_EQ(base::ReadFile(rootfs / "precious").value_or("erased"), "data");
  EXPECT_THAT(base::MountsBelow(base_).value(),
              testing::ElementsAre(base_ / "migrations" / "0123456789abcdef2"));
}

TEST_F(MountedRunDirectoryTest, ABusyMountIsAnErrorAndNothingIsRemoved) {
  MountTmpfs(directory_ / "images");
  std::ofstream(directory_ / "images" / "pages-1.img") << "pages";
  {
    const auto user = base::Open(directory_ / "images" / "pages-1.img", O_RDONLY);
    ASSERT_TRUE(user);
    const base::Status busy = RemoveRunDirectory(directory_);
    ASSERT_FALSE(busy);
    EXPECT_THAT(busy.error().message(), HasSubstr((directory_ / "images").string()));
    EXPECT_TRUE(fs::exists(directory_ / "images" / "pages-1.img"));
    EXPECT_TRUE(fs::exists(directory_ / "work" / "dump.log"));
  }
  EXPECT_TRUE(RemoveRunDirectory(directory_));
}

TEST_F(MountedRunDirectoryTest, NoDirectoryIsNotEverything) {
  MountTmpfs(base_ / "mount");
  for (const char* path : {"", "/", "//", ".", "relative/path"}) {
    EXPECT_FALSE(RemoveRunDirectory(path)) << path;
  }
  EXPECT_THAT(base::MountsBelow(base_ / "mount").value(), testing::SizeIs(1));
  EXPECT_EQ(::access("/proc/self/status", R_OK), 0);
}

TEST_F(RunDirectoryTest, WithoutOrphansThereIsNothingToAwait) {
  const auto start = steady_clock::now();
  EXPECT_TRUE(AwaitOrphans(directory_, kLong));
  EXPECT_LT(steady_clock::now() - start, kLong / 2);
}

TEST_F(RunDirectoryTest, AwaitsAProcessThatNamesTheDirectory) {
  base::Child& child = SpawnNaming(directory_ / "images", "0.5");
  const auto start = steady_clock::now();
  const base::Status status = AwaitOrphans(directory_, kLong);
  EXPECT_TRUE(status) << status.error().message();
  EXPECT_GE(steady_clock::now() - start, milliseconds(300));
  EXPECT_TRUE(child.WaitFor(milliseconds(0)).value()) << "it has not ended";
}

TEST_F(RunDirectoryTest, AwaitsOneAfterTheOther) {
  base::Child& brief = SpawnNaming(directory_, "0.2");
  base::Child& longer = SpawnNaming(directory_ / "work", "0.6");
  EXPECT_TRUE(AwaitOrphans(directory_, kLong));
  EXPECT_TRUE(brief.WaitFor(milliseconds(0)).value());
  EXPECT_TRUE(longer.WaitFor(milliseconds(0)).value());
}

TEST_F(RunDirectoryTest, GivesUpAfterTheTimeoutAndNamesThePid) {
  const base::Child& child = SpawnNaming(directory_, "600");
  const auto start = steady_clock::now();
  const base::Status status = AwaitOrphans(directory_, milliseconds(300));
  EXPECT_GE(steady_clock::now() - start, milliseconds(300));
  EXPECT_LT(steady_clock::now() - start, kLong / 2);
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message(), AllOf(HasSubstr("pid " + std::to_string(child.pid()) + " "),
                                              HasSubstr(directory_.string())));
  EXPECT_EQ(::kill(child.pid(), 0), 0) << "it must never be killed";
}

TEST_F(RunDirectoryTest, AwaitsACriuThatHasFilesThereOpen) {
  // CRIU's command line names no directory.
  const fs::path program = base_ / "criu";
  fs::copy_file("/bin/sleep", program);
  const auto log = base::Open(directory_ / "work" / "dump.log", O_RDONLY);
  ASSERT_TRUE(log);
  base::Child& criu = Spawn({.argv = {program, "0.5"}, .fds = {{log->get(), 5}}});
  EXPECT_TRUE(AwaitOrphans(directory_, kLong));
  EXPECT_TRUE(criu.WaitFor(milliseconds(0)).value());
}

TEST_F(RunDirectoryTest, AReaderOfALogIsNoOrphan) {
  const auto log = base::Open(directory_ / "work" / "dump.log", O_RDONLY);
  ASSERT_TRUE(log);
  Spawn({.argv = {"sleep", "600"}, .fds = {{log->get(), 5}}});
  EXPECT_TRUE(AwaitOrphans(directory_, milliseconds(500)));
}

TEST_F(RunDirectoryTest, OthersMigrationsAreNotAwaited) {
  SpawnNaming(base_ / "migrations" / "fedcba9876543210", "600");
  EXPECT_TRUE(AwaitOrphans(directory_, milliseconds(500)));
}

}  // namespace
}  // namespace waft::migration
