#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "api/peer.pb.h"
#include "base/error.h"

namespace waft::checkpoint {

// Where a workload's own paths lie on the host.
struct HostPaths {
  std::filesystem::path rootfs;
  // Bind mounts: path in the workload -> path on the host.
  std::vector<std::pair<std::filesystem::path, std::filesystem::path>> binds;
};

struct Examination {
  // What CRIU is known to refuse, each a sentence that names task and thing. Empty: none found.
  std::vector<std::string> refusals;
  // Every regular file open or mapped and every directory stood in or bound, by host path.
  std::vector<v1::FileFact> files;
  uint32_t tasks = 0;         // threads
  uint64_t memory_bytes = 0;  // anonymous, shared, swapped and huge pages
  uint64_t image_bytes = 0;   // upper estimate of what a dump writes: memory, tmpfs, CRIU's own
};

// Reads /proc of the running tasks `pids`, of which `init` is the root; takes as long as hashing
// the files does. A task that ends meanwhile is left out.
base::Result<Examination> Examine(pid_t init, const std::vector<pid_t>& pids,
                                  const HostPaths& paths);

// Why CRIU cannot dump a descriptor that /proc/PID/fd shows as `target`, or empty if it can (as far
// as the name tells). CRIU 4.2, criu/files.c dump_one_file() and criu/file-ids.c.
std::string DescriptorRefusal(const std::string& target);

// The same for a socket, by its SO_DOMAIN, SO_TYPE and SO_PROTOCOL.
std::string SocketRefusal(int domain, int type, int protocol);

}  // namespace waft::checkpoint
