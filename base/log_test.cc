#include "base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

namespace waft::base {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::MatchesRegex;
using testing::Not;

// Standard error of `log` with WAFT_LOG=`level`; standard output must stay empty.
template <typename Log>
std::string Logged(const char* level, Log log) {
  if (level == nullptr) {
    ::unsetenv("WAFT_LOG");
  } else {
    ::setenv("WAFT_LOG", level, 1);
  }
  testing::internal::CaptureStderr();
  testing::internal::CaptureStdout();
  InitLog("waft-test");
  log();
  ::unsetenv("WAFT_LOG");
  EXPECT_THAT(testing::internal::GetCapturedStdout(), IsEmpty());
  return testing::internal::GetCapturedStderr();
}

void LogOneOfEach() {
  LogDebug("a detail");
  LogInfo("{} of {}", 1, 2);
  LogWarning("a warning");
  LogLine(LogLevel::kError, "an error");
}

TEST(LogTest, ALineHasTimeProgramPidAndLevel) {
  const std::string pid = std::to_string(::getpid());
  EXPECT_THAT(Logged(nullptr, [] { LogInfo("{} of {}", 1, 2); }),
              MatchesRegex("[0-9]+-[0-9][0-9]-[0-9][0-9]T[0-9:]+\\.[0-9]+Z waft-test\\[" + pid +
                           "\\] info: 1 of 2\n"));
}

TEST(LogTest, TheEnvironmentSetsTheLowestLevel) {
  const std::string usual = Logged(nullptr, LogOneOfEach);
  EXPECT_THAT(usual, Not(HasSubstr("a detail")));
  EXPECT_THAT(usual, HasSubstr("1 of 2"));
  EXPECT_THAT(Logged("debug", LogOneOfEach), HasSubstr("debug: a detail"));
  EXPECT_THAT(Logged("warning", LogOneOfEach), Not(HasSubstr("1 of 2")));
  const std::string errors = Logged("error", LogOneOfEach);
  EXPECT_THAT(errors, Not(HasSubstr("a warning")));
  EXPECT_THAT(errors, HasSubstr("error: an error"));
}

TEST(LogTest, AnUnknownLevelIsSaidAndSilencesNothing) {
  const std::string said = Logged("loud", LogOneOfEach);
  EXPECT_THAT(said, HasSubstr("WAFT_LOG=loud is none of"));
  EXPECT_THAT(said, HasSubstr("1 of 2"));
}

TEST(LogTest, BracesInALineAreText) {
  EXPECT_THAT(Logged(nullptr, [] { LogLine(LogLevel::kInfo, "{} {0} {"); }),
              HasSubstr("{} {0} {\n"));
}

TEST(LogTest, LogIfErrorTellsErrorsOnly) {
  EXPECT_THAT(Logged(nullptr, [] { LogIfError({}, "thaw"); }), IsEmpty());
  EXPECT_THAT(Logged(nullptr, [] { LogIfError(Fail(ErrorCode::kFatal, "no such group"), "thaw"); }),
              HasSubstr("warning: thaw: no such group\n"));
}

}  // namespace
}  // namespace waft::base
