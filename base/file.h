#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"

namespace waft::base {

// open(2) with O_CLOEXEC; `mode` is for O_CREAT.
Result<UniqueFd> Open(const std::filesystem::path& path, int flags, mode_t mode = 0644);

// The whole file, /proc and cgroup files included. More than `limit_bytes` is an error.
Result<std::string> ReadFile(const std::filesystem::path& path, size_t limit_bytes = 64 << 20);

// One write(2) to a file that exists: for /proc, sysfs and cgroup files.
Status WriteControlFile(const std::filesystem::path& path, std::string_view text);

// Writes every byte, over short writes and EINTR.
Status WriteAll(int fd, std::string_view bytes);

// Replaces `path` so that a crash leaves the old content or the new: temporary file, fsync, rename.
Status WriteFileAtomically(const std::filesystem::path& path, std::string_view text, mode_t mode);

// Lower-case hexadecimal SHA-256 of the file's bytes.
Result<std::string> Sha256File(const std::filesystem::path& path);

// Removes a tree without ever crossing into another file system: a mount below is an error and
// nothing is removed (fact 9: a bind mount left by a dead restore leads into a live rootfs).
Status RemoveTree(const std::filesystem::path& root);

// The mount points at or below `root`, deepest first.
Result<std::vector<std::filesystem::path>> MountsBelow(const std::filesystem::path& root);

// A tmpfs mounted for as long as this lives; RAII over mount(2) and umount2(2).
class TmpfsMount {
 public:
  // Creates the directory (0700) if need be and mounts a tmpfs of at most `size_bytes` on it.
  static Result<TmpfsMount> Create(const std::filesystem::path& path, uint64_t size_bytes);
  TmpfsMount(TmpfsMount&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  TmpfsMount& operator=(TmpfsMount&& other) noexcept;
  ~TmpfsMount() { Unmount(); }

  const std::filesystem::path& path() const { return path_; }
  // Unmounts and removes the directory now; errors are logged.
  void Unmount();

 private:
  explicit TmpfsMount(std::filesystem::path path) : path_(std::move(path)) {}
  std::filesystem::path path_;
};

}  // namespace waft::base
