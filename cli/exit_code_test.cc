#include "cli/exit_code.h"

#include <gtest/gtest.h>

namespace waft::cli {
namespace {

// The numbers are a promise to scripts: docs/exit-codes.md.
TEST(ExitCodeTest, EveryOutcomeHasItsNumber) {
  EXPECT_EQ(static_cast<int>(ExitCodeFor(v1::COMPLETED)), 0);
  EXPECT_EQ(static_cast<int>(ExitCodeFor(v1::ROLLED_BACK)), 1);
  EXPECT_EQ(static_cast<int>(ExitCodeFor(v1::FAILED)), 1);
  EXPECT_EQ(static_cast<int>(ExitCodeFor(v1::IN_DOUBT)), 3);
}

TEST(ExitCodeTest, AnOutcomeWeCannotNameIsNotKnown) {
  EXPECT_EQ(static_cast<int>(ExitCodeFor(v1::OUTCOME_UNSPECIFIED)), 3);
  EXPECT_EQ(static_cast<int>(ExitCodeFor(static_cast<v1::Outcome>(99))), 3);
}

TEST(ExitCodeTest, EveryFailedCallHasItsNumber) {
  EXPECT_EQ(static_cast<int>(ExitCodeFor(CallEnd::kUnreachable)), 4);
  EXPECT_EQ(static_cast<int>(ExitCodeFor(CallEnd::kRefused)), 1);
  EXPECT_EQ(static_cast<int>(ExitCodeFor(CallEnd::kBroken)), 3);
  EXPECT_EQ(static_cast<int>(ExitCodeFor(CallEnd::kInterrupted)), 3);
}

TEST(ExitCodeTest, ABadArgumentIsAUsageError) {
  EXPECT_EQ(static_cast<int>(ExitCodeFor(base::ErrorCode::kBadArgument)), 2);
  EXPECT_EQ(static_cast<int>(ExitCodeFor(base::ErrorCode::kRollBack)), 1);
  EXPECT_EQ(static_cast<int>(ExitCodeFor(base::ErrorCode::kFatal)), 1);
}

}  // namespace
}  // namespace waft::cli
