#pragma once

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"

namespace waft::base {

// A program to run. Nothing of ours leaks into it: every descriptor waft opens is close-on-exec.
struct Command {
  std::vector<std::string> argv;                   // argv[0] is looked up on our PATH
  std::map<std::string, std::string> environment;  // on top of our own
  std::filesystem::path directory;                 // empty: ours
  std::vector<std::pair<int, int>> fds;            // our descriptor -> its number in the child

  std::string ToString() const;  // for messages
};

// How a child ended: an exit code, or the signal that ended it (then code is -1).
struct ExitState {
  int code = 0;
  int signal = 0;
  bool Ok() const { return code == 0 && signal == 0; }
  std::string ToString() const;
};

// A child process, held by pid and pidfd. Destroying it does not end the process: whoever spawns
// decides (fact 10: some children must never be killed). Not thread-safe.
class Child {
 public:
  // posix_spawn(3): safe from threads. Standard input is /dev/null unless `fds` maps 0; standard
  // output and error are ours unless mapped. Signals start at their defaults, none blocked.
  static Result<Child> Spawn(const Command& command);

  pid_t pid() const { return pid_; }
  int pidfd() const { return pidfd_.get(); }

  // Blocks until the child ends; reaps it.
  Result<ExitState> Wait();
  // False when it still runs after `timeout`.
  Result<bool> WaitFor(std::chrono::milliseconds timeout);
  Status Signal(int signal);

 private:
  Child(pid_t pid, UniqueFd pidfd) : pid_(pid), pidfd_(std::move(pidfd)) {}
  pid_t pid_;
  UniqueFd pidfd_;
};

struct RunResult {
  ExitState exit;
  std::string out;  // each at most 1 MiB, the rest is read and dropped
  std::string err;
};

// Runs to the end and captures both outputs. Returns when the child itself has ended, also while
// some grandchild keeps the pipes open.
Result<RunResult> Run(const Command& command);

// The same for commands that may be ended: SIGKILL after `timeout`, and an error that says so.
Result<RunResult> RunFor(const Command& command, std::chrono::milliseconds timeout);

}  // namespace waft::base
