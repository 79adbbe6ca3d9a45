#include "base/unique_fd.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <type_traits>
#include <utility>

namespace waft::base {
namespace {

UniqueFd OpenNull() { return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }
bool IsOpen(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }

static_assert(!std::is_copy_constructible_v<UniqueFd> && !std::is_copy_assignable_v<UniqueFd>);

TEST(UniqueFdTest, ClosesWhenItGoes) {
  int fd = -1;
  {
    const UniqueFd owned = OpenNull();
    fd = owned.get();
    ASSERT_TRUE(owned);
    EXPECT_TRUE(IsOpen(fd));
  }
  EXPECT_FALSE(IsOpen(fd));
}

TEST(UniqueFdTest, EmptyOwnsNothing) {
  UniqueFd empty;
  EXPECT_FALSE(empty);
  EXPECT_EQ(empty.get(), -1);
  empty.reset();
  EXPECT_TRUE(UniqueFd(0)) << "0 is a descriptor";
  // That closed standard input, as it should: put something there again.
  EXPECT_EQ(OpenNull().release(), 0);
}

TEST(UniqueFdTest, MovingLeavesTheOldOwnerEmpty) {
  UniqueFd first = OpenNull();
  const int fd = first.get();
  UniqueFd second = std::move(first);
  EXPECT_FALSE(first);  // NOLINT(bugprone-use-after-move): that is what is tested
  EXPECT_EQ(second.get(), fd);
  EXPECT_TRUE(IsOpen(fd));
}

TEST(UniqueFdTest, AssigningClosesWhatWasOwned) {
  UniqueFd first = OpenNull();
  const int old = first.get();
  UniqueFd second = OpenNull();
  const int kept = second.get();
  first = std::move(second);
  EXPECT_FALSE(IsOpen(old));
  EXPECT_EQ(first.get(), kept);
  UniqueFd& same = first;
  first = std::move(same);
  EXPECT_EQ(first.get(), kept);
  EXPECT_TRUE(IsOpen(kept));
}

TEST(UniqueFdTest, ReleaseGivesItAway) {
  UniqueFd owned = OpenNull();
  const UniqueFd other(owned.release());
  EXPECT_FALSE(owned);
  EXPECT_TRUE(IsOpen(other.get()));
}

}  // namespace
}  // namespace waft::base
