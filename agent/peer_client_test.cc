#include "agent/peer_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace waft::agent {
namespace {

using testing::HasSubstr;

TEST(ConnectPeerTest, WhatIsNoTargetIsABadArgument) {
  for (const char* target : {"", ":", ":7420", "host:", "[", "[::1", "[]", "[]:7420",
                             "[::1]:", "[::1]x", "[::1]7420", "[::1]x:7420", "localhost:port",
                             "localhost:-1", "localhost:99999", "localhost:0", "localhost:http"}) {
    const auto peer = ConnectPeer(target, {});
    ASSERT_FALSE(peer) << target;
    EXPECT_EQ(peer.error().code(), base::ErrorCode::kBadArgument) << target;
  }
}

TEST(ConnectPeerTest, AnUnknownHostIsABadArgument) {
  const auto peer = ConnectPeer("no-such-host.invalid", {});  // RFC 2606
  ASSERT_FALSE(peer);
  EXPECT_EQ(peer.error().code(), base::ErrorCode::kBadArgument);
  EXPECT_THAT(peer.error().message(), HasSubstr("'no-such-host.invalid'"));
}

TEST(ConnectPeerTest, HostAndAddressComeFromTheTarget) {
  struct Case {
    const char* target;
    const char* host;
    const char* address;
  };
  for (const Case& row :
       {Case{"127.0.0.1", "127.0.0.1", "127.0.0.1"},
        Case{"127.0.0.1:7421", "127.0.0.1", "127.0.0.1"}, Case{"::1", "::1", "::1"},
        Case{"[::1]", "::1", "::1"}, Case{"[::1]:7421", "::1", "::1"}}) {
    const auto peer = ConnectPeer(row.target, {});
    ASSERT_TRUE(peer) << row.target << ": " << peer.error().message();
    EXPECT_EQ((*peer)->name(), row.target);
    EXPECT_EQ((*peer)->host(), row.host);
    EXPECT_EQ((*peer)->address(), row.address);
  }
}

TEST(ConnectPeerTest, APeerThatIsNotThereMayBeAskedAgain) {
  const auto peer = ConnectPeer("127.0.0.1:1", {});  // tcpmux: nobody listens there
  ASSERT_TRUE(peer);
  const auto pong = (*peer)->Ping();
  ASSERT_FALSE(pong);
  EXPECT_EQ(pong.error().code(), base::ErrorCode::kRetry);
  EXPECT_THAT(pong.error().message(), HasSubstr("cannot reach waftd on 127.0.0.1:1"));
  EXPECT_FALSE((*peer)->Outcome("0123456789abcdef"));
  const auto session = (*peer)->OpenSession();
  EXPECT_TRUE(!session || !(*session)->Prepare({})) << "no session with nobody";
}

}  // namespace
}  // namespace waft::agent
