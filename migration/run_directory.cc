#include "migration/run_directory.h"

#include <fmt/format.h>
#include <sys/mount.h>

#include <algorithm>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/file.h"

namespace waft::migration {
namespace fs = std::filesystem;
namespace {

constexpr std::chrono::milliseconds kPoll{20};

// A pid whose command line names `directory`, or an empty string.
std::string FindUser(const fs::path& directory) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename();
    if (!std::all_of(name.begin(), name.end(), [](unsigned char c) { return std::isdigit(c); })) {
      continue;
    }
    const base::Result<std::string> line = base::ReadFile(entry.path() / "cmdline");
    if (line && line->find(directory.native()) != std::string::npos) return name;
  }
  return "";
}

}  // namespace

base::Status RemoveRunDirectory(const fs::path& directory) {
  WAFT_ASSIGN(const std::vector<fs::path> mounts, base::MountsBelow(directory));
  for (const fs::path& mount : mounts) {
    if (::umount2(mount.c_str(), 0) != 0) return base::FailErrno("unmount " + mount.string());
  }
  return base::RemoveTree(directory);
}

base::Status AwaitOrphans(const fs::path& directory, std::chrono::milliseconds timeout) {
  const base::Deadline deadline = base::Deadline::After(timeout);
  for (;;) {
    const std::string pid = FindUser(directory);
    if (pid.empty()) return {};
    if (deadline.Passed()) {
      return base::Fail(base::ErrorCode::kFatal,
                        fmt::format("pid {} still works in {}; end the migration by hand once it has "
                                    "gone, then restart waftd",
                                    pid, directory.string()));
    }
    std::this_thread::sleep_for(kPoll);
  }
}

}  // namespace waft::migration
