#include "checkpoint/dump.h"

#include <fmt/format.h>
#include <unistd.h>

#include <string>
#include <system_error>

#include "criu/criu.h"

namespace waft::checkpoint {
namespace fs = std::filesystem;
using base::ErrorCode;
using base::Fail;

base::Result<DumpResult> Dump(const base::Command& checkpoint, const criu::Relay& relay,
                              const base::Freezer& freezer, const fs::path& images,
                              const fs::path& work) {
  base::Command command = checkpoint;
  command.environment.insert(relay.environment().begin(), relay.environment().end());
  WAFT_ASSIGN(const base::RunResult run, base::Run(command));
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
