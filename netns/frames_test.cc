#include "netns/frames.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

namespace waft::netns {
namespace {

constexpr Mac kMac{0x02, 0, 0, 0, 0, 0x05};

TEST(FramesTest, AddressesSurviveTheirText) {
  EXPECT_EQ(ParseIp("10.0.0.5")->ToString(), "10.0.0.5");
  EXPECT_EQ(ParseIp("fd00::5")->ToString(), "fd00::5");
  EXPECT_FALSE(ParseIp("10.0.0"));
  EXPECT_EQ(ParsePrefix("10.1.0.0/16")->length, 16);
  for (const char* bad : {"10.1.0.0", "10.1.0.0/33", "fd00::/129", "10.1.0.0/", "10.1.0.0/8x"}) {
    EXPECT_FALSE(ParsePrefix(bad)) << bad;
  }
  EXPECT_EQ(ToString(kMac), "02:00:00:00:00:05");
  EXPECT_FALSE(MacFromBytes("12345"));
}

TEST(FramesTest, ArpSaysWhoItIsFrom) {
  Frame frame = ArpRequest(kMac, *ParseIp("10.0.0.5"), *ParseIp("10.0.0.9"));
  const auto sender = ParseArp(frame);
  ASSERT_TRUE(sender);
  EXPECT_EQ(sender->mac, kMac);
  EXPECT_EQ(sender->address.ToString(), "10.0.0.5");
  frame.pop_back();
  EXPECT_FALSE(ParseArp(frame));
}

// The receiver's rule: pseudo-header and message, checksum included, add up to all ones.
TEST(FramesTest, NeighbourMessagesHaveAValidChecksum) {
  for (const Frame& frame :
       {NeighbourAdvertisement(kMac, *ParseIp("fd00::5")),
        NeighbourSolicitation(kMac, *ParseIp("fd00::5"), *ParseIp("fd00::12:3456"))}) {
    uint32_t sum = 58 + (frame.size() - 54);
    for (size_t i = 22; i < frame.size(); i += 2) sum += frame[i] << 8 | frame[i + 1];
    while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
    EXPECT_EQ(sum, 0xffff);
    EXPECT_EQ(frame.size(), 86);
  }
  const Frame solicitation =
      NeighbourSolicitation(kMac, *ParseIp("fd00::5"), *ParseIp("fd00::12:3456"));
  EXPECT_EQ(IpFromBytes(AF_INET6, &solicitation[38]).ToString(), "ff02::1:ff12:3456");
}

}  // namespace
}  // namespace waft::netns
