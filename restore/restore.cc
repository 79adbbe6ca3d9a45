#include "restore/restore.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/fault.h"
#include "base/file.h"
#include "base/log.h"
#include "criu/criu.h"
#include "criu/relay.h"
#include "restore/timers.h"

namespace waft::restore {
namespace fs = std::filesystem;
using base::ErrorCode;
using base::Fail;
using base::Freezer;
namespace {

constexpr std::chrono::seconds kFreezeTimeout{5};

// Freezes the restored tasks while CRIU still holds them.
base::Result<Freezer> Hold(pid_t init, pid_t criu) {
  if (init <= 0) return Fail(ErrorCode::kRollBack, "CRIU did not name the restored init");
  WAFT_ASSIGN(Freezer freezer, Freezer::ForProcess(init));
  WAFT_ASSIGN(const Freezer own, Freezer::ForProcess(::getpid()));
  WAFT_TRY(base::WriteControlFile(own.directory() / "cgroup.procs", std::to_string(criu)));
  WAFT_TRY(freezer.StartFreeze());
  return freezer;
}

}  // namespace

base::Result<Freezer> RestoreFrozen(const base::Command& restore, const fs::path& work,
                                    const fs::path& programs) {
  // Written on the relay's thread, read here after the relay has been joined.
  pid_t init = 0;
  base::Result<Freezer> held = Fail(ErrorCode::kRollBack, "CRIU never came to pre-resume");
  const auto on_notify = [&](const criu::Notification& notification) {
    if (notification.workload_pid > 0) init = notification.workload_pid;
    if (notification.script != "pre-resume") return;
    base::LogIfError(base::FaultPoint("destination-restored"), "at pre-resume");
    held = Hold(init, notification.criu_pid);
    // The answer to pre-resume cannot stop CRIU, and what cannot be held must not run.
    if (!held && init > 0) ::kill(init, SIGKILL);
  };

  std::optional<base::RunResult> run;
  {
    WAFT_ASSIGN(const std::unique_ptr<criu::Relay> relay,
                criu::Relay::Start(work, programs, on_notify));
    base::Command command = restore;
    command.environment.insert(relay->environment().begin(), relay->environment().end());
    WAFT_ASSIGN(run, base::Run(command));
  }
  if (!run->exit.Ok()) {
    const std::string words = criu::LogErrors(work / "restore.log");
    const std::string why =
        words.empty() ? fmt::format("{}runc restore {}", run->err, run->exit.ToString()) : words;
    return Fail(ErrorCode::kRollBack, fmt::format("CRIU cannot restore the workload: {}", why));
  }
  if (!held) return held;
  WAFT_TRY(held->Freeze(kFreezeTimeout));
  WAFT_ASSIGN(const std::vector<pid_t> pids, held->Processes());
  WAFT_TRY(RearmTimers(pids));
  return held;
}

base::Status Resume(base::Freezer& freezer) {
  WAFT_ASSIGN(const std::vector<pid_t> pids, freezer.Processes());
  // Takes back the SIGSTOP that CRIU left with each, which a frozen task has not seen.
  for (const pid_t pid : pids) {
    if (pid > 0) ::kill(pid, SIGCONT);
  }
  return freezer.Thaw();
}

}  // namespace waft::restore
