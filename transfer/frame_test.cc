#include "transfer/frame.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <random>
#include <vector>

namespace waft::transfer {
namespace {

using ::testing::HasSubstr;

std::vector<Frame> Samples() {
  Token token;
  token.fill(0xa5);
  Checksum checksum;
  checksum.fill(0x3c);
  return {Hello{kProtocolVersion, token, "web-1.2_x"},
          Welcome{},
          Begin{3, 0x123456789abcULL},
          FileBegin{5ULL << 32, "pages-1.img"},
          Data{"some bytes"},
          FileEnd{checksum},
          Finish{3, 17},
          Done{3, 17},
          ErrorFrame{kProtocolVersion, WireError::kNoRoom, "no room"}};
}

base::Result<Frame> Decode(std::string_view bytes) {
  if (bytes.size() < kHeaderBytes) return base::Fail(base::ErrorCode::kRetry, "short");
  WAFT_ASSIGN(const FrameHeader header, DecodeHeader(bytes.substr(0, kHeaderBytes)));
  if (bytes.size() != kHeaderBytes + header.payload_bytes) {
    return base::Fail(base::ErrorCode::kRetry, "short");
  }
  return DecodePayload(header.type, bytes.substr(kHeaderBytes));
}

std::string Raw(uint16_t type, std::string_view payload) {
  const auto header =
      EncodeHeader({static_cast<FrameType>(type), static_cast<uint32_t>(payload.size())});
  return std::string(header.data(), header.size()) + std::string(payload);
}

TEST(FrameTest, EveryFrameSurvivesTheRoundTrip) {
  for (const Frame& frame : Samples()) {
    const std::string bytes = Encode(frame);
    const auto decoded = Decode(bytes);
    ASSERT_TRUE(decoded) << decoded.error().message();
    EXPECT_EQ(decoded->index(), frame.index());
    EXPECT_EQ(Encode(*decoded), bytes);
  }
}

// docs/protocol.md gives these bytes.
TEST(FrameTest, BytesAreAsDocumented) {
  EXPECT_EQ(Encode(Begin{2, 0x0102}), std::string("WF\x03\x00\x0c\x00\x00\x00"
                                                  "\x02\x00\x00\x00"
                                                  "\x02\x01\x00\x00\x00\x00\x00\x00",
                                                  20));
  EXPECT_EQ(Encode(FileBegin{1, "a"}), std::string("WF\x04\x00\x0b\x00\x00\x00"
                                                   "\x01\x00\x00\x00\x00\x00\x00\x00"
                                                   "\x01\x00"
                                                   "a",
                                                   19));
  const std::string hello = Encode(Hello{kProtocolVersion, Token{}, "m"});
  EXPECT_EQ(hello.size(), 8U + 4 + 32 + 1 + 1);
  EXPECT_EQ(hello.substr(8, 4), std::string("\x01\x00\x00\x00", 4));
  EXPECT_EQ(hello.substr(44), std::string("\x01m"));
}

TEST(FrameTest, FieldsArriveAsTheyWere) {
  const auto decoded = Decode(Encode(Samples()[3]));
  ASSERT_TRUE(decoded);
  EXPECT_EQ(std::get<FileBegin>(*decoded).size_bytes, 5ULL << 32);
  EXPECT_EQ(std::get<FileBegin>(*decoded).name, "pages-1.img");
  const auto hello = Decode(Encode(Samples()[0]));
  ASSERT_TRUE(hello);
  EXPECT_EQ(std::get<Hello>(*hello).token, std::get<Hello>(Samples()[0]).token);
  EXPECT_EQ(std::get<Hello>(*hello).migration_id, "web-1.2_x");
}

TEST(FrameTest, EveryTruncationIsAnError) {
  for (const Frame& frame : Samples()) {
    if (std::holds_alternative<Data>(frame)) continue;  // any length is a right one
    const std::string bytes = Encode(frame);
    const auto header = DecodeHeader(std::string_view(bytes).substr(0, kHeaderBytes));
    ASSERT_TRUE(header);
    for (size_t size = 0; size + kHeaderBytes < bytes.size(); ++size) {
      // In a buffer of its own, so that a sanitizer sees a read past the end.
      const std::vector<char> payload(bytes.begin() + kHeaderBytes,
                                      bytes.begin() + static_cast<ptrdiff_t>(kHeaderBytes + size));
      const auto decoded = DecodePayload(header->type, {payload.data(), payload.size()});
      ASSERT_FALSE(decoded) << ToString(header->type) << " " << size;
      EXPECT_EQ(decoded.error().error_number(), EPROTO);
    }
    for (size_t size = 0; size < kHeaderBytes; ++size) {
      EXPECT_FALSE(DecodeHeader(std::string_view(bytes).substr(0, size)));
    }
  }
}

TEST(FrameTest, TrailingBytesAreAnError) {
  for (const Frame& frame : Samples()) {
    if (std::holds_alternative<Data>(frame)) continue;
    const std::string bytes = Encode(frame) + "x";
    const auto header = DecodeHeader(std::string_view(bytes).substr(0, kHeaderBytes));
    ASSERT_TRUE(header);
    EXPECT_FALSE(DecodePayload(header->type, std::string_view(bytes).substr(kHeaderBytes)))
        << ToString(header->type);
  }
}

TEST(FrameTest, HeadersRefuseLengthsOutsideTheBounds) {
  struct Case {
    FrameType type;
    uint32_t min;
    uint32_t max;
  };
  for (const Case& c : {Case{FrameType::kHello, 4, 1034}, Case{FrameType::kWelcome, 4, 4},
                        Case{FrameType::kBegin, 12, 12}, Case{FrameType::kFileBegin, 11, 265},
                        Case{FrameType::kData, 1, 1 << 20}, Case{FrameType::kFileEnd, 16, 16},
                        Case{FrameType::kFinish, 12, 12}, Case{FrameType::kDone, 12, 12},
                        Case{FrameType::kError, 10, 1034}}) {
    const auto decode = [&](uint32_t payload_bytes) {
      const auto bytes = EncodeHeader({c.type, payload_bytes});
      return DecodeHeader({bytes.data(), bytes.size()}).has_value();
    };
    EXPECT_TRUE(decode(c.min)) << ToString(c.type);
    EXPECT_TRUE(decode(c.max)) << ToString(c.type);
    EXPECT_FALSE(decode(c.min - 1)) << ToString(c.type);
    EXPECT_FALSE(decode(c.max + 1)) << ToString(c.type);
    EXPECT_FALSE(decode(UINT32_MAX)) << ToString(c.type);
  }
}

TEST(FrameTest, UnknownTypesAndMagicAreErrors) {
  EXPECT_FALSE(Decode(Raw(0, "1234")));
  EXPECT_FALSE(Decode(Raw(10, "1234")));
  EXPECT_FALSE(Decode(Raw(0x0201, "1234")));
  const auto http = DecodeHeader("GET / HT");
  ASSERT_FALSE(http);
  EXPECT_THAT(http.error().message(), HasSubstr("not waft's protocol"));
}

TEST(FrameTest, InnerLengthsAreChecked) {
  // A name of 5 that says 6, 4, 0 and 65535.
  for (const uint16_t length : {uint16_t{6}, uint16_t{4}, uint16_t{0}, uint16_t{65535}}) {
    std::string bytes = Encode(FileBegin{1, "names"});
    bytes[kHeaderBytes + 8] = static_cast<char>(length & 0xff);
    bytes[kHeaderBytes + 9] = static_cast<char>(length >> 8);
    EXPECT_FALSE(Decode(bytes)) << length;
  }
  EXPECT_FALSE(Decode(Encode(FileBegin{kMaxBytes + 1, "a"})));
  EXPECT_TRUE(Decode(Encode(FileBegin{kMaxBytes, "a"})));
  EXPECT_FALSE(Decode(Encode(Begin{kMaxFiles + 1, 1})));
  EXPECT_FALSE(Decode(Encode(Begin{1, kMaxBytes + 1})));
}

TEST(FrameTest, FileNamesThatCouldLeaveTheDirectoryAreErrors) {
  using namespace std::string_literals;
  for (const std::string& name :
       {"../x"s, "a/b"s, "/etc/passwd"s, "."s, ".."s, ".hidden"s, ""s, "a\0b"s, "a b"s, "a\nb"s,
        "\x7f"s, "\xc3\xa4"s, std::string(256, 'a')}) {
    EXPECT_FALSE(CheckFileName(name)) << name;
    EXPECT_FALSE(Decode(Encode(FileBegin{1, name}))) << name;
  }
  for (const std::string& name : {"pages-1.img"s, "descriptors.json"s, "tmpfs-dev-52.tar.gz.img"s,
                                  "a..b"s, std::string(255, 'a')}) {
    EXPECT_TRUE(Decode(Encode(FileBegin{1, name}))) << name;
  }
}

TEST(FrameTest, MigrationIdsAreChecked) {
  using namespace std::string_literals;
  for (const std::string& id : {""s, "a b"s, "a/b"s, "a\nb"s, "a\0"s, std::string(65, 'a')}) {
    EXPECT_FALSE(CheckMigrationId(id)) << id;
    EXPECT_FALSE(Decode(Encode(Hello{kProtocolVersion, Token{}, id}))) << id;
  }
  EXPECT_TRUE(CheckMigrationId(std::string(64, 'a')));
}

// The versions must be able to tell each other apart, whatever else they change.
TEST(FrameTest, HelloOfAnotherVersionIsReadAsFarAsItsVersion) {
  for (const size_t rest : {size_t{0}, size_t{1}, size_t{1030}}) {
    const auto decoded = Decode(Raw(1, "\x09" + std::string(3, '\0') + std::string(rest, 'z')));
    ASSERT_TRUE(decoded) << rest;
    EXPECT_EQ(std::get<Hello>(*decoded).version, 9U);
    EXPECT_EQ(std::get<Hello>(*decoded).migration_id, "");
  }
}

TEST(FrameTest, AMessageIsCutAndMadePrintable) {
  const auto decoded = Decode(Encode(ErrorFrame{1, WireError::kLimit, "a\x1b[31m\nb"}));
  ASSERT_TRUE(decoded);
  EXPECT_EQ(std::get<ErrorFrame>(*decoded).message, "a?[31m?b");
  const auto cut = Decode(Encode(ErrorFrame{1, WireError::kLimit, std::string(5000, 'x')}));
  ASSERT_TRUE(cut);
  EXPECT_EQ(std::get<ErrorFrame>(*cut).message.size(), kMaxMessageBytes);
}

TEST(FrameTest, RandomBytesNeverGetPastTheBounds) {
  int accepted = 0;
  for (uint32_t seed = 0; seed < 20000; ++seed) {
    std::mt19937 random(seed);
    const auto type = static_cast<FrameType>(random() % 12);
    std::vector<char> payload(random() % 300);
    for (char& byte : payload) byte = static_cast<char>(random());
    // Half of them with a right version, so that more than the first check is tried.
    if (seed % 2 == 0 && payload.size() >= 4) std::copy_n("\x01\0\0\0", 4, payload.begin());
    const auto frame = DecodePayload(type, {payload.data(), payload.size()});
    if (!frame) continue;
    ++accepted;
    if (const auto* hello = std::get_if<Hello>(&*frame)) {
      EXPECT_LE(hello->migration_id.size(), kMaxIdBytes);
    } else if (const auto* file = std::get_if<FileBegin>(&*frame)) {
      EXPECT_TRUE(CheckFileName(file->name));
      EXPECT_LE(file->size_bytes, kMaxBytes);
    }
    std::vector<char> header(kHeaderBytes);
    for (char& byte : header) byte = static_cast<char>(random());
    if (seed % 2 == 0) std::copy_n("WF", 2, header.begin());
    EXPECT_FALSE(DecodeHeader({header.data(), header.size()}));
  }
  EXPECT_GT(accepted, 100);  // Data, at the least
}

// The same with right frames in which a few bytes are flipped: these come further.
TEST(FrameTest, DamagedFramesNeverCrash) {
  for (uint32_t seed = 0; seed < 20000; ++seed) {
    std::mt19937 random(seed);
    const std::vector<Frame> samples = Samples();
    std::string bytes = Encode(samples[random() % samples.size()]);
    for (uint32_t flips = 1 + random() % 3; flips > 0; --flips) {
      bytes[random() % bytes.size()] ^= static_cast<char>(1U << random() % 8);
    }
    const auto frame = Decode(bytes);
    if (frame) {
      EXPECT_LE(Encode(*frame).size(), kHeaderBytes + kMaxControlBytes);
    }
  }
}

}  // namespace
}  // namespace waft::transfer
