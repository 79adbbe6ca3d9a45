#include "base/process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstring>
#include <optional>
#include <string_view>

#include "base/clock.h"
#include "base/pidfd.h"

namespace waft::base {
namespace {

constexpr size_t kCaptureLimit = 1 << 20;
constexpr size_t kMaxPipeSize = 1 << 20;  // pipe(7), /proc/sys/fs/pipe-max-size

class SpawnSetup {
 public:
  SpawnSetup() {
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
  }
  SpawnSetup(const SpawnSetup&) = delete;
  SpawnSetup& operator=(const SpawnSetup&) = delete;
  ~SpawnSetup() {
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
  }
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
};

std::vector<std::string> MergedEnvironment(const std::map<std::string, std::string>& added) {
  std::vector<std::string> merged;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    if (!added.contains(std::string(text.substr(0, text.find('='))))) merged.emplace_back(text);
  }
  for (const auto& [name, value] : added) merged.push_back(fmt::format("{}={}", name, value));
  return merged;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  pointers.reserve(strings.size() + 1);
  for (std::string& text : strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// Reads what is there into `out`; true when the pipe has ended. One turn reads no more than a pipe
// can hold, so a child that never stops writing cannot keep us here, and one that has ended is read
// out.
bool Drain(int fd, std::string& out) {
  std::array<char, 16 << 10> buffer;
  for (size_t turn_bytes = 0; turn_bytes < kMaxPipeSize;) {
    const ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return false;
    if (got <= 0) return true;
    turn_bytes += static_cast<size_t>(got);
    const size_t room = kCaptureLimit - std::min(out.size(), kCaptureLimit);
    out.append(buffer.data(), std::min(static_cast<size_t>(got), room));
  }
  return false;
}

Result<RunResult> RunUntil(const Command& command, std::optional<Deadline> deadline) {
  std::array<int, 2> out_pipe{};
  std::array<int, 2> err_pipe{};
  if (::pipe2(out_pipe.data(), O_CLOEXEC) != 0) return FailErrno("pipe2");
  const UniqueFd out_read(out_pipe[0]);
  UniqueFd out_write(out_pipe[1]);
  if (::pipe2(err_pipe.data(), O_CLOEXEC) != 0) return FailErrno("pipe2");
  const UniqueFd err_read(err_pipe[0]);
  UniqueFd err_write(err_pipe[1]);
  ::fcntl(out_read.get(), F_SETFL, O_NONBLOCK);
  ::fcntl(err_read.get(), F_SETFL, O_NONBLOCK);

  Command captured = command;
  captured.fds.emplace_back(out_write.get(), STDOUT_FILENO);
  captured.fds.emplace_back(err_write.get(), STDERR_FILENO);
  WAFT_ASSIGN(Child child, Child::Spawn(captured));
  out_write.reset();
  err_write.reset();

  RunResult result;
  bool killed = false;
  std::array<pollfd, 3> wait{
      {{child.pidfd(), POLLIN, 0}, {out_read.get(), POLLIN, 0}, {err_read.get(), POLLIN, 0}}};
  do {
    const int timeout_ms = deadline && !killed ? deadline->LeftMs() : -1;
    if (::poll(wait.data(), wait.size(), timeout_ms) < 0) {
      if (errno != EINTR) return FailErrno("poll");
      continue;  // poll left revents as they were
    }
    // Not only when poll was idle: a child that keeps writing never lets it be.
    if (deadline && !killed && wait[0].revents == 0 && deadline->Passed()) {
      killed = true;
      WAFT_TRY(child.Signal(SIGKILL));
    }
    // A pipe that has ended would keep poll from waiting: a negative descriptor takes it out.
    if (Drain(out_read.get(), result.out)) wait[1].fd = -1;
    if (Drain(err_read.get(), result.err)) wait[2].fd = -1;
  } while (wait[0].revents == 0);
  WAFT_ASSIGN(result.exit, child.Wait());
  if (killed) {
    return Fail(ErrorCode::kRetry,
                fmt::format("'{}' was ended: it took too long", command.ToString()));
  }
  return result;
}

}  // namespace

std::string Command::ToString() const { return fmt::format("{}", fmt::join(argv, " ")); }

std::string ExitState::ToString() const {
  if (signal != 0) return fmt::format("ended by signal {} ({})", signal, strsignal(signal));
  return fmt::format("exit code {}", code);
}

Result<Child> Child::Spawn(const Command& command) {
  if (command.argv.empty()) return Fail(ErrorCode::kBadArgument, "an empty command");
  SpawnSetup setup;
  sigset_t signals;
  sigfillset(&signals);
  posix_spawnattr_setsigdefault(&setup.attributes, &signals);
  sigemptyset(&signals);
  posix_spawnattr_setsigmask(&setup.attributes, &signals);
  posix_spawnattr_setflags(&setup.attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);

  posix_spawn_file_actions_addopen(&setup.actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  // From copies above every number asked for: a number may be the target of one pair and the source
  // of a later one.
  int above = STDERR_FILENO;
  for (const auto& [ours, theirs] : command.fds) above = std::max(above, theirs);
  std::vector<UniqueFd> copies;
  for (const auto& [ours, theirs] : command.fds) {
    UniqueFd& copy = copies.emplace_back(::fcntl(ours, F_DUPFD_CLOEXEC, above + 1));
    if (!copy) return FailErrno(fmt::format("descriptor {} for {}", ours, command.argv[0]));
    posix_spawn_file_actions_adddup2(&setup.actions, copy.get(), theirs);
  }
  if (!command.directory.empty()) {
    posix_spawn_file_actions_addchdir_np(&setup.actions, command.directory.c_str());
  }
  std::vector<std::string> arguments = command.argv;
  std::vector<std::string> environment = MergedEnvironment(command.environment);
  pid_t pid = -1;
  const int error = ::posix_spawnp(&pid, arguments[0].c_str(), &setup.actions, &setup.attributes,
                                   Pointers(arguments).data(), Pointers(environment).data());
  if (error != 0) {
    const std::string where =
        command.directory.empty() ? "" : fmt::format(" in {}", command.directory.string());
    return std::unexpected(
        Error::FromErrno(fmt::format("cannot run {}{}", command.argv[0], where), error));
  }
  WAFT_ASSIGN(UniqueFd pidfd, OpenPidfd(pid));
  return Child(pid, std::move(pidfd));
}

Result<ExitState> Child::Wait() {
  siginfo_t info{};
  while (::waitid(P_PIDFD, static_cast<id_t>(pidfd_.get()), &info, WEXITED) != 0) {
    if (errno != EINTR) return FailErrno("waitid");
  }
  if (info.si_code == CLD_EXITED) return ExitState{.code = info.si_status};
  return ExitState{.code = -1, .signal = info.si_status};
}

Result<bool> Child::WaitFor(std::chrono::milliseconds timeout) {
  const Deadline deadline = Deadline::After(timeout);
  for (;;) {
    pollfd wait{pidfd_.get(), POLLIN, 0};
    const int ready = ::poll(&wait, 1, deadline.LeftMs());
    if (ready >= 0) return ready > 0;
    if (errno != EINTR) return FailErrno("poll");
  }
}

Status Child::Signal(int signal) { return SignalPidfd(pidfd_.get(), signal); }

Result<RunResult> Run(const Command& command) { return RunUntil(command, std::nullopt); }

Result<RunResult> RunFor(const Command& command, std::chrono::milliseconds timeout) {
  return RunUntil(command, Deadline::After(timeout));
}

}  // namespace waft::base
