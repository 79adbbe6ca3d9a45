#include "transfer/image_writer.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <fstream>

#include "base/file.h"

namespace waft::transfer {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

FileEnd EndOf(std::string_view content) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(content.data(), content.size()));
  FileEnd end;
  std::ranges::copy(canonical.digest, end.checksum.begin());
  return end;
}

class ImageWriterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "waft-writer-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root_ = name;
    directory_ = root_ / "images";
    fs::create_directory(directory_);
    writer_ = MakeWriter(1000);
  }
  void TearDown() override {
    writer_.reset();
    fs::remove_all(root_);
  }

  std::unique_ptr<ImageWriter> MakeWriter(uint64_t limit_bytes) {
    auto fd = base::Open(directory_, O_RDONLY | O_DIRECTORY);
    EXPECT_TRUE(fd);
    return std::make_unique<ImageWriter>(std::move(*fd), directory_, limit_bytes);
  }

  // Applies all; the last one must fail with `error_number`, and its message is returned.
  std::string FailureOf(const std::vector<Frame>& frames, int error_number) {
    for (size_t i = 0; i + 1 < frames.size(); ++i) {
      const auto status = writer_->Apply(frames[i]);
      EXPECT_TRUE(status) << "frame " << i << ": " << status.error().message();
    }
    const auto status = writer_->Apply(frames.back());
    EXPECT_FALSE(status);
    if (status) return "";
    EXPECT_EQ(status.error().error_number(), error_number) << status.error().message();
    return status.error().message();
  }

  size_t FilesLeft() const {
    return static_cast<size_t>(
        std::distance(fs::directory_iterator(directory_), fs::directory_iterator()));
  }

  fs::path root_;
  fs::path directory_;
  std::unique_ptr<ImageWriter> writer_;
};

TEST_F(ImageWriterTest, WritesWhatTheFramesSay) {
  for (const Frame& frame :
       std::vector<Frame>{Begin{2, 6}, FileBegin{6, "a"}, Data{"abc"}, Data{"def"}, EndOf("abcdef"),
                          FileBegin{0, "empty"}, EndOf(""), Finish{2, 6}}) {
    ASSERT_TRUE(writer_->Apply(frame));
  }
  EXPECT_TRUE(writer_->finished());
  writer_->Commit();
  writer_.reset();
  EXPECT_EQ(base::ReadFile(directory_ / "a").value(), "abcdef");
  EXPECT_EQ(fs::file_size(directory_ / "empty"), 0U);
  struct stat info{};
  ASSERT_EQ(::stat((directory_ / "a").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600U);
}

TEST_F(ImageWriterTest, WhatIsNotFinishedIsRemoved) {
  for (const Frame& frame : std::vector<Frame>{Begin{2, 6}, FileBegin{3, "a"}, Data{"abc"},
                                               EndOf("abc"), FileBegin{3, "b"}, Data{"d"}}) {
    ASSERT_TRUE(writer_->Apply(frame));
  }
  EXPECT_EQ(FilesLeft(), 2U);
  writer_.reset();
  EXPECT_EQ(FilesLeft(), 0U);
}

TEST_F(ImageWriterTest, FramesOutOfOrderAreRefused) {
  const std::vector<Frame> begun = {Begin{2, 6}};
  const std::vector<Frame> in_file = {Begin{2, 6}, FileBegin{3, "a"}};
  const auto with = [](std::vector<Frame> frames, Frame last) {
    frames.push_back(std::move(last));
    return frames;
  };
  for (const auto& frames : std::vector<std::vector<Frame>>{{FileBegin{1, "a"}},
                                                            {Data{"x"}},
                                                            {FileEnd{}},
                                                            {Finish{0, 0}},
                                                            {Hello{}},
                                                            {Welcome{}},
                                                            {Done{}},
                                                            with(begun, Begin{2, 6}),
                                                            with(begun, Data{"x"}),
                                                            with(begun, FileEnd{}),
                                                            with(in_file, FileBegin{3, "b"}),
                                                            with(in_file, Finish{2, 6}),
                                                            with(in_file, Begin{2, 6})}) {
    FailureOf(frames, EPROTO);
    writer_ = MakeWriter(1000);
    EXPECT_EQ(FilesLeft(), 0U);
  }
}

TEST_F(ImageWriterTest, TheLimitIsCheckedWithTheAnnouncement) {
  const std::string message = FailureOf({Begin{1, 1001}}, EFBIG);
  EXPECT_THAT(message, HasSubstr("1001"));
  EXPECT_THAT(message, HasSubstr("1000"));
}

TEST_F(ImageWriterTest, MoreThanTheFileSystemHasIsRefusedWithTheAnnouncement) {
  writer_ = MakeWriter(kMaxBytes);
  EXPECT_THAT(FailureOf({Begin{1, kMaxBytes}}, ENOSPC), HasSubstr("no room at the destination"));
}

TEST_F(ImageWriterTest, NothingGoesPastWhatWasAnnounced) {
  FailureOf({Begin{1, 5}, FileBegin{6, "a"}}, EPROTO);
  writer_ = MakeWriter(1000);
  FailureOf({Begin{1, 5}, FileBegin{2, "a"}, Data{"abc"}}, EPROTO);
  writer_ = MakeWriter(1000);
  FailureOf({Begin{2, 5}, FileBegin{3, "a"}, Data{"abc"}, EndOf("abc"), FileBegin{3, "b"}}, EPROTO);
  writer_ = MakeWriter(1000);
  FailureOf({Begin{1, 5}, FileBegin{3, "a"}, Data{"abc"}, EndOf("abc"), FileBegin{2, "b"}}, EPROTO);
  writer_ = MakeWriter(1000);
  FailureOf({Begin{0, 0}, FileBegin{0, "a"}}, EPROTO);
}

TEST_F(ImageWriterTest, NothingLessIsAccepted) {
  FailureOf({Begin{1, 5}, FileBegin{5, "a"}, Data{"abc"}, EndOf("abc")}, EPROTO);
  writer_ = MakeWriter(1000);
  FailureOf({Begin{2, 3}, FileBegin{3, "a"}, Data{"abc"}, EndOf("abc"), Finish{2, 3}}, EPROTO);
  writer_ = MakeWriter(1000);
  FailureOf({Begin{1, 4}, FileBegin{3, "a"}, Data{"abc"}, EndOf("abc"), Finish{1, 4}}, EPROTO);
  writer_ = MakeWriter(1000);
  FailureOf({Begin{1, 3}, FileBegin{3, "a"}, Data{"abc"}, EndOf("abc"), Finish{1, 2}}, EPROTO);
  EXPECT_FALSE(writer_->finished());
}

TEST_F(ImageWriterTest, AnotherChecksumIsDataLoss) {
  EXPECT_THAT(FailureOf({Begin{1, 3}, FileBegin{3, "a"}, Data{"abc"}, EndOf("abd")}, EBADMSG),
              HasSubstr("checksum"));
}

TEST_F(ImageWriterTest, AFileThatExistsIsNotTouched) {
  std::ofstream(directory_ / "a") << "mine";
  FailureOf({Begin{1, 3}, FileBegin{3, "a"}}, EPROTO);
  writer_.reset();
  EXPECT_EQ(base::ReadFile(directory_ / "a").value(), "mine");
}

TEST_F(ImageWriterTest, ALinkIsNotFollowed) {
  fs::create_symlink(root_ / "outside", directory_ / "a");
  FailureOf({Begin{1, 3}, FileBegin{3, "a"}}, EPROTO);
  EXPECT_FALSE(fs::exists(root_ / "outside"));
}

TEST_F(ImageWriterTest, NamesAreCheckedHereToo) {
  FailureOf({Begin{1, 3}, FileBegin{3, "../outside"}}, EPROTO);
  EXPECT_FALSE(fs::exists(root_ / "outside"));
}

TEST_F(ImageWriterTest, TheSourcesErrorIsPassedOn) {
  EXPECT_THAT(
      FailureOf({Begin{1, 3}, ErrorFrame{1, WireError::kInternal, "disk on fire"}}, ECONNABORTED),
      HasSubstr("disk on fire"));
}

}  // namespace
}  // namespace waft::transfer
