#include "base/process.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "base/file.h"
#include "base/pidfd.h"
#include "base/proc.h"

namespace waft::base {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using testing::HasSubstr;

Command Shell(const std::string& script) { return {.argv = {"/bin/sh", "-c", script}}; }

RunResult RunShell(const std::string& script) { return RunFor(Shell(script), seconds(20)).value(); }

// An anonymous file that holds `text`, read from its start.
UniqueFd FileWith(const std::string& text) {
  UniqueFd fd(::memfd_create("process-test", MFD_CLOEXEC));
  EXPECT_TRUE(WriteAll(fd.get(), text));
  EXPECT_EQ(::lseek(fd.get(), 0, SEEK_SET), 0);
  return fd;
}

TEST(ProcessTest, CapturesBothOutputsApart) {
  const RunResult result = RunShell("echo out; echo err >&2");
  EXPECT_TRUE(result.exit.Ok());
  EXPECT_EQ(result.out, "out\n");
  EXPECT_EQ(result.err, "err\n");
  EXPECT_EQ(base::Run(Shell("echo out"))->out, "out\n");
}

TEST(ProcessTest, TellsExitCodesFromSignals) {
  const ExitState code = RunShell("exit 7").exit;
  EXPECT_EQ(code.code, 7);
  EXPECT_EQ(code.signal, 0);
  EXPECT_FALSE(code.Ok());
  EXPECT_EQ(code.ToString(), "exit code 7");
  const ExitState signal = RunShell("kill -TERM $$").exit;
  EXPECT_EQ(signal.code, -1);
  EXPECT_EQ(signal.signal, SIGTERM);
  EXPECT_FALSE(signal.Ok());
  EXPECT_EQ(signal.ToString(), "ended by signal 15 (Terminated)");
}

TEST(ProcessTest, TheEnvironmentIsOursWithChanges) {
  ::setenv("WAFT_TEST_KEPT", "kept", 1);
  ::setenv("WAFT_TEST_CHANGED", "old", 1);
  Command command = Shell("echo $WAFT_TEST_KEPT $WAFT_TEST_CHANGED $WAFT_TEST_NEW; env");
  command.environment = {{"WAFT_TEST_CHANGED", "changed"}, {"WAFT_TEST_NEW", "new"}};
  const std::string out = base::Run(command)->out;
  EXPECT_TRUE(out.starts_with("kept changed new\n"));
  EXPECT_THAT(out, testing::Not(HasSubstr("WAFT_TEST_CHANGED=old")));
}

TEST(ProcessTest, RunsInTheDirectoryGiven) {
  Command command = Shell("pwd");
  command.directory = "/proc/sys";
  EXPECT_EQ(base::Run(command)->out, "/proc/sys\n");
}

TEST(ProcessTest, FindsTheProgramOnPath) {
  EXPECT_EQ(base::Run({.argv = {"printf", "%s|%s", "a b", ""}})->out, "a b|");
}

TEST(ProcessTest, SaysWhatCannotBeRun) {
  const auto missing = base::Run({.argv = {"waft-no-such-program", "x"}});
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().message(),
            "cannot run waft-no-such-program: No such file or directory");
  EXPECT_EQ(missing.error().error_number(), ENOENT);
  const auto nowhere = base::Run({.argv = {"true"}, .directory = "/no/such/directory"});
  ASSERT_FALSE(nowhere);
  EXPECT_THAT(nowhere.error().message(), HasSubstr("cannot run true in /no/such/directory"));
  EXPECT_EQ(base::Run({.argv = {"/etc/passwd"}}).error().error_number(), EACCES);
  EXPECT_EQ(base::Run({}).error().code(), ErrorCode::kBadArgument);
  EXPECT_EQ(base::Run({.argv = {"true"}, .fds = {{9999, 5}}}).error().error_number(), EBADF);
}

TEST(ProcessTest, NothingOfOursLeaksIn) {
  // What our own parent left open without close-on-exec is not the matter here.
  const auto inherited = ReadFds(::getpid()).value();
  for (const FdInfo& fd : inherited) {
    if (fd.fd > STDERR_FILENO) ::fcntl(fd.fd, F_SETFD, FD_CLOEXEC);
  }
  const UniqueFd ours = FileWith("secret");
  const UniqueFd given = FileWith("given");
  Command command = Shell("ls /proc/$$/fd");
  EXPECT_EQ(base::Run(command)->out, "0\n1\n2\n");
  command.fds = {{given.get(), 7}};
  EXPECT_EQ(base::Run(command)->out, "0\n1\n2\n7\n");
}

TEST(ProcessTest, StandardInputIsEmptyUnlessGiven) {
  EXPECT_EQ(RunShell("readlink /proc/self/fd/0").out, "/dev/null\n");
  const UniqueFd input = FileWith("hello");
  Command command = {.argv = {"cat"}, .fds = {{input.get(), 0}}};
  EXPECT_EQ(base::Run(command)->out, "hello");
}

TEST(ProcessTest, ADescriptorKeepsItsNumber) {
  const UniqueFd fd = FileWith("same");
  Command command = {.argv = {"cat", "/dev/fd/" + std::to_string(fd.get())},
                     .fds = {{fd.get(), fd.get()}}};
  EXPECT_EQ(base::Run(command)->out, "same");
}

TEST(ProcessTest, DescriptorsSwapNumbers) {
  const UniqueFd first = FileWith("first");
  const UniqueFd second = FileWith("second");
  // One digit is all that the shell's <& takes.
  ASSERT_LT(second.get(), 10);
  Command command =
      Shell("cat <&" + std::to_string(first.get()) + "; cat <&" + std::to_string(second.get()));
  command.fds = {{first.get(), second.get()}, {second.get(), first.get()}};
  EXPECT_EQ(base::Run(command)->out, "secondfirst");
}

TEST(ProcessTest, ANumberThatRunUsesItselfCanBeAskedFor) {
  const UniqueFd file = FileWith("mapped");
  Command command = Shell("cat <&5; echo done >&2");
  for (int fd = 3; fd < 40; ++fd) command.fds.emplace_back(file.get(), fd);
  const auto result = base::Run(command);
  EXPECT_EQ(result->out, "mapped");
  EXPECT_EQ(result->err, "done\n");
}

TEST(ProcessTest, SignalsStartAtTheirDefaults) {
  sigset_t blocked;
  sigset_t old_mask;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR1);
  ::sigprocmask(SIG_BLOCK, &blocked, &old_mask);
  const auto old_handler = ::signal(SIGUSR2, SIG_IGN);
  const auto result = base::Run({.argv = {"grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"}});
  ::signal(SIGUSR2, old_handler);
  ::sigprocmask(SIG_SETMASK, &old_mask, nullptr);
  // Signals 32 and 33 are glibc's own; its posix_spawn(3) leaves them ignored.
  EXPECT_THAT(result->out,
              testing::MatchesRegex("SigBlk:\t0{16}\nSigIgn:\t(0{16}|0000000180000000)\n"));
}

TEST(ProcessTest, AGrandchildDoesNotHoldUpRun) {
  const auto start = steady_clock::now();
  const auto result = base::Run(Shell("sleep 60 & echo $!"));
  EXPECT_LT(steady_clock::now() - start, seconds(20));
  ASSERT_TRUE(result);
  const pid_t sleeper = std::stoi(result->out);
  EXPECT_EQ(::kill(sleeper, SIGKILL), 0) << "it should still hold the pipes";
}

TEST(ProcessTest, CaptureStopsAtItsLimitTheChildDoesNot) {
  const RunResult result = RunShell("head -c 3000000 /dev/zero; echo end >&2");
  EXPECT_TRUE(result.exit.Ok());
  EXPECT_EQ(result.out.size(), size_t{1} << 20);
  EXPECT_EQ(result.err, "end\n");
}

TEST(ProcessTest, EverythingWrittenBeforeTheEndIsCaptured) {
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(RunShell("head -c 60000 /dev/zero").out.size(), 60000);
  }
}

// RunFor on a child that would go on for a minute: ended with an error, well before that.
void ExpectEnded(const std::string& script) {
  const auto start = steady_clock::now();
  const auto result = RunFor(Shell(script), milliseconds(100));
  EXPECT_LT(steady_clock::now() - start, seconds(20)) << script;
  ASSERT_FALSE(result) << script;
  EXPECT_EQ(result.error().code(), ErrorCode::kRetry);
  EXPECT_THAT(result.error().message(), HasSubstr("took too long"));
}

TEST(ProcessTest, RunForEndsWhatTakesTooLong) {
  ExpectEnded("exec sleep 60");
  ExpectEnded("exec timeout -s KILL 60 yes");   // always something to read
  ExpectEnded("exec >&- 2>&-; exec sleep 60");  // nothing ever again
  ExpectEnded("exec >&-; exec sleep 60");
}

TEST(ProcessTest, AnOutputThatEndedEarlyIsNotPolledOverAndOver) {
  rusage before{};
  rusage after{};
  ::getrusage(RUSAGE_SELF, &before);
  EXPECT_TRUE(RunFor(Shell("exec >&-; exec sleep 0.5"), seconds(20))->exit.Ok());
  ::getrusage(RUSAGE_SELF, &after);
  const auto cpu_us = [](const rusage& usage) {
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1'000'000 + usage.ru_utime.tv_usec +
           usage.ru_stime.tv_usec;
  };
  EXPECT_LT(cpu_us(after) - cpu_us(before), 200'000);
}

TEST(ChildTest, WaitForTellsWhetherItStillRuns) {
  Child child = Child::Spawn({.argv = {"sleep", "60"}}).value();
  EXPECT_FALSE(child.WaitFor(milliseconds(20)).value());
  ASSERT_TRUE(child.Signal(SIGTERM));
  EXPECT_TRUE(child.WaitFor(seconds(20)).value());
  EXPECT_TRUE(child.WaitFor(seconds(0)).value()) << "looking does not reap";
  EXPECT_EQ(child.Wait()->signal, SIGTERM);
  EXPECT_TRUE(child.Signal(SIGTERM)) << "a process that is gone is not an error";
}

TEST(ChildTest, OutlivesItsHandle) {
  pid_t pid = -1;
  UniqueFd pidfd;
  {
    const Child child = Child::Spawn({.argv = {"sleep", "60"}}).value();
    pid = child.pid();
    pidfd = OpenPidfd(pid).value();
  }
  EXPECT_NE(ReadProcStatus(pid)->state, 'Z');
  ASSERT_TRUE(SignalPidfd(pidfd.get(), SIGKILL));
  EXPECT_EQ(::waitpid(pid, nullptr, 0), pid);
}

}  // namespace
}  // namespace waft::base
