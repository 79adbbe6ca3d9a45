#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

// Readers of /proc, each one file or directory of proc(5). A process that is gone is errno ENOENT
// or ESRCH in the error; IsGone() tells.
namespace waft::base {

bool IsGone(const Error& error);

// /proc/PID/status: the fields waft uses.
struct ProcStatus {
  std::string name;
  char state = '?';  // R, S, D, T, t, Z, X, I
  pid_t parent_pid = 0;
  pid_t tracer_pid = 0;
  uid_t uid = 0;  // effective
  uint64_t rss_anon_bytes = 0;
  uint64_t rss_file_bytes = 0;
  uint64_t rss_shmem_bytes = 0;
  uint64_t swap_bytes = 0;
  uint64_t hugetlb_bytes = 0;
  int threads = 0;
  int seccomp = 0;  // 0 off, 1 strict, 2 filter
};
Result<ProcStatus> ReadProcStatus(pid_t pid);

// One line of /proc/PID/maps.
struct Mapping {
  uint64_t start = 0;
  uint64_t end = 0;
  std::string permissions;  // "rwxp"
  uint64_t inode = 0;
  std::string path;  // empty if anonymous; "[heap]"; may end in " (deleted)"
};
Result<std::vector<Mapping>> ReadMappings(pid_t pid);

// One open descriptor: what /proc/PID/fd/N points at ("socket:[123]", "/etc/passwd").
struct FdInfo {
  int fd = -1;
  std::string target;
};
Result<std::vector<FdInfo>> ReadFds(pid_t pid);

// One line of /proc/PID/mountinfo, paths unescaped.
struct MountInfo {
  int id = 0;
  uint64_t device = 0;                // as makedev(3)
  std::filesystem::path root;         // of the file system, within itself
  std::filesystem::path mount_point;  // as PID sees it
  std::string fs_type;
  std::string source;
  std::string super_options;  // "rw,freezer"
};
Result<std::vector<MountInfo>> ReadMountInfo(pid_t pid);

// /proc/PID/cgroup: controller list ("freezer", "cpu,cpuacct", "" for v2) -> path in its hierarchy.
Result<std::map<std::string, std::string>> ReadCgroups(pid_t pid);

// /proc/meminfo's MemAvailable.
Result<uint64_t> AvailableMemoryBytes();

// The number behind a /proc/PID/ns/NAME link, e.g. "net:[4026531840]".
Result<std::string> NamespaceId(pid_t pid, std::string_view name);

}  // namespace waft::base
