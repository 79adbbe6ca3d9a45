#include "base/error.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>

namespace waft::base {
namespace {

Result<int> Half(int value) {
  if (value % 2 != 0) return Fail(ErrorCode::kBadArgument, "odd");
  return value / 2;
}

Result<int> Quarter(int value) {
  WAFT_ASSIGN(const int half, Half(value));
  return Half(half);
}

Status CheckQuarter(int value) {
  WAFT_TRY(Quarter(value));
  return {};
}

TEST(ErrorTest, MacrosPassValuesAndErrorsThrough) {
  EXPECT_EQ(Quarter(8).value(), 2);
  ASSERT_FALSE(Quarter(6));
  EXPECT_EQ(Quarter(6).error().message(), "odd");
  EXPECT_TRUE(CheckQuarter(4));
  EXPECT_EQ(CheckQuarter(3).error().code(), ErrorCode::kBadArgument);
}

TEST(ErrorTest, AssignMovesOutOfTheResult) {
  const auto make = []() -> Result<std::unique_ptr<int>> { return std::make_unique<int>(7); };
  const auto use = [&]() -> Result<int> {
    WAFT_ASSIGN(const std::unique_ptr<int> value, make());
    return *value;
  };
  EXPECT_EQ(use().value(), 7);
}

TEST(ErrorTest, ErrnoDecidesTheCode) {
  EXPECT_EQ(Error::FromErrno("x", EAGAIN).code(), ErrorCode::kRetry);
  EXPECT_EQ(Error::FromErrno("x", ENOSYS).code(), ErrorCode::kUnsupported);
  EXPECT_EQ(Error::FromErrno("x", EIO).code(), ErrorCode::kRollBack);
  EXPECT_EQ(Error::FromErrno("open /a", ENOENT).message(), "open /a: No such file or directory");
}

TEST(ErrorTest, ContextGoesInFrontAndKeepsTheRest) {
  const Error error = Error::FromErrno("read", EIO).WithContext("page store").WithContext("sink");
  EXPECT_EQ(error.message(), "sink: page store: read: Input/output error");
  EXPECT_EQ(error.error_number(), EIO);
}

}  // namespace
}  // namespace waft::base
