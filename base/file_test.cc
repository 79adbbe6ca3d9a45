#include "base/file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <utility>

#include "base/proc.h"

namespace waft::base {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class FileTest : public testing::Test {
 protected:
  FileTest() {
    std::string name = (fs::temp_directory_path() / "waft-file-XXXXXX").string();
    root_ = ::mkdtemp(name.data());
  }
  ~FileTest() override {
    // Only what RemoveTree() would refuse is left to be unmounted, and only after a failed test.
    if (const auto mounts = MountsBelow(root_)) {
      for (const fs::path& mount : *mounts) ::umount2(mount.c_str(), MNT_DETACH);
    }
    EXPECT_TRUE(RemoveTree(root_));
  }

  static mode_t ModeOf(const fs::path& path) {
    struct stat facts{};
    EXPECT_EQ(::stat(path.c_str(), &facts), 0) << path;
    return facts.st_mode & 07777;
  }

  fs::path root_;
};

// Mounts are made in a mount namespace of the test's own, so that they end with it, whatever
// happens.
class MountTest : public FileTest {
 protected:
  void SetUp() override {
    if (::unshare(CLONE_NEWNS) != 0) GTEST_SKIP() << "making mounts needs CAP_SYS_ADMIN (root)";
    ASSERT_EQ(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
  }

  fs::path MountTmpfs(const std::string& name, const char* source = "test") const {
    const fs::path path = root_ / name;
    fs::create_directories(path);
    EXPECT_EQ(::mount(source, path.c_str(), "tmpfs", 0, "size=64k"), 0);
    return path;
  }
};

TEST_F(FileTest, ReadsWholeFilesAndProcFiles) {
  const std::string text(200'000, 'x');
  ASSERT_TRUE(WriteFileAtomically(root_ / "big", text, 0600));
  EXPECT_EQ(ReadFile(root_ / "big").value(), text);
  EXPECT_THAT(ReadFile("/proc/self/status").value(), HasSubstr("\nPid:\t"));
}

TEST_F(FileTest, ALongerFileThanAllowedIsAnError) {
  ASSERT_TRUE(WriteFileAtomically(root_ / "f", "12345", 0600));
  EXPECT_EQ(ReadFile(root_ / "f", 5).value(), "12345");
  const auto too_long = ReadFile(root_ / "f", 4);
  ASSERT_FALSE(too_long);
  EXPECT_THAT(too_long.error().message(), HasSubstr("longer than 4 bytes"));
}

TEST_F(FileTest, AMissingFileIsNamed) {
  const auto missing = ReadFile(root_ / "nothing");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().error_number(), ENOENT);
  EXPECT_THAT(missing.error().message(), HasSubstr((root_ / "nothing").string()));
}

TEST_F(FileTest, OpenedFilesAreCloseOnExec) {
  const UniqueFd fd = Open(root_ / "f", O_WRONLY | O_CREAT, 0640).value();
  EXPECT_EQ(::fcntl(fd.get(), F_GETFD), FD_CLOEXEC);
  EXPECT_EQ(ModeOf(root_ / "f") & ~0640U, 0);
}

TEST_F(FileTest, WriteAllGoesOnAfterAShortWrite) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  const std::string sent(1 << 20, 'y');  // more than a pipe holds
  std::string got;
  std::thread reading([&] {
    char buffer[4096];
    for (ssize_t n = 0; (n = ::read(reader.get(), buffer, sizeof(buffer))) > 0;) {
      got.append(buffer, static_cast<size_t>(n));
    }
  });
  EXPECT_TRUE(WriteAll(writer.get(), sent));
  writer.reset();
  reading.join();
  EXPECT_EQ(got, sent);
  EXPECT_EQ(WriteAll(-1, "x").error().error_number(), EBADF);
}

TEST_F(FileTest, AnAtomicWriteReplacesTheFileAndLeavesNothingBeside) {
  const fs::path path = root_ / "state";
  ASSERT_TRUE(WriteFileAtomically(path, "old and longer", 0644));
  const UniqueFd before = Open(path, O_RDONLY).value();
  ASSERT_TRUE(WriteFileAtomically(path, "new", 0600));
  EXPECT_EQ(ReadFile(path).value(), "new");
  EXPECT_EQ(ModeOf(path), 0600);
  // Replaced, not rewritten: whoever has it open keeps the old content.
  EXPECT_EQ(ReadFile("/proc/self/fd/" + std::to_string(before.get())).value(), "old and longer");
  EXPECT_EQ(std::distance(fs::directory_iterator(root_), fs::directory_iterator()), 1);
}

TEST_F(FileTest, AnAtomicWriteHasTheModeAskedFor) {
  const mode_t old_umask = ::umask(077);
  EXPECT_TRUE(WriteFileAtomically(root_ / "shared", "x", 0644));
  ::umask(old_umask);
  EXPECT_EQ(ModeOf(root_ / "shared"), 0644);
  // The temporary file of a writer that was killed must not lend its mode to a key.
  {
    const UniqueFd left = Open(root_ / "key.new", O_WRONLY | O_CREAT, 0644).value();
  }
  EXPECT_TRUE(WriteFileAtomically(root_ / "key", "secret", 0600));
  EXPECT_EQ(ModeOf(root_ / "key"), 0600);
}

TEST_F(FileTest, AnAtomicWriteTakesABareName) {
  const fs::path old = fs::current_path();
  fs::current_path(root_);
  const Status status = WriteFileAtomically("bare", "x", 0600);
  fs::current_path(old);
  EXPECT_TRUE(status) << status.error().message();
  EXPECT_EQ(ReadFile(root_ / "bare").value(), "x");
}

TEST_F(FileTest, AnAtomicWriteThatFailsKeepsTheOldContent) {
  EXPECT_EQ(WriteFileAtomically(root_ / "no" / "such", "x", 0600).error().error_number(), ENOENT);
  fs::create_directory(root_ / "dir");
  ASSERT_TRUE(WriteFileAtomically(root_ / "dir" / "inside", "kept", 0600));
  EXPECT_FALSE(WriteFileAtomically(root_ / "dir", "x", 0600));
  EXPECT_EQ(ReadFile(root_ / "dir" / "inside").value(), "kept");
}

TEST_F(FileTest, AControlFileTakesOneWriteAndIsNeverMade) {
  ASSERT_TRUE(WriteFileAtomically(root_ / "f", "before", 0600));
  ASSERT_TRUE(WriteControlFile(root_ / "f", "now"));
  EXPECT_EQ(ReadFile(root_ / "f").value(), "nowore");
  EXPECT_EQ(WriteControlFile(root_ / "none", "x").error().error_number(), ENOENT);
  EXPECT_FALSE(fs::exists(root_ / "none"));
  const Status refused = WriteControlFile("/proc/self/oom_score_adj", "no number");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().error_number(), EINVAL);
  EXPECT_THAT(refused.error().message(), HasSubstr("'no number' to /proc/self/oom_score_adj"));
}

TEST_F(FileTest, Sha256OfKnownVectors) {
  const auto sum = [&](const std::string& text) {
    EXPECT_TRUE(WriteFileAtomically(root_ / "f", text, 0600));
    return Sha256File(root_ / "f").value();
  };
  // FIPS 180-2, appendix B.
  EXPECT_EQ(sum(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sum("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sum("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(sum(std::string(1'000'000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  EXPECT_EQ(sum(std::string(3 << 20, 'a')).size(), 64);
  EXPECT_FALSE(Sha256File(root_ / "none"));
}

TEST_F(FileTest, RemoveTreeRemovesEverythingBelow) {
  const fs::path tree = root_ / "tree";
  fs::create_directories(tree / "a" / "b");
  ASSERT_TRUE(WriteFileAtomically(tree / "a" / "b" / "f", "x", 0600));
  ASSERT_TRUE(WriteFileAtomically(root_ / "beside", "x", 0600));
  fs::create_symlink(root_ / "beside", tree / "link");
  fs::create_directory_symlink(root_, tree / "up");
  ASSERT_TRUE(RemoveTree(tree));
  EXPECT_FALSE(fs::exists(tree));
  EXPECT_EQ(ReadFile(root_ / "beside").value(), "x") << "links are removed, not followed";
  EXPECT_TRUE(RemoveTree(tree)) << "what is not there is removed";
}

TEST_F(MountTest, RemoveTreeRefusesWhenAMountIsBelow) {
  const fs::path tree = root_ / "tree";
  const fs::path mount = MountTmpfs("tree/deep/mount");
  ASSERT_TRUE(WriteFileAtomically(tree / "first", "x", 0600));
  ASSERT_TRUE(WriteFileAtomically(mount / "precious", "x", 0600));
  const Status refused = RemoveTree(tree);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), ErrorCode::kFatal);
  EXPECT_THAT(refused.error().message(), HasSubstr(mount.string() + " is mounted there"));
  EXPECT_TRUE(fs::exists(mount / "precious"));
  EXPECT_TRUE(fs::exists(tree / "first")) << "nothing is removed, not even beside the mount";
  ASSERT_EQ(::umount(mount.c_str()), 0);
  EXPECT_TRUE(RemoveTree(tree));
}

TEST_F(MountTest, RemoveTreeSeesBindMountsLinksAndNamelessSources) {
  fs::create_directories(root_ / "rootfs");
  ASSERT_TRUE(WriteFileAtomically(root_ / "rootfs" / "precious", "x", 0600));
  fs::create_directories(root_ / "run" / "criu-root");
  ASSERT_EQ(::mount((root_ / "rootfs").c_str(), (root_ / "run" / "criu-root").c_str(), nullptr,
                    MS_BIND, nullptr),
            0);
  EXPECT_FALSE(RemoveTree(root_ / "run"));
  EXPECT_FALSE(RemoveTree(root_ / "run" / "criu-root")) << "the mount point itself";
  fs::create_directory_symlink(root_ / "run", root_ / "link");
  EXPECT_FALSE(RemoveTree(root_ / "link" / "criu-root"));
  MountTmpfs("nameless/mount", "");
  EXPECT_FALSE(RemoveTree(root_ / "nameless"));
  EXPECT_TRUE(fs::exists(root_ / "rootfs" / "precious"));
  // A name that merely begins the same is not below.
  fs::create_directories(root_ / "run2");
  MountTmpfs("run22");
  EXPECT_TRUE(RemoveTree(root_ / "run2"));
}

TEST_F(MountTest, MountsBelowAreDeepestFirst) {
  EXPECT_THAT(MountsBelow(root_).value(), IsEmpty());
  const fs::path outer = MountTmpfs("outer");
  const fs::path inner = MountTmpfs("outer/inner");
  const fs::path odd = MountTmpfs("with space\\and\ttab");
  EXPECT_THAT(MountsBelow(root_).value(), ElementsAre(odd, inner, outer));
  EXPECT_THAT(MountsBelow(inner).value(), ElementsAre(inner));
  const auto mounts = MountsBelow(root_).value();
  for (const fs::path& mount : mounts) {
    EXPECT_EQ(::umount(mount.c_str()), 0) << mount;
  }
}

TEST_F(MountTest, ATmpfsHoldsWhatItWasMadeForAndNoMore) {
  const TmpfsMount mount = TmpfsMount::Create(root_ / "a" / "images", 256 << 10).value();
  struct statfs facts{};
  ASSERT_EQ(::statfs(mount.path().c_str(), &facts), 0);
  EXPECT_EQ(facts.f_type, 0x01021994);  // TMPFS_MAGIC
  EXPECT_EQ(ModeOf(mount.path()), 0700);
  const UniqueFd fd = Open(mount.path() / "f", O_WRONLY | O_CREAT).value();
  EXPECT_TRUE(WriteAll(fd.get(), std::string(200 << 10, 'x')));
  const Status full = WriteAll(fd.get(), std::string(100 << 10, 'x'));
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().error_number(), ENOSPC);
}

TEST_F(MountTest, ATmpfsGoesWithItsOwner) {
  const fs::path path = root_ / "images";
  {
    const TmpfsMount mount = TmpfsMount::Create(path, 1 << 20).value();
    EXPECT_THAT(MountsBelow(path).value(), ElementsAre(path));
  }
  EXPECT_THAT(MountsBelow(root_).value(), IsEmpty());
  EXPECT_FALSE(fs::exists(path));
}

TEST_F(MountTest, ATmpfsInUseIsDetached) {
  const fs::path path = root_ / "images";
  UniqueFd open_file;
  {
    const TmpfsMount mount = TmpfsMount::Create(path, 1 << 20).value();
    open_file = Open(path / "f", O_RDWR | O_CREAT).value();
  }
  EXPECT_THAT(MountsBelow(root_).value(), IsEmpty());
  EXPECT_FALSE(fs::exists(path));
  EXPECT_TRUE(WriteAll(open_file.get(), "still there for its user"));
}

TEST_F(MountTest, AMovedTmpfsHasOneOwner) {
  TmpfsMount first = TmpfsMount::Create(root_ / "first", 1 << 20).value();
  {
    TmpfsMount moved = std::move(first);
    EXPECT_EQ(moved.path(), root_ / "first");
    TmpfsMount second = TmpfsMount::Create(root_ / "second", 1 << 20).value();
    moved = std::move(second);  // ends "first"
    EXPECT_THAT(MountsBelow(root_).value(), ElementsAre(root_ / "second"));
  }
  EXPECT_THAT(MountsBelow(root_).value(), IsEmpty());
  first.Unmount();  // NOLINT(bugprone-use-after-move): a moved-from mount owns nothing
}

TEST_F(MountTest, ATmpfsWhereNoneCanBeIsAnError) {
  ASSERT_TRUE(WriteFileAtomically(root_ / "file", "x", 0600));
  EXPECT_FALSE(TmpfsMount::Create(root_ / "file", 1 << 20));
  EXPECT_FALSE(TmpfsMount::Create(root_ / "file" / "below", 1 << 20));
}

}  // namespace
}  // namespace waft::base
