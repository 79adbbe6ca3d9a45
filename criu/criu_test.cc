#include "criu/criu.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/file.h"

namespace waft::criu {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

struct VersionCase {
  const char* version;
  bool enough;
};

class VersionTest : public testing::TestWithParam<VersionCase> {};

TEST_P(VersionTest, IsEnoughFrom42On) {
  EXPECT_EQ(VersionIsEnough(GetParam().version), GetParam().enough) << GetParam().version;
}

INSTANTIATE_TEST_SUITE_P(Table, VersionTest,
                         testing::Values(VersionCase{"4.2", true}, VersionCase{"4.2.1", true},
                                         VersionCase{"4.10", true}, VersionCase{"5.0", true},
                                         VersionCase{"5", true}, VersionCase{"10.0", true},
                                         VersionCase{"4.2-rc1", true}, VersionCase{"4.1.1", false},
                                         VersionCase{"4.1", false}, VersionCase{"4", false},
                                         VersionCase{"3.17.1", false}, VersionCase{"3.99", false},
                                         VersionCase{"garbage", false}, VersionCase{"", false},
                                         VersionCase{".2", false}, VersionCase{"-5.0", false},
                                         VersionCase{"99999999999.0", false}));

class LogErrorsTest : public testing::Test {
 protected:
  LogErrorsTest() {
    std::string name = (fs::temp_directory_path() / "waft-criu-test-XXXXXX").string();
    directory_ = ::mkdtemp(name.data());
  }
  ~LogErrorsTest() override { EXPECT_TRUE(base::RemoveTree(directory_)); }

  std::string ErrorsOf(const std::string& log) const {
    std::ofstream(directory_ / "dump.log") << log;
    return LogErrors(directory_ / "dump.log");
  }

  fs::path directory_;
};

TEST_F(LogErrorsTest, OnlyErrorLinesAreKept) {
  EXPECT_EQ(ErrorsOf("(00.000001) Version: 4.2.1 (gitid 0)\n"
                     "(00.000100) Warn  (criu/apparmor.c:421): apparmor namespace not found\n"
                     "(00.010000) Error (criu/files-reg.c:1831): Can't lookup mount=29 for fd=1\n"
                     "(00.020000) Error (criu/cr-dump.c:2111): Dumping FAILED.\n"),
            "(00.010000) Error (criu/files-reg.c:1831): Can't lookup mount=29 for fd=1 | "
            "(00.020000) Error (criu/cr-dump.c:2111): Dumping FAILED.");
}

TEST_F(LogErrorsTest, OfManyTheFirstAndTheLastThreeAreKept) {
  std::string log;
  for (int i = 1; i <= 9; ++i) {
    log += "Error (" + std::to_string(i) + ")\n(00.1) more on " + std::to_string(i) + "\n";
  }
  EXPECT_EQ(ErrorsOf(log), "Error (1) | Error (7) | Error (8) | Error (9)");
  EXPECT_EQ(ErrorsOf("Error (1)\nError (2)\nError (3)\nError (4)\n"),
            "Error (1) | Error (2) | Error (3) | Error (4)");
  EXPECT_EQ(ErrorsOf("Error (1)\nError (2)\nError (3)\nError (4)\nError (5)"),
            "Error (1) | Error (3) | Error (4) | Error (5)");
}

TEST_F(LogErrorsTest, NoErrorsAndNoLogAreEmpty) {
  EXPECT_EQ(ErrorsOf("(00.000001) Version: 4.2.1\nthis is no Error\n"), "");
  EXPECT_EQ(ErrorsOf(""), "");
  EXPECT_EQ(LogErrors(directory_ / "none.log"), "");
}

// The CRIU of this machine, as waft finds it.
class RealCriuTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "CRIU needs root";
    if (!Version()) GTEST_SKIP() << "no CRIU here: " << Version().error().message();
  }
};

TEST_F(RealCriuTest, SaysItsVersionAndThatItWorks) {
  const auto version = Version();
  ASSERT_TRUE(version);
  EXPECT_TRUE(VersionIsEnough(*version)) << *version;
  const base::Status check = Check();
  EXPECT_TRUE(check) << check.error().message();
}

TEST_F(RealCriuTest, OurOwnCpuFits) {
  const auto image = CpuinfoImage();
  ASSERT_TRUE(image) << image.error().message();
  EXPECT_THAT(*image, Not(IsEmpty()));
  const base::Status fits = CheckCpuinfo(*image);
  EXPECT_TRUE(fits) << fits.error().message();
}

TEST_F(RealCriuTest, ADamagedCpuImageIsRefused) {
  const auto image = CpuinfoImage();
  ASSERT_TRUE(image);
  EXPECT_FALSE(CheckCpuinfo(""));
  EXPECT_FALSE(CheckCpuinfo("no image at all"));
  EXPECT_FALSE(CheckCpuinfo(image->substr(0, image->size() / 2)));
  std::string other_magic = *image;
  other_magic[0] ^= 0x55;
  const base::Status refused = CheckCpuinfo(other_magic);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), base::ErrorCode::kUnsupported);
  EXPECT_THAT(refused.error().message(), HasSubstr("magic")) << "not CRIU's own words";
}

TEST_F(RealCriuTest, ACpuThatHasMoreIsRefused) {
  auto image = CpuinfoImage();
  ASSERT_TRUE(image);
#ifndef __x86_64__
  GTEST_SKIP() << "the image of another architecture looks different";
#endif
  // xfeatures_mask (field 8, a varint: images/cpuinfo.proto) gets all bits that its length allows.
  size_t at = image->rfind('\x40');
  ASSERT_NE(at, std::string::npos) << "no xfeatures_mask: a CPU without XSAVE?";
  do {
    ++at;
  } while (((*image)[at] & 0x80) != 0);
  (*image)[at] = '\x7f';
  const base::Status refused = CheckCpuinfo(*image);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message(), HasSubstr("xfeatures"));
}

TEST_F(RealCriuTest, NothingIsLeftInTheTemporaryDirectory) {
  const auto count = [] {
    int left = 0;
    for (const auto& entry : fs::directory_iterator(fs::temp_directory_path())) {
      left += entry.path().filename().string().starts_with("waft-criu-") ? 1 : 0;
    }
    return left;
  };
  // A directory of its own, since others test here at the same time.
  std::string own = (fs::temp_directory_path() / "waft-test-tmp-XXXXXX").string();
  ASSERT_NE(::mkdtemp(own.data()), nullptr);
  ::setenv("TMPDIR", own.c_str(), 1);
  EXPECT_TRUE(CpuinfoImage());
  EXPECT_FALSE(CheckCpuinfo("no image"));
  EXPECT_EQ(count(), 0);
  ::unsetenv("TMPDIR");
  EXPECT_TRUE(base::RemoveTree(own));
}

// Sets WAFT_CRIU for as long as it lives.
class OtherCriu {
 public:
  explicit OtherCriu(const char* path) {
    if (const char* before = std::getenv("WAFT_CRIU"); before != nullptr) before_ = before;
    ::setenv("WAFT_CRIU", path, 1);
  }
  OtherCriu(const OtherCriu&) = delete;
  OtherCriu& operator=(const OtherCriu&) = delete;
  ~OtherCriu() {
    before_.empty() ? ::unsetenv("WAFT_CRIU") : ::setenv("WAFT_CRIU", before_.c_str(), 1);
  }

 private:
  std::string before_;
};

TEST(CriuPathTest, TheEnvironmentDecides) {
  const OtherCriu other("/nowhere/criu");
  EXPECT_EQ(CriuPath(), "/nowhere/criu");
  const auto version = Version();
  ASSERT_FALSE(version);
  EXPECT_THAT(version.error().message(), HasSubstr("/nowhere/criu"));
}

TEST(CriuPathTest, AProgramThatIsNoCriuHasNoVersion) {
  const OtherCriu other("/bin/true");
  const auto version = Version();
  ASSERT_FALSE(version);
  EXPECT_THAT(version.error().message(), HasSubstr("printed no version"));
}

}  // namespace
}  // namespace waft::criu
