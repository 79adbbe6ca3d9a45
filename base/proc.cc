#include "base/proc.h"

#include <fmt/format.h>
#include <sys/sysmacros.h>

#include <cerrno>
#include <charconv>
#include <sstream>
#include <system_error>

#include "base/file.h"

namespace waft::base {
namespace fs = std::filesystem;
namespace {

template <typename T>
T Number(std::string_view text, int radix = 10) {
  T value{};
  const size_t start = text.find_first_not_of(" \t");
  if (start == std::string_view::npos) return value;
  std::from_chars(text.data() + start, text.data() + text.size(), value, radix);
  return value;
}

std::vector<std::string_view> Lines(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    lines.push_back(text.substr(0, end));
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + 1);
  }
  return lines;
}

// mountinfo writes space, tab, newline and backslash as \ooo (proc_pid_mountinfo(5)).
std::string Unescape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      out.push_back(static_cast<char>(Number<int>(text.substr(i + 1, 3), 8)));
      i += 3;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

fs::path ProcPath(pid_t pid, std::string_view file) {
  return fmt::format("/proc/{}/{}", pid, file);
}

}  // namespace

bool IsGone(const Error& error) {
  return error.error_number() == ENOENT || error.error_number() == ESRCH;
}

Result<ProcStatus> ReadProcStatus(pid_t pid) {
  WAFT_ASSIGN(const std::string text, ReadFile(ProcPath(pid, "status")));
  ProcStatus status;
  for (const std::string_view line : Lines(text)) {
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos) continue;
    const std::string_view key = line.substr(0, colon);
    std::string_view value = line.substr(colon + 1);
    value.remove_prefix(std::min(value.find_first_not_of(" \t"), value.size()));
    const auto kib = [&] { return Number<uint64_t>(value) << 10; };
    if (key == "Name") {
      status.name = value;
    } else if (key == "State") {
      status.state = value.empty() ? '?' : value.front();
    } else if (key == "PPid") {
      status.parent_pid = Number<pid_t>(value);
    } else if (key == "TracerPid") {
      status.tracer_pid = Number<pid_t>(value);
    } else if (key == "Uid") {
      const size_t effective = value.find('\t');
      status.uid =
          Number<uid_t>(effective == std::string_view::npos ? value : value.substr(effective));
    } else if (key == "RssAnon") {
      status.rss_anon_bytes = kib();
    } else if (key == "RssFile") {
      status.rss_file_bytes = kib();
    } else if (key == "RssShmem") {
      status.rss_shmem_bytes = kib();
    } else if (key == "VmSwap") {
      status.swap_bytes = kib();
    } else if (key == "HugetlbPages") {
      status.hugetlb_bytes = kib();
    } else if (key == "Threads") {
      status.threads = Number<int>(value);
    } else if (key == "Seccomp") {
      status.seccomp = Number<int>(value);
    }
  }
  return status;
}

Result<std::vector<Mapping>> ReadMappings(pid_t pid) {
  WAFT_ASSIGN(const std::string text, ReadFile(ProcPath(pid, "maps"), size_t{1} << 30));
  std::vector<Mapping> mappings;
  for (const std::string_view line : Lines(text)) {
    std::istringstream in{std::string(line)};
    std::string range;
    std::string offset;
    std::string device;
    Mapping mapping;
    in >> range >> mapping.permissions >> offset >> device >> mapping.inode;
    std::getline(in >> std::ws, mapping.path);
    const size_t dash = range.find('-');
    if (dash == std::string::npos) continue;
    mapping.start = Number<uint64_t>(range, 16);
    mapping.end = Number<uint64_t>(std::string_view(range).substr(dash + 1), 16);
    mappings.push_back(std::move(mapping));
  }
  return mappings;
}

Result<std::vector<FdInfo>> ReadFds(pid_t pid) {
  std::error_code error;
  std::vector<FdInfo> fds;
  for (fs::directory_iterator entry(ProcPath(pid, "fd"), error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code gone;  // closed since it was listed: not an fd any more
    const fs::path target = fs::read_symlink(entry->path(), gone);
    if (!gone) fds.push_back({Number<int>(entry->path().filename().native()), target.string()});
  }
  if (error) {
    return std::unexpected(Error::FromErrno(fmt::format("list /proc/{}/fd", pid), error.value()));
  }
  return fds;
}

Result<std::vector<MountInfo>> ReadMountInfo(pid_t pid) {
  WAFT_ASSIGN(const std::string text, ReadFile(ProcPath(pid, "mountinfo")));
  std::vector<MountInfo> mounts;
  for (const std::string_view line : Lines(text)) {
    std::istringstream in{std::string(line)};
    std::string parent;
    std::string device;
    std::string root;
    std::string mount_point;
    std::string word;
    MountInfo mount;
    in >> mount.id >> parent >> device >> root >> mount_point;
    while (in >> word && word != "-") {  // mount options and optional fields
    }
    in >> mount.fs_type;
    // Field by field from here: the source may be empty ("tmpfs  rw"), and a mount that is
    // overlooked is one that RemoveTree() would erase.
    std::string source;
    in.ignore(1);
    std::getline(in, source, ' ');
    std::getline(in, mount.super_options);
    const size_t colon = device.find(':');
    if (mount.fs_type.empty() || colon == std::string::npos) {
      return Fail(ErrorCode::kUnsupported, fmt::format("cannot read the mount '{}'", line));
    }
    mount.device = makedev(Number<unsigned>(device),
                           Number<unsigned>(std::string_view(device).substr(colon + 1)));
    mount.root = Unescape(root);
    mount.mount_point = Unescape(mount_point);
    mount.source = Unescape(source);
    mounts.push_back(std::move(mount));
  }
  return mounts;
}

Result<std::map<std::string, std::string>> ReadCgroups(pid_t pid) {
  WAFT_ASSIGN(const std::string text, ReadFile(ProcPath(pid, "cgroup")));
  std::map<std::string, std::string> cgroups;
  for (const std::string_view line : Lines(text)) {
    const size_t first = line.find(':');
    const size_t second = first == std::string_view::npos ? first : line.find(':', first + 1);
    if (second == std::string_view::npos) continue;
    cgroups.emplace(line.substr(first + 1, second - first - 1), line.substr(second + 1));
  }
  return cgroups;
}

Result<uint64_t> AvailableMemoryBytes() {
  WAFT_ASSIGN(const std::string text, ReadFile("/proc/meminfo"));
  for (const std::string_view line : Lines(text)) {
    if (line.starts_with("MemAvailable:")) return Number<uint64_t>(line.substr(13)) << 10;
  }
  return Fail(ErrorCode::kUnsupported, "/proc/meminfo has no MemAvailable (Linux before 3.14?)");
}

Result<std::string> NamespaceId(pid_t pid, std::string_view name) {
  std::error_code error;
  const fs::path target = fs::read_symlink(ProcPath(pid, fmt::format("ns/{}", name)), error);
  if (error) {
    return std::unexpected(
        Error::FromErrno(fmt::format("read /proc/{}/ns/{}", pid, name), error.value()));
  }
  return target.string();
}

}  // namespace waft::base
