#include "checkpoint/examine.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <map>
#include <optional>
#include <set>
#include <string_view>

#include "base/file.h"
#include "base/pidfd.h"
#include "base/proc.h"
#include "base/unique_fd.h"

namespace waft::checkpoint {
namespace fs = std::filesystem;
using base::UniqueFd;
namespace {

constexpr std::string_view kDeleted = " (deleted)";
constexpr uint64_t kGhostLimitBytes = 1 << 20;  // CRIU's default --ghost-limit
constexpr uint64_t kImageSlackBytes = 32 << 20;
constexpr int kProtocolMptcp = 262;  // IPPROTO_MPTCP, newer than our libc's headers may be

// File systems whose content CRIU makes anew or carries itself.
bool IsCarriedFileSystem(std::string_view type) {
  static const std::set<std::string_view> kCarried = {"proc",   "sysfs",    "tmpfs",  "devpts",
                                                      "mqueue", "devtmpfs", "cgroup", "cgroup2"};
  return kCarried.contains(type);
}

bool IsBelow(const fs::path& path, const fs::path& directory) {
  const auto [end, ignored] =
      std::mismatch(directory.begin(), directory.end(), path.begin(), path.end());
  return end == directory.end() || (std::next(end) == directory.end() && end->empty());
}

// One task's view: its mounts, and from there the host's path of a path.
class TaskPaths {
 public:
  TaskPaths(std::vector<base::MountInfo> mounts, const HostPaths& host)
      : mounts_(std::move(mounts)), host_(host) {}

  bool HasMount(int id) const {
    return std::any_of(mounts_.begin(), mounts_.end(),
                       [id](const base::MountInfo& mount) { return mount.id == id; });
  }

  // The host's path of `path`, or nothing if CRIU carries the file system it lies on.
  std::optional<fs::path> OnHost(const fs::path& path) const {
    const base::MountInfo* covering = nullptr;
    for (const base::MountInfo& mount : mounts_) {
      if (IsBelow(path, mount.mount_point) &&
          (covering == nullptr ||
           mount.mount_point.native().size() >= covering->mount_point.native().size())) {
        covering = &mount;
      }
    }
    if (covering == nullptr) return std::nullopt;
    for (const auto& [inside, outside] : host_.binds) {
      if (covering->mount_point == inside) {
        return path == inside ? outside : outside / path.lexically_relative(inside);
      }
    }
    if (IsCarriedFileSystem(covering->fs_type)) return std::nullopt;
    return path == path.root_path() ? host_.rootfs : host_.rootfs / path.relative_path();
  }

  const std::vector<base::MountInfo>& mounts() const { return mounts_; }

 private:
  std::vector<base::MountInfo> mounts_;
  const HostPaths& host_;
};

// The mount an open descriptor came through: fdinfo's mnt_id.
int MountIdOf(pid_t pid, int fd) {
  const base::Result<std::string> info = base::ReadFile(fmt::format("/proc/{}/fdinfo/{}", pid, fd));
  int id = -1;
  if (!info) return id;
  if (const size_t at = info->find("mnt_id:"); at != std::string::npos) {
    const size_t start = info->find_first_of("0123456789", at);
    std::from_chars(info->data() + start, info->data() + info->size(), id);
  }
  return id;
}

// One figure in kB of /proc/PID/smaps_rollup, as bytes.
uint64_t RollupBytes(const std::string& rollup, std::string_view key) {
  const size_t at = rollup.find(key);
  if (at == std::string::npos) return 0;
  const size_t start = rollup.find_first_of("0123456789", at);
  uint64_t kib = 0;
  std::from_chars(rollup.data() + start, rollup.data() + rollup.size(), kib);
  return kib << 10;
}

class Examiner {
 public:
  Examiner(pid_t init, const HostPaths& paths) : init_(init), host_(paths) {}

  base::Status Task(pid_t pid, const std::set<pid_t>& pids) {
    WAFT_ASSIGN(const base::ProcStatus status, base::ReadProcStatus(pid));
    // Being reaped: it has no parent any more (fs/proc/array.c, task_state()).
    if (status.state == 'X' && pid != init_) return {};
    const std::string task = fmt::format("task {} ({})", pid, status.name);
    result_.tasks += static_cast<uint32_t>(status.threads);
    if (status.tracer_pid != 0) {
      Refuse("{} is being traced by pid {}: end the debugger or strace", task, status.tracer_pid);
    }
    if (pid != init_ && !pids.contains(status.parent_pid)) {
      Refuse("{} is no child of the workload's init (an open `runc exec`?): end it first", task);
    }
    if (status.state == 'Z') return {};
    if (status.state == 'T') {
      // PTRACE_SEIZE of a stopped task in a frozen cgroup waits for the thaw (CRIU pull 1905).
      Refuse("{} is stopped, and CRIU would wait for it for good: send it SIGCONT", task);
    }

    // Shared pages are split among their users by Pss; private ones count in full, since a restored
    // process may not share them any more.
    const base::Result<std::string> rollup =
        base::ReadFile(fmt::format("/proc/{}/smaps_rollup", pid));
    const uint64_t shared = rollup ? RollupBytes(*rollup, "Pss_Shmem:") : status.rss_shmem_bytes;
    result_.memory_bytes +=
        status.rss_anon_bytes + shared + status.swap_bytes + status.hugetlb_bytes;

    WAFT_ASSIGN(std::vector<base::MountInfo> mounts, base::ReadMountInfo(pid));
    const TaskPaths paths(std::move(mounts), host_);
    if (pid == init_) CountTmpfs(paths);
    WAFT_TRY(Descriptors(pid, task, paths));
    WAFT_ASSIGN(const std::vector<base::Mapping> mappings, base::ReadMappings(pid));
    for (const base::Mapping& mapping : mappings) {
      if (mapping.inode != 0) AddPath(mapping.path, paths);
    }
    std::error_code gone;
    AddPath(fs::read_symlink(fmt::format("/proc/{}/cwd", pid), gone), paths);
    return {};
  }

  void Binds() {
    for (const auto& [inside, outside] : host_.binds) wanted_.insert(outside);
  }

  base::Result<Examination> Finish() {
    for (const fs::path& path : wanted_) {
      struct stat info{};
      if (::stat(path.c_str(), &info) != 0) {
        Refuse("{} is in use but cannot be found under that path", path.string());
        continue;
      }
      v1::FileFact fact;
      fact.set_path(path);
      fact.set_mode(info.st_mode);
      if (S_ISREG(info.st_mode)) {
        WAFT_ASSIGN(std::string digest, base::Sha256File(path));
        fact.set_sha256(std::move(digest));
      } else if (!S_ISDIR(info.st_mode)) {
        continue;
      }
      result_.files.push_back(std::move(fact));
    }
    result_.image_bytes += result_.memory_bytes + result_.memory_bytes / 20 + kImageSlackBytes;
    return std::move(result_);
  }

 private:
  template <typename... Args>
  void Refuse(fmt::format_string<Args...> format, Args&&... args) {
    result_.refusals.push_back(fmt::format(format, std::forward<Args>(args)...));
  }

  void AddPath(const fs::path& path, const TaskPaths& paths) {
    if (!path.is_absolute() || path.native().ends_with(kDeleted)) return;
    if (const std::optional<fs::path> host = paths.OnHost(path)) wanted_.insert(*host);
  }

  // CRIU packs a workload's own tmpfs mounts into the image set.
  void CountTmpfs(const TaskPaths& paths) {
    for (const base::MountInfo& mount : paths.mounts()) {
      if (mount.fs_type != "tmpfs") continue;
      const fs::path seen = fmt::format("/proc/{}/root{}", init_, mount.mount_point.string());
      struct statvfs info{};
      if (::statvfs(seen.c_str(), &info) == 0) {
        result_.image_bytes += (info.f_blocks - info.f_bfree) * info.f_frsize;
      }
    }
  }

  base::Status Descriptors(pid_t pid, const std::string& task, const TaskPaths& paths) {
    WAFT_ASSIGN(const std::vector<base::FdInfo> fds, base::ReadFds(pid));
    WAFT_ASSIGN(const UniqueFd pidfd, base::OpenPidfd(pid));
    for (const base::FdInfo& fd : fds) {
      if (fd.target.starts_with("socket:")) {
        Socket(pidfd.get(), fd.fd, task);
        continue;
      }
      std::string why = DescriptorRefusal(fd.target);
      if (why.empty() && fd.target.starts_with("/") && !fd.target.starts_with("/memfd:")) {
        why = FileRefusal(pid, fd, paths);
        if (why.empty()) AddPath(fd.target, paths);
      }
      if (!why.empty()) Refuse("{} has descriptor {}: {}", task, fd.fd, why);
    }
    return {};
  }

  static std::string FileRefusal(pid_t pid, const base::FdInfo& fd, const TaskPaths& paths) {
    const fs::path seen = fmt::format("/proc/{}/fd/{}", pid, fd.fd);
    struct stat info{};
    if (::stat(seen.c_str(), &info) != 0) return "";
    if (S_ISCHR(info.st_mode)) {
      // /dev/{null,zero,full,random,urandom}, ttys and tun: criu/files.c, dump_chrdev().
      const bool memory_device = major(info.st_rdev) == 1 && minor(info.st_rdev) != 1 &&
                                 minor(info.st_rdev) != 2 && minor(info.st_rdev) != 11;
      const bool terminal = major(info.st_rdev) == 5 || major(info.st_rdev) == 4 ||
                            (major(info.st_rdev) >= 128 && major(info.st_rdev) <= 143);
      const bool tun = info.st_rdev == makedev(10, 200);
      if (!memory_device && !terminal && !tun) {
        return fmt::format("the device {}, whose state CRIU cannot save", fd.target);
      }
      return "";
    }
    if (S_ISREG(info.st_mode) && info.st_nlink == 0 &&
        static_cast<uint64_t>(info.st_size) > kGhostLimitBytes) {
      return fmt::format("{}, a removed file of {} bytes; CRIU carries removed files up to {}",
                         fd.target, info.st_size, kGhostLimitBytes);
    }
    if (const int id = MountIdOf(pid, fd.fd); id >= 0 && !paths.HasMount(id)) {
      return fmt::format("{}, opened outside its own mounts (standard output sent to a host file?)",
                         fd.target);
    }
    return "";
  }

  void Socket(int pidfd, int fd, const std::string& task) {
    const base::Result<UniqueFd> ours = base::DuplicateFd(pidfd, fd);
    if (!ours) return;  // closed since it was listed
    int domain = 0;
    int type = 0;
    int protocol = 0;
    socklen_t length = sizeof(int);
    ::getsockopt(ours->get(), SOL_SOCKET, SO_DOMAIN, &domain, &length);
    ::getsockopt(ours->get(), SOL_SOCKET, SO_TYPE, &type, &length);
    ::getsockopt(ours->get(), SOL_SOCKET, SO_PROTOCOL, &protocol, &length);
    if (const std::string why = SocketRefusal(domain, type, protocol); !why.empty()) {
      Refuse("{} has descriptor {}: {}", task, fd, why);
    }
  }

  pid_t init_;
  const HostPaths& host_;
  std::set<fs::path> wanted_;
  Examination result_;
};

}  // namespace

std::string DescriptorRefusal(const std::string& target) {
  constexpr std::string_view kAnonymous = "anon_inode:";
  if (!target.starts_with(kAnonymous)) return "";
  std::string_view kind = std::string_view(target).substr(kAnonymous.size());
  if (kind.starts_with('[') && kind.ends_with(']')) kind = kind.substr(1, kind.size() - 2);
  static const std::set<std::string_view> kDumped = {"eventfd", "eventpoll", "signalfd", "timerfd",
                                                     "inotify", "fanotify",  "pidfd"};
  if (kDumped.contains(kind)) return "";
  static const std::map<std::string_view, std::string_view> kAdvice = {
      {"io_uring", "run it with io_uring switched off"},
      {"userfaultfd", "a space that is still being filled or is tracked by another cannot move"},
      {"perf_event", "end the profiler"},
  };
  const auto advice = kAdvice.find(kind);
  return fmt::format("{}, which CRIU cannot dump{}{}", kind, advice == kAdvice.end() ? "" : ": ",
                     advice == kAdvice.end() ? "" : advice->second);
}

std::string SocketRefusal(int domain, int type, int protocol) {
  if (domain == AF_UNIX || domain == AF_NETLINK || domain == AF_PACKET) return "";
  if (domain == AF_INET || domain == AF_INET6) {
    if (type == SOCK_RAW) return "";
    if (type == SOCK_STREAM && protocol == IPPROTO_TCP) return "";
    if (type == SOCK_DGRAM && (protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE)) return "";
    if (protocol == kProtocolMptcp) {
      return "an MPTCP socket, which CRIU cannot dump: Go programs take GODEBUG=multipathtcp=0";
    }
    if (protocol == IPPROTO_SCTP) return "an SCTP socket, which CRIU cannot dump";
    return fmt::format("a socket of protocol {}, which CRIU cannot dump", protocol);
  }
  static const std::map<int, std::string_view> kFamilies = {
      {AF_VSOCK, "AF_VSOCK"}, {AF_ALG, "AF_ALG"}, {AF_XDP, "AF_XDP"},
      {AF_TIPC, "AF_TIPC"},   {AF_CAN, "AF_CAN"}, {AF_RDS, "AF_RDS"}};
  const auto family = kFamilies.find(domain);
  return fmt::format("an {} socket, which CRIU cannot dump",
                     family == kFamilies.end() ? fmt::format("address family {}", domain)
                                               : std::string(family->second));
}

base::Result<Examination> Examine(pid_t init, const std::vector<pid_t>& pids,
                                  const HostPaths& paths) {
  Examiner examiner(init, paths);
  const std::set<pid_t> set(pids.begin(), pids.end());
  for (const pid_t pid : pids) {
    const base::Status status = examiner.Task(pid, set);
    if (status) continue;
    // A task other than init may have ended since it was listed. mountinfo says EINVAL for one that
    // is on its way out (fs/proc_namespace.c, mounts_open_common()).
    const bool ended = base::IsGone(status.error()) || status.error().error_number() == EINVAL;
    if (pid == init || !ended) return std::unexpected(status.error());
  }
  examiner.Binds();
  return examiner.Finish();
}

}  // namespace waft::checkpoint
