#include "base/process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <spawn.h>
#include <sys/pidfd.h>
#include <sys/wait.h>

#include <array>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstring>
#include <optional>
#include <string_view>

#include "base/clock.h"

extern char** environ;  // NOLINT(readability-redundant-declaration): POSIX says the user declares it

namespace waft::base {
namespace {

constexpr size_t kCaptureLimit = 1 << 20;

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
  for (const auto& [name, value] : added) merged.push_back(name + "=" + value);
  return merged;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  pointers.reserve(strings.size() + 1);
  for (std::string& text : strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// Reads what is there into `out`; true when the pipe has ended.
bool Drain(int fd, std::string& out) {
  std::array<char, 16 << 10> buffer;
  for (;;) {
    const ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return false;
    if (got <= 0) return true;
    const size_t room = kCaptureLimit - std::min(out.size(), kCaptureLimit);
    out.append(buffer.data(), std::min(static_cast<size_t>(got), room));
  }
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
  for (;;) {
    std::array<pollfd, 3> wait{{{child.pidfd(), POLLIN, 0},
                                {out_read.get(), POLLIN, 0},
                                {err_read.get(), POLLIN, 0}}};
    const int timeout_ms = deadline && !killed ? deadline->LeftMs() : -1;
    const int ready = ::poll(wait.data(), wait.size(), timeout_ms);
    if (ready < 0 && errno != EINTR) return FailErrno("poll");
    if (ready == 0) {
      killed = true;
      WAFT_TRY(child.Signal(SIGKILL));
    }
    const bool out_ended = Drain(out_read.get(), result.out);
    const bool err_ended = Drain(err_read.get(), result.err);
    // Once both pipes have ended poll would spin on them; only the child is left to wait for.
    if (wait[0].revents != 0 || (out_ended && err_ended && !deadline)) break;
    if (out_ended && err_ended && deadline) {
      WAFT_ASSIGN(const bool ended, child.WaitFor(std::chrono::milliseconds(deadline->LeftMs())));
      if (ended) break;
    }
  }
  WAFT_ASSIGN(result.exit, child.Wait());
  if (killed) {
    return Fail(ErrorCode::kRetry, fmt::format("'{}' was ended: it took too long",
                                               command.ToString()));
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
  for (const auto& [ours, theirs] : command.fds) {
    posix_spawn_file_actions_adddup2(&setup.actions, ours, theirs);
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
    return std::unexpected(Error::FromErrno("cannot run " + command.argv[0], error));
  }
  UniqueFd pidfd(::pidfd_open(pid, 0));
  if (!pidfd) return FailErrno("pidfd_open");
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

Status SignalPidfd(int pidfd, int signal) {
  if (::pidfd_send_signal(pidfd, signal, nullptr, 0) != 0 && errno != ESRCH) {
    return FailErrno("pidfd_send_signal");
  }
  return {};
}

}  // namespace waft::base
