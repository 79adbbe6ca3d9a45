#include "base/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/evp.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <system_error>

#include "base/log.h"
#include "base/proc.h"

namespace waft::base {
namespace fs = std::filesystem;

Result<UniqueFd> Open(const fs::path& path, int flags, mode_t mode) {
  UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC, mode));
  if (!fd) return FailErrno(fmt::format("open {}", path.string()));
  return fd;
}

Result<std::string> ReadFile(const fs::path& path, size_t limit_bytes) {
  WAFT_ASSIGN(UniqueFd fd, Open(path, O_RDONLY));
  std::string text;
  std::array<char, 64 << 10> buffer;
  for (;;) {
    const ssize_t got = ::read(fd.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FailErrno(fmt::format("read {}", path.string()));
    if (got == 0) return text;
    text.append(buffer.data(), static_cast<size_t>(got));
    if (text.size() > limit_bytes) {
      return Fail(ErrorCode::kRollBack,
                  fmt::format("{} is longer than {} bytes", path.string(), limit_bytes));
    }
  }
}

Status WriteAll(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t wrote = ::write(fd, bytes.data(), bytes.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return FailErrno("write");
    bytes.remove_prefix(static_cast<size_t>(wrote));
  }
  return {};
}

Status WriteControlFile(const fs::path& path, std::string_view text) {
  WAFT_ASSIGN(UniqueFd fd, Open(path, O_WRONLY));
  const ssize_t wrote = ::write(fd.get(), text.data(), text.size());
  if (wrote == static_cast<ssize_t>(text.size())) return {};
  const std::string what = fmt::format("write '{}' to {}", text, path.string());
  if (wrote < 0) return FailErrno(what);
  return Fail(ErrorCode::kRollBack, fmt::format("{}: only {} bytes were taken", what, wrote));
}

Status WriteFileAtomically(const fs::path& path, std::string_view text, mode_t mode) {
  const fs::path temporary = path.string() + ".new";
  {
    WAFT_ASSIGN(UniqueFd fd, Open(temporary, O_WRONLY | O_CREAT | O_TRUNC, mode));
    // Whatever the umask is, and whatever mode a crashed writer's temporary file has.
    if (::fchmod(fd.get(), mode) != 0) return FailErrno("fchmod " + temporary.string());
    WAFT_TRY(WriteAll(fd.get(), text));
    if (::fsync(fd.get()) != 0) return FailErrno(fmt::format("fsync {}", temporary.string()));
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    return FailErrno(fmt::format("rename to {}", path.string()));
  }
  const fs::path parent = path.has_parent_path() ? path.parent_path() : ".";
  WAFT_ASSIGN(UniqueFd directory, Open(parent, O_RDONLY | O_DIRECTORY));
  if (::fsync(directory.get()) != 0) return FailErrno("fsync the directory");
  return {};
}

Result<std::string> Sha256File(const fs::path& path) {
  WAFT_ASSIGN(UniqueFd fd, Open(path, O_RDONLY));
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(),
                                                                        &EVP_MD_CTX_free);
  if (!context || EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) != 1) {
    return Fail(ErrorCode::kFatal, "cannot set up SHA-256");
  }
  std::string buffer(1 << 20, '\0');
  for (;;) {
    const ssize_t got = ::read(fd.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FailErrno(fmt::format("read {}", path.string()));
    if (got == 0) break;
    EVP_DigestUpdate(context.get(), buffer.data(), static_cast<size_t>(got));
  }
  std::array<unsigned char, 32> digest{};
  EVP_DigestFinal_ex(context.get(), digest.data(), nullptr);
  return fmt::format("{:02x}", fmt::join(digest, ""));
}

Result<std::vector<fs::path>> MountsBelow(const fs::path& root) {
  WAFT_ASSIGN(const std::vector<MountInfo> mounts, ReadMountInfo(getpid()));
  std::error_code error;
  const fs::path real = fs::weakly_canonical(root, error);
  std::vector<fs::path> below;
  for (const MountInfo& mount : mounts) {
    if (mount.mount_point == real || mount.mount_point.string().starts_with(real.string() + "/")) {
      below.push_back(mount.mount_point);
    }
  }
  // mountinfo lists a mount after what it is mounted on, so backwards is deepest (and topmost)
  // first.
  std::reverse(below.begin(), below.end());
  return below;
}

Status RemoveTree(const fs::path& root) {
  WAFT_ASSIGN(const std::vector<fs::path> mounts, MountsBelow(root));
  if (!mounts.empty()) {
    return Fail(ErrorCode::kFatal, fmt::format("{} is not removed: {} is mounted there",
                                               root.string(), mounts.front().string()));
  }
  std::error_code error;
  fs::remove_all(root, error);
  if (error) return std::unexpected(Error::FromErrno("remove " + root.string(), error.value()));
  return {};
}

Result<TmpfsMount> TmpfsMount::Create(const fs::path& path, uint64_t size_bytes) {
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return FailErrno(fmt::format("mkdir {}", path.string()));
  }
  const std::string options = fmt::format("size={},mode=0700", size_bytes);
  if (::mount("waft-images", path.c_str(), "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
              options.c_str()) != 0) {
    return FailErrno(fmt::format("mount a tmpfs on {}", path.string()));
  }
  return TmpfsMount(path);
}

TmpfsMount& TmpfsMount::operator=(TmpfsMount&& other) noexcept {
  Unmount();
  path_ = std::exchange(other.path_, {});
  return *this;
}

void TmpfsMount::Unmount() {
  if (path_.empty()) return;
  const fs::path path = std::exchange(path_, {});
  if (::umount2(path.c_str(), 0) != 0) {
    // A process may still stand in it; detached it goes with its last user.
    LogWarning("unmount {}: {}; detaching it", path.string(),
               std::system_category().message(errno));
    ::umount2(path.c_str(), MNT_DETACH);
  }
  std::error_code error;
  fs::remove(path, error);
  if (error) LogWarning("rmdir {}: {}", path.string(), error.message());
}

}  // namespace waft::base
