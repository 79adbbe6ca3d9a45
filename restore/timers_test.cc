#include "restore/timers.h"

#include <gtest/gtest.h>
#include <linux/ioctl.h>
#include <linux/types.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <thread>

#include "base/unique_fd.h"

#ifndef TFD_IOC_SET_TICKS
#define TFD_IOC_SET_TICKS _IOW('T', 0, __u64)
#endif

namespace waft::restore {
namespace {

using base::UniqueFd;

constexpr timespec kNever{};
constexpr timespec kPeriod{.tv_sec = 0, .tv_nsec = 20'000'000};
constexpr timespec kHour{.tv_sec = 3600, .tv_nsec = 0};

// As CRIU leaves it: armed with the time left, then given its unread expirations.
UniqueFd RestoredTimer(const timespec& interval, const timespec& left, uint64_t ticks) {
  UniqueFd fd(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  const itimerspec time{.it_interval = interval, .it_value = left};
  EXPECT_EQ(::timerfd_settime(fd.get(), 0, &time, nullptr), 0);
  if (ticks > 0) {
    EXPECT_EQ(::ioctl(fd.get(), TFD_IOC_SET_TICKS, &ticks), 0);
  }
  return fd;
}

// The expirations to read, waiting for up to a second; 0 if there are none.
uint64_t Expirations(const UniqueFd& fd) {
  pollfd wait{fd.get(), POLLIN, 0};
  ::poll(&wait, 1, 1000);
  uint64_t ticks = 0;
  return ::read(fd.get(), &ticks, sizeof(ticks)) == sizeof(ticks) ? ticks : 0;
}

TEST(RearmTimersTest, PeriodicTimerThatHadExpiredGoesOn) {
  const UniqueFd fd = RestoredTimer(kPeriod, kNever, 3);
  ASSERT_TRUE(RearmTimers({::getpid()}));
  EXPECT_GE(Expirations(fd), 3U);
  EXPECT_GE(Expirations(fd), 1U);
  EXPECT_GE(Expirations(fd), 1U);
}

TEST(RearmTimersTest, WithoutItStandsStill) {
  const UniqueFd fd = RestoredTimer(kPeriod, kNever, 3);
  EXPECT_EQ(Expirations(fd), 3U);
  EXPECT_EQ(Expirations(fd), 0U);
}

TEST(RearmTimersTest, OthersAreLeftAlone) {
  const UniqueFd expired_once = RestoredTimer(kNever, kNever, 1);
  const UniqueFd disarmed = RestoredTimer(kPeriod, kNever, 0);
  const UniqueFd running = RestoredTimer(kPeriod, kHour, 2);
  ASSERT_TRUE(RearmTimers({::getpid()}));
  itimerspec left{};
  for (const UniqueFd* fd : {&expired_once, &disarmed}) {
    ASSERT_EQ(::timerfd_gettime(fd->get(), &left), 0);
    EXPECT_EQ(left.it_value.tv_sec, 0);
    EXPECT_EQ(left.it_value.tv_nsec, 0);
  }
  ASSERT_EQ(::timerfd_gettime(running.get(), &left), 0);
  EXPECT_GT(left.it_value.tv_sec, 3500);
  EXPECT_EQ(Expirations(expired_once), 1U);
  EXPECT_EQ(Expirations(running), 2U);
}

TEST(RearmTimersTest, TaskThatIsGoneIsNoError) {
  EXPECT_TRUE(RearmTimers({1 << 22}));  // above every pid: the kernel's PID_MAX_LIMIT
}

}  // namespace
}  // namespace waft::restore
