#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/process.h"

namespace waft::engine {

// A container as `runc list` shows it.
struct Container {
  std::string id;
  std::string state;  // created, running, paused, stopped
  pid_t pid = 0;      // of its init; 0 when stopped
  std::filesystem::path bundle;
  std::filesystem::path rootfs;
};

// What waft reads of a bundle's config.json (OCI runtime spec 1.0).
struct Bundle {
  std::filesystem::path directory;
  std::filesystem::path rootfs;  // absolute
  // linux.namespaces[network].path; empty when the runtime makes a namespace of its own.
  std::filesystem::path network_path;
  bool has_network_namespace = false;  // false: it shares the host's
  bool has_pid_namespace = false;
  bool terminal = false;
  // Bind mounts: path in the container -> path on the host.
  std::vector<std::pair<std::filesystem::path, std::filesystem::path>> binds;
};

// runc under one --root. Every call runs `runc` and blocks until it ends; calls for different
// containers may run at the same time.
class Runc {
 public:
  explicit Runc(std::filesystem::path root) : root_(std::move(root)) {}

  const std::filesystem::path& root() const { return root_; }

  base::Result<std::vector<Container>> List() const;
  // An error that names the ids there are, if there is none such.
  base::Result<Container> Inspect(const std::string& id) const;
  bool Exists(const std::string& id) const;

  static base::Result<Bundle> ReadBundle(const std::filesystem::path& directory);

  // Checkpoint with the tasks left as they are: ending them is a later, separate decision.
  base::Command CheckpointCommand(const std::string& id, const std::filesystem::path& images,
                                  const std::filesystem::path& work) const;
  base::Command RestoreCommand(const std::string& id, const std::filesystem::path& bundle,
                               const std::filesystem::path& images,
                               const std::filesystem::path& work) const;

  // Removes a container and what is left of one that runc does not know any more. First unmounts
  // what a killed restore left bound under ROOT/ID: `runc delete` would remove the rootfs through
  // it. Nothing there is not an error.
  base::Status Delete(const std::string& id) const;

 private:
  std::filesystem::path root_;
};

// runc's own rule for ids, [A-Za-z0-9_+.-]+, without "." and "..": an id becomes a path.
base::Status CheckId(std::string_view id);

// Absolute, without "." or "..": a path named by a peer.
base::Status CheckPath(const std::filesystem::path& path);

}  // namespace waft::engine
