#include "restore/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/proc.h"
#include "criu/criu.h"

namespace waft::restore {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint64_t kMib = 1 << 20;

class FileObjectionsTest : public testing::Test {
 protected:
  FileObjectionsTest() {
    std::string name = (fs::temp_directory_path() / "waft-admission-XXXXXX").string();
    directory_ = ::mkdtemp(name.data());
    file_ = directory_ / "file";
    std::ofstream(file_) << "abc";
    EXPECT_EQ(::chmod(file_.c_str(), 0640), 0);
    EXPECT_EQ(::chmod(directory_.c_str(), 0750), 0);
  }
  ~FileObjectionsTest() override { EXPECT_TRUE(base::RemoveTree(directory_)); }

  // Adds what the source says of `path`: our own file as it was made, unless the test changes it.
  v1::FileFact* Add(const fs::path& path) {
    v1::FileFact* fact = workload_.add_files();
    fact->set_path(path);
    if (path == directory_) {
      fact->set_mode(S_IFDIR | 0750);
    } else {
      fact->set_mode(S_IFREG | 0640);
      // sha256 of "abc": FIPS 180-2, B.1.
      fact->set_sha256("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
    return fact;
  }

  fs::path directory_;
  fs::path file_;
  v1::WorkloadSpec workload_;
};

TEST_F(FileObjectionsTest, TheSameFilesAreWelcome) {
  EXPECT_THAT(FileObjections(workload_), IsEmpty());
  Add(file_);
  Add(directory_);
  EXPECT_THAT(FileObjections(workload_), IsEmpty());
}

TEST_F(FileObjectionsTest, AMissingFileIsNamed) {
  Add(directory_ / "none");
  EXPECT_THAT(FileObjections(workload_),
              ElementsAre(AllOf(HasSubstr((directory_ / "none").string()), HasSubstr("missing"))));
}

TEST_F(FileObjectionsTest, AnotherModeIsNamed) {
  Add(file_)->set_mode(S_IFREG | 0600);
  EXPECT_THAT(FileObjections(workload_),
              ElementsAre(HasSubstr("mode 100640 here, 100600 at the source")));
}

TEST_F(FileObjectionsTest, AnotherKindIsNamed) {
  Add(file_)->set_mode(S_IFDIR | 0640);
  Add(directory_)->set_mode(S_IFREG | 0750);
  EXPECT_THAT(FileObjections(workload_), ElementsAre(HasSubstr("differs"), HasSubstr("differs")));
}

TEST_F(FileObjectionsTest, OtherContentOfTheSameSizeIsNamed) {
  Add(file_);
  std::ofstream(file_) << "abd";
  EXPECT_THAT(FileObjections(workload_),
              ElementsAre(AllOf(HasSubstr(file_.string()), HasSubstr("content"),
                                HasSubstr("ba7816bf8f01.. at the source"))));
}

TEST_F(FileObjectionsTest, AFileWithoutADigestIsNotTakenOnTrust) {
  Add(file_)->clear_sha256();
  EXPECT_THAT(FileObjections(workload_), ElementsAre(HasSubstr("content")));
}

TEST_F(FileObjectionsTest, EveryObjectionIsMade) {
  Add(directory_ / "none");
  Add(file_);
  Add(file_)->set_sha256("00");
  Add("")->set_mode(0);
  EXPECT_THAT(FileObjections(workload_),
              ElementsAre(HasSubstr("missing"), HasSubstr("content"), HasSubstr("missing")));
}

std::vector<std::string> Room(uint64_t memory_bytes, uint64_t image_bytes, uint64_t room_bytes) {
  v1::WorkloadSpec workload;
  workload.set_memory_bytes(memory_bytes);
  workload.set_image_bytes(image_bytes);
  return RoomObjections(workload, room_bytes);
}

TEST(RoomObjectionsTest, WhatFitsIsWelcome) {
  EXPECT_THAT(Room(0, 0, 0), IsEmpty());
  EXPECT_THAT(Room(kMib, kMib, kMib), IsEmpty());
}

TEST(RoomObjectionsTest, TheImageSetMustFitItsRoom) {
  EXPECT_THAT(Room(0, kMib + 1, kMib),
              ElementsAre(AllOf(HasSubstr("2 MiB"), HasSubstr("--image-room-mib"))));
}

TEST(RoomObjectionsTest, MemoryAndImagesMustFitTogether) {
  const uint64_t available = base::AvailableMemoryBytes().value();
  const uint64_t most = std::numeric_limits<uint64_t>::max();
  // Either alone would fit.
  EXPECT_THAT(Room(available * 3 / 5, available * 3 / 5, most),
              ElementsAre(HasSubstr("available")));
  EXPECT_THAT(Room(available * 2, 0, most), ElementsAre(HasSubstr("available")));
}

TEST(RoomObjectionsTest, FiguresThatOverflowAreTooMuch) {
  const uint64_t most = std::numeric_limits<uint64_t>::max();
  EXPECT_THAT(Room(most, 2, kMib), ElementsAre(HasSubstr("17592186044416 MiB")));
  EXPECT_THAT(Room(1ULL << 63, 1ULL << 63, most), ElementsAre(HasSubstr("available")));
}

class FactObjectionsTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "CRIU needs root";
    if (!criu::Version()) GTEST_SKIP() << "no CRIU here: " << criu::Version().error().message();
    auto facts = OwnFacts();
    ASSERT_TRUE(facts) << facts.error().message();
    facts_ = std::move(*facts);
  }
  v1::HostFacts facts_;
};

TEST_F(FactObjectionsTest, AHostLikeOursIsWelcome) {
  EXPECT_EQ(facts_.page_size(), static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)));
  EXPECT_FALSE(facts_.kernel().empty());
  EXPECT_TRUE(criu::VersionIsEnough(facts_.criu_version())) << facts_.criu_version();
  EXPECT_THAT(FactObjections(facts_), IsEmpty());
  // Its kernel may be another.
  facts_.set_kernel("6.12.0-elsewhere");
  EXPECT_THAT(FactObjections(facts_), IsEmpty());
}

TEST_F(FactObjectionsTest, AnotherArchitectureIsNamed) {
  const std::string ours = facts_.architecture();
  facts_.set_architecture("riscv128");
  EXPECT_THAT(FactObjections(facts_), ElementsAre(AllOf(HasSubstr("riscv128"), HasSubstr(ours))));
}

TEST_F(FactObjectionsTest, AnotherPageSizeIsNamed) {
  facts_.set_page_size(facts_.page_size() * 16);
  EXPECT_THAT(FactObjections(facts_), ElementsAre(HasSubstr("page sizes")));
}

TEST_F(FactObjectionsTest, ADamagedCpuImageIsAnObjection) {
  facts_.set_cpuinfo_image(facts_.cpuinfo_image().substr(0, 20));
  EXPECT_THAT(FactObjections(facts_), ElementsAre(HasSubstr("this CPU lacks")));
  facts_.clear_cpuinfo_image();
  EXPECT_THAT(FactObjections(facts_), ElementsAre(HasSubstr("this CPU lacks")));
}

TEST_F(FactObjectionsTest, NothingButDefaultsIsRefused) {
  EXPECT_THAT(FactObjections({}), Not(IsEmpty()));
}

TEST_F(FactObjectionsTest, AnOldCriuHereIsNamed) {
  std::string script = (fs::temp_directory_path() / "waft-old-criu-XXXXXX").string();
  base::UniqueFd fd(::mkstemp(script.data()));
  ASSERT_TRUE(base::WriteAll(fd.get(), "#!/bin/sh\necho 'Version: 3.17.1'\n"));
  ASSERT_EQ(::fchmod(fd.get(), 0755), 0);
  fd.reset();  // a file that is open for writing cannot be executed
  ::setenv("WAFT_CRIU", script.c_str(), 1);
  EXPECT_THAT(FactObjections(facts_),
              Contains(AllOf(HasSubstr("3.17.1"), HasSubstr("scripts/setup"))));
  ::setenv("WAFT_CRIU", "/nowhere/criu", 1);
  EXPECT_THAT(FactObjections(facts_), ElementsAre(HasSubstr("no working CRIU")));
  ::unsetenv("WAFT_CRIU");
  ::unlink(script.c_str());
}

}  // namespace
}  // namespace waft::restore
