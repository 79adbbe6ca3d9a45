#include "checkpoint/dump.h"

#include <fmt/format.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>

#include "base/log.h"
#include "criu/criu.h"

namespace waft::checkpoint {
namespace fs = std::filesystem;
using base::ErrorCode;
using base::Fail;
namespace {

// Thaws the tasks if it is not stopped in time.
class Watchdog {
 public:
  Watchdog(base::Freezer& freezer, std::chrono::milliseconds timeout)
      : thread_([this, &freezer, timeout] {
          std::unique_lock lock(mutex_);
          if (changed_.wait_for(lock, timeout, [this] { return stopped_; })) return;
          fired_ = true;
          base::LogIfError(freezer.Thaw(), "thaw after a dump that does not end");
        }) {}
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  ~Watchdog() { Stop(); }

  // True if it was too late.
  bool Stop() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
      changed_.notify_one();
    }
    if (thread_.joinable()) thread_.join();
    return fired_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopped_ = false;
  bool fired_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace

base::Result<DumpResult> Dump(const base::Command& checkpoint, const criu::Relay& relay,
                              base::Freezer& freezer, const fs::path& images, const fs::path& work,
                              std::chrono::milliseconds timeout) {
  base::Command command = checkpoint;
  command.environment.insert(relay.environment().begin(), relay.environment().end());
  Watchdog watchdog(freezer, timeout);
  WAFT_ASSIGN(const base::RunResult run, base::Run(command));
  if (watchdog.Stop()) {
    return Fail(ErrorCode::kRollBack,
                fmt::format("CRIU did not finish the dump within {} s", timeout.count() / 1000));
  }
  if (!run.exit.Ok()) {
    const std::string words = criu::LogErrors(work / "dump.log");
    const std::string why =
        words.empty() ? fmt::format("{}runc checkpoint {}", run.err, run.exit.ToString()) : words;
    return Fail(ErrorCode::kRollBack, fmt::format("CRIU cannot dump the workload: {}", why));
  }
  // A task that ran after its state was read must never be restored elsewhere.
  WAFT_ASSIGN(const bool frozen, freezer.IsFrozen());
  if (!frozen) return Fail(ErrorCode::kRollBack, "the workload was thawed during the dump");

  DumpResult result;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(images, error)) {
    const uint64_t size = entry.file_size(error);
    result.files += 1;
    result.bytes += size;
    if (entry.path().filename().string().starts_with("pages-")) {
      result.pages += size / static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
    }
  }
  if (error || result.files == 0) {
    return Fail(ErrorCode::kRollBack, fmt::format("no images in {}", images.string()));
  }
  return result;
}

}  // namespace waft::checkpoint
