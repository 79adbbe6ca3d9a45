#include "migration/run_directory.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/mount.h>

#include <charconv>
#include <string>
#include <system_error>
#include <vector>

#include "base/clock.h"
#include "base/file.h"
#include "base/pidfd.h"
#include "base/unique_fd.h"

namespace waft::migration {
namespace fs = std::filesystem;
namespace {

// Is a process, given as its directory in /proc, at work in `directory`? runc names it on its
// command line. CRIU writes over that and steps into other mount namespaces, but keeps files there
// open.
bool WorksIn(const fs::path& process, const fs::path& directory) {
  const base::Result<std::string> line = base::ReadFile(process / "cmdline");
  if (line && line->find(directory.native()) != std::string::npos) return true;
  std::error_code gone;
  const std::string program = fs::read_symlink(process / "exe", gone).filename();
  if (!program.starts_with("criu")) return false;
  for (fs::directory_iterator fd(process / "fd", gone), end; !gone && fd != end;
       fd.increment(gone)) {
    std::error_code closed;
    if (fs::read_symlink(fd->path(), closed).native().starts_with(directory.native())) return true;
  }
  return false;
}

// The pid of one that does, or 0.
pid_t FindUser(const fs::path& directory) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename();
    pid_t pid = 0;
    if (std::from_chars(name.data(), name.data() + name.size(), pid).ec == std::errc() &&
        WorksIn(entry.path(), directory)) {
      return pid;
    }
  }
  return 0;
}

}  // namespace

base::Status RemoveRunDirectory(const fs::path& directory) {
  // Below nothing, or below "/", lies every mount of this host.
  if (!directory.has_relative_path() || !directory.is_absolute()) {
    return base::Fail(base::ErrorCode::kFatal,
                      fmt::format("'{}' is no migration's directory", directory.string()));
  }
  WAFT_ASSIGN(const std::vector<fs::path> mounts, base::MountsBelow(directory));
  for (const fs::path& mount : mounts) {
    if (::umount2(mount.c_str(), 0) != 0) return base::FailErrno("unmount " + mount.string());
  }
  return base::RemoveTree(directory);
}

base::Status AwaitOrphans(const fs::path& directory, std::chrono::milliseconds timeout) {
  const base::Deadline deadline = base::Deadline::After(timeout);
  for (;;) {
    const pid_t pid = FindUser(directory);
    if (pid == 0) return {};
    const base::Result<base::UniqueFd> process = base::OpenPidfd(pid);
    if (!process) continue;
    // Until its very end: its files keep a mount busy for a moment after it can be seen to have
    // none.
    pollfd wait{process->get(), POLLIN, 0};
    ::poll(&wait, 1, deadline.LeftMs());
    if (deadline.Passed()) {
      return base::Fail(
          base::ErrorCode::kFatal,
          fmt::format("pid {} still works in {}; end the migration by hand once it has "
                      "gone, then restart waftd",
                      pid, directory.string()));
    }
  }
}

}  // namespace waft::migration
