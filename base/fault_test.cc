#include "base/fault.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string>
#include <thread>

#include "base/proc.h"
#include "base/process.h"

namespace waft::base {
namespace {

using testing::HasSubstr;
using testing::Not;

// Also what the children of the other tests do: the table of faults is read once in a process.
TEST(FaultTest, PassesTwoPoints) {
  for (const char* point : {"first", "second"}) {
    const Status status = FaultPoint(point);
    EXPECT_TRUE(status || std::getenv("WAFT_FAULT") != nullptr);
    std::cout << point << ": " << (status ? "passed" : status.error().message()) << std::endl;
  }
}

Command ChildWith(const std::string& faults) {
  return {.argv = {std::filesystem::read_symlink("/proc/self/exe").string(),
                   "--gtest_filter=FaultTest.PassesTwoPoints"},
          .environment = {{"WAFT_FAULT", faults}}};
}

RunResult RunWith(const std::string& faults) {
  return RunFor(ChildWith(faults), std::chrono::seconds(20)).value();
}

TEST(FaultTest, AnEmptyListInjectsNothing) {
  const RunResult result = RunWith("");
  EXPECT_TRUE(result.exit.Ok());
  EXPECT_THAT(result.out, HasSubstr("first: passed\nsecond: passed\n"));
}

TEST(FaultTest, FailReturnsAnErrorAtThatPointOnly) {
  const RunResult result = RunWith("second=fail");
  EXPECT_THAT(result.out, HasSubstr("first: passed\nsecond: injected fault at second\n"));
  EXPECT_THAT(result.err, HasSubstr("injected fault at second: fail"));
}

TEST(FaultTest, KillEndsTheProcessThere) {
  const RunResult result = RunWith("second=kill");
  EXPECT_EQ(result.exit.signal, SIGKILL);
  EXPECT_THAT(result.out, HasSubstr("first: passed\n"));
  EXPECT_THAT(result.out, Not(HasSubstr("second:")));
}

TEST(FaultTest, SeveralFaultsAndRubbishAreAList) {
  const RunResult result = RunWith("rubbish,,first=fail,second=kill,");
  EXPECT_THAT(result.out, HasSubstr("first: injected fault at first\n"));
  EXPECT_EQ(result.exit.signal, SIGKILL);
}

TEST(FaultTest, StopWaitsToBeContinued) {
  Command command = ChildWith("first=stop");
  Child child = Child::Spawn(command).value();
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (ReadProcStatus(child.pid())->state != 'T' && std::chrono::steady_clock::now() < give_up) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(ReadProcStatus(child.pid())->state, 'T');
  EXPECT_FALSE(child.WaitFor(std::chrono::milliseconds(50)).value());
  ASSERT_TRUE(child.Signal(SIGCONT));
  EXPECT_TRUE(child.Wait()->Ok());
}

}  // namespace
}  // namespace waft::base
