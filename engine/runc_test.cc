#include "engine/runc.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <utility>

#include "base/file.h"

namespace waft::engine {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;
using testing::SizeIs;
using testing::UnorderedElementsAre;

class DirectoryTest : public testing::Test {
 protected:
  DirectoryTest() {
    std::string name = (fs::temp_directory_path() / "waft-runc-XXXXXX").string();
    directory_ = fs::canonical(::mkdtemp(name.data()));
  }
  ~DirectoryTest() override {
    // Mounts are left below only by a test that failed.
    if (const auto mounts = base::MountsBelow(directory_)) {
      for (const fs::path& mount : *mounts) ::umount2(mount.c_str(), MNT_DETACH);
    }
    EXPECT_TRUE(base::RemoveTree(directory_));
  }
  fs::path directory_;
};

class BundleTest : public DirectoryTest {
 protected:
  base::Result<Bundle> Read(const std::string& config) const {
    std::ofstream(directory_ / "config.json") << config;
    return Runc::ReadBundle(directory_);
  }
};

TEST_F(BundleTest, AUsualOneIsReadWhole) {
  const auto bundle = Read(R"({
    "root": {"path": "rootfs"},
    "process": {"terminal": false},
    "mounts": [
      {"destination": "/proc", "type": "proc", "source": "proc"},
      {"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "rw"]},
      {"destination": "/etc/hosts", "source": "hosts", "options": ["ro", "bind"]},
      {"destination": "/up", "type": "none", "source": "../up/./x", "options": ["rbind"]},
      {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]}],
    "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"},
                             {"type": "network", "path": "/run/netns/web"}]}})");
  ASSERT_TRUE(bundle) << bundle.error().message();
  EXPECT_EQ(bundle->directory, directory_);
  EXPECT_EQ(bundle->rootfs, directory_ / "rootfs");
  EXPECT_EQ(bundle->network_path, "/run/netns/web");
  EXPECT_TRUE(bundle->has_network_namespace);
  EXPECT_TRUE(bundle->has_pid_namespace);
  EXPECT_FALSE(bundle->terminal);
  EXPECT_THAT(
      bundle->binds,
      UnorderedElementsAre(Pair("/data", "/srv/data"), Pair("/etc/hosts", directory_ / "hosts"),
                           Pair("/up", directory_.parent_path() / "up" / "x")));
}

TEST_F(BundleTest, AnAbsoluteRootIsTakenAsItIs) {
  EXPECT_EQ(Read(R"({"root": {"path": "/srv/web/rootfs"}})")->rootfs, "/srv/web/rootfs");
  EXPECT_EQ(Read(R"({"root": {"path": "../other/rootfs"}})")->rootfs,
            directory_.parent_path() / "other/rootfs");
}

TEST_F(BundleTest, ItsNetworkIsItsOwnANamedOneOrTheHosts) {
  const auto own = Read(R"({"linux": {"namespaces": [{"type": "network"}]}})");
  EXPECT_TRUE(own->has_network_namespace);
  EXPECT_EQ(own->network_path, "");
  EXPECT_FALSE(own->has_pid_namespace);
  const auto hosts = Read(R"({"linux": {"namespaces": [{"type": "pid"}]}})");
  EXPECT_FALSE(hosts->has_network_namespace);
  EXPECT_TRUE(hosts->has_pid_namespace);
}

TEST_F(BundleTest, ATerminalIsSeen) {
  EXPECT_TRUE(Read(R"({"process": {"terminal": true}})")->terminal);
  EXPECT_FALSE(Read(R"({"process": {"terminal": "true"}})")->terminal);
  EXPECT_FALSE(Read("{}")->terminal);
}

TEST_F(BundleTest, WhatIsNoObjectIsABadArgument) {
  for (const char* config : {"", "{", "[]", "null", "7", "\"text\"", "{\"root\": }", "\xff\xfe",
                             "{\"root\": \"\xff\"}"}) {
    const auto bundle = Read(config);
    ASSERT_FALSE(bundle) << config;
    EXPECT_EQ(bundle.error().code(), base::ErrorCode::kBadArgument) << config;
    EXPECT_THAT(bundle.error().message(), HasSubstr("config.json")) << config;
  }
}

TEST_F(BundleTest, NoConfigIsAnError) { EXPECT_FALSE(Runc::ReadBundle(directory_)); }

TEST_F(BundleTest, MembersOfTheWrongTypeAreAsGoodAsNone) {
  // Every kind of value in every place that is looked at.
  for (const char* value : {"null", "true", "7", "\"text\"", "[]", "{}", "[[]]", "[null, 7, \"x\"]",
                            R"({"path": ["x"]})", R"({"namespaces": {"type": "pid"}})",
                            R"([{"type": ["bind"], "options": {"x": "bind"}, "source": 7}])",
                            R"({"namespaces": [{"type": 7, "path": []}, [], "network"]})",
                            R"([{"options": "bind"}, {"options": ["ro", ["bind"], null]}])"}) {
    for (const char* member : {"root", "process", "linux", "mounts"}) {
      const std::string config = fmt::format("{{\"{}\": {}}}", member, value);
      const auto bundle = Read(config);
      ASSERT_TRUE(bundle) << config << ": " << bundle.error().message();
      EXPECT_TRUE(bundle->rootfs.is_absolute()) << config;
      EXPECT_FALSE(bundle->terminal) << config;
      EXPECT_FALSE(bundle->has_network_namespace) << config;
    }
  }
}

TEST_F(BundleTest, ADeepNestIsNoEnd) {
  const std::string nest = std::string(500'000, '[') + std::string(500'000, ']');
  for (const char* member : {"root", "mounts", "linux"}) {
    EXPECT_TRUE(Read(fmt::format("{{\"{}\": {}}}", member, nest))) << member;
  }
  EXPECT_TRUE(Read(fmt::format(R"({{"mounts": [{{"options": {}}}]}})", nest)));
}

TEST(CheckIdTest, IsRuncsOwnRule) {
  for (const char* id : {"web", "web-1", "a.b_c+d", "0", "...", "a..b", "-x"}) {
    EXPECT_TRUE(CheckId(id)) << id;
  }
  EXPECT_TRUE(CheckId(std::string(1024, 'x')));
  for (const char* id : {"", ".", "..", "a/b", "/", "../web", "web ", "wéb", "a\nb", "a:b", "a*"}) {
    const base::Status status = CheckId(id);
    ASSERT_FALSE(status) << id;
    EXPECT_EQ(status.error().code(), base::ErrorCode::kBadArgument);
  }
  EXPECT_FALSE(CheckId(std::string(1025, 'x')));
  EXPECT_FALSE(CheckId(std::string_view("a\0b", 3)));
}

TEST(CheckPathTest, OnlyAnAbsolutePathInItsShortestForm) {
  for (const char* path : {"/", "/srv/web", "/srv/..web", "/srv/web.d"}) {
    EXPECT_TRUE(CheckPath(path)) << path;
  }
  for (const char* path :
       {"", "srv", "./srv", "/srv/../etc", "/srv/./web", "/..", "/srv/.", "../srv"}) {
    EXPECT_FALSE(CheckPath(path)) << path;
  }
  EXPECT_FALSE(CheckPath(std::string("/srv\0/web", 9)));
}

TEST(CommandTest, CheckpointLeavesTheTasksToLiveOn) {
  // What becomes of them is decided later, and not by runc.
  const base::Command command = Runc("/run/runc").CheckpointCommand("web", "/i", "/w");
  EXPECT_THAT(command.argv, testing::IsSupersetOf({"--leave-running", "--tcp-established"}));
  EXPECT_EQ(command.argv.back(), "web");
}

// The real runc, with a root of its own, in a mount namespace of the test's own.
class RealRuncTest : public DirectoryTest {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "runc needs root";
    const auto version = base::RunFor({.argv = {"runc", "--version"}}, std::chrono::seconds(20));
    if (!version || !version->exit.Ok()) GTEST_SKIP() << "no runc here";
    if (!fs::exists("/bin/busybox")) GTEST_SKIP() << "no /bin/busybox (busybox-static) here";
    if (::unshare(CLONE_NEWNS) != 0) GTEST_SKIP() << "mounts need CAP_SYS_ADMIN";
    ASSERT_EQ(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
    fs::create_directories(Rootfs() / "bin");
    fs::create_directories(Rootfs() / "proc");
    fs::copy_file("/bin/busybox", Rootfs() / "bin/busybox");
    std::ofstream(Rootfs() / "precious") << "data";
    std::ofstream(directory_ / "bundle/config.json") << R"({
      "ociVersion": "1.0.2",
      "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/busybox", "sleep", "600"],
                  "cwd": "/", "terminal": false},
      "root": {"path": "rootfs"},
      "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
      "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network"},
                               {"type": "ipc"}, {"type": "uts"}],
                "resources": {"devices": [{"allow": true, "access": "rwm"}]}}})";
  }

  void TearDown() override {
    for (const auto& id : started_) Raw({"delete", "--force", id});
  }

  fs::path Rootfs() const { return directory_ / "bundle/rootfs"; }
  fs::path Root() const { return directory_ / "root"; }

  base::RunResult Raw(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {"runc", "--root", Root()});
    // runc's init keeps the pipes of a Run() that captures; Run() returns when runc itself has.
    const auto run = base::RunFor({.argv = std::move(arguments)}, std::chrono::seconds(60));
    EXPECT_TRUE(run) << run.error().message();
    return run.value_or(base::RunResult{.exit = {.code = -1}});
  }

  void StartContainer(const std::string& id) {
    started_.push_back(id);
    const base::RunResult run = Raw({"run", "--detach", "--bundle", directory_ / "bundle", id});
    ASSERT_TRUE(run.exit.Ok()) << run.err;
  }

  // Ends its init and waits until runc sees it.
  void EndContainer(const std::string& id) const {
    const auto container = runc_.Inspect(id);
    ASSERT_TRUE(container) << container.error().message();
    ASSERT_EQ(::kill(container->pid, SIGKILL), 0);
    for (int i = 0; i < 500 && runc_.Inspect(id)->state != "stopped"; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ASSERT_EQ(runc_.Inspect(id)->state, "stopped");
  }

  // What a killed `runc restore` leaves behind (design, fact 9).
  void LeaveBindMount(const std::string& id) const {
    const fs::path left = Root() / id / "criu-root";
    fs::create_directories(left);
    ASSERT_EQ(::mount(Rootfs().c_str(), left.c_str(), nullptr, MS_BIND | MS_REC, nullptr), 0);
    ASSERT_TRUE(fs::exists(left / "precious"));
  }

  Runc runc_{Root()};
  std::vector<std::string> started_;
};

TEST_F(RealRuncTest, ThereAreNoneAtFirst) {
  const auto list = runc_.List();
  ASSERT_TRUE(list) << list.error().message();
  EXPECT_THAT(*list, IsEmpty());
  const auto none = runc_.Inspect("web");
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code(), base::ErrorCode::kBadArgument);
  EXPECT_THAT(none.error().message(), AllOf(HasSubstr("'web'"), HasSubstr("there are none")));
  EXPECT_FALSE(runc_.Exists("web"));
  EXPECT_FALSE(runc_.Exists(""));
  EXPECT_FALSE(runc_.Exists(".."));
}

TEST_F(RealRuncTest, AContainerIsListedInspectedAndDeleted) {
  StartContainer("web");
  StartContainer("db");
  EXPECT_THAT(*runc_.List(), SizeIs(2));
  const auto web = runc_.Inspect("web");
  ASSERT_TRUE(web) << web.error().message();
  EXPECT_EQ(web->id, "web");
  EXPECT_EQ(web->state, "running");
  EXPECT_EQ(::kill(web->pid, 0), 0);
  EXPECT_THAT(base::ReadFile(fmt::format("/proc/{}/cmdline", web->pid)).value(),
              HasSubstr("sleep"));
  EXPECT_EQ(web->bundle, directory_ / "bundle");
  EXPECT_EQ(web->rootfs, Rootfs());
  EXPECT_TRUE(runc_.Exists("web"));
  const auto none = runc_.Inspect("cache");
  ASSERT_FALSE(none);
  EXPECT_THAT(none.error().message(), AllOf(HasSubstr("web"), HasSubstr("db")));

  EndContainer("web");
  EXPECT_EQ(runc_.Inspect("web")->pid, 0);
  const base::Status deleted = runc_.Delete("web");
  EXPECT_TRUE(deleted) << deleted.error().message();
  EXPECT_FALSE(runc_.Exists("web"));
  EXPECT_TRUE(runc_.Exists("db"));
  EXPECT_TRUE(fs::exists(Rootfs() / "precious"));
}

TEST_F(RealRuncTest, DeletingNothingIsFine) {
  EXPECT_TRUE(runc_.Delete("web"));
  EXPECT_FALSE(runc_.Delete("..")) << "no id, and the parent of everything";
  EXPECT_FALSE(runc_.Delete(""));
}

TEST_F(RealRuncTest, TheRootfsSurvivesABindMountLeftInTheStateDirectory) {
  StartContainer("web");
  EndContainer("web");
  LeaveBindMount("web");
  const base::Status deleted = runc_.Delete("web");
  EXPECT_TRUE(deleted) << deleted.error().message();
  EXPECT_FALSE(runc_.Exists("web"));
  EXPECT_EQ(base::ReadFile(Rootfs() / "precious").value_or("erased"), "data");
  EXPECT_TRUE(fs::exists(Rootfs() / "bin/busybox"));
  EXPECT_THAT(base::MountsBelow(directory_).value(), IsEmpty());
}

TEST_F(RealRuncTest, AStateDirectoryWithoutAStateIsRemoved) {
  fs::create_directories(Root() / "half/empty");
  std::ofstream(Root() / "half/file") << "x";
  LeaveBindMount("half");
  // One mount on top of another.
  ASSERT_EQ(::mount("test", (Root() / "half/criu-root/proc").c_str(), "tmpfs", 0, "size=64k"), 0);
  EXPECT_TRUE(runc_.Exists("half"));
  EXPECT_THAT(*runc_.List(), IsEmpty());
  const base::Status deleted = runc_.Delete("half");
  EXPECT_TRUE(deleted) << deleted.error().message();
  EXPECT_FALSE(fs::exists(Root() / "half"));
  EXPECT_EQ(base::ReadFile(Rootfs() / "precious").value_or("erased"), "data");
  EXPECT_THAT(base::MountsBelow(directory_).value(), IsEmpty());
}

}  // namespace
}  // namespace waft::engine
