#include "engine/runc.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <nlohmann/json.hpp>
#include <system_error>
#include <thread>

#include "base/cgroup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/proc.h"

namespace waft::engine {
namespace fs = std::filesystem;
using base::ErrorCode;
using base::Fail;
using nlohmann::json;
namespace {

constexpr std::chrono::seconds kQueryTimeout{20};
constexpr std::chrono::seconds kKillTimeout{20};

// The string at `key`, or empty: config.json and runc's answers are not ours to trust.
std::string Text(const json& object, const char* key) {
  const auto at = object.find(key);
  return at != object.end() && at->is_string() ? at->get<std::string>() : std::string();
}

// The value at `key`, or null. No copy: copying recurses as deep as the file says.
const json& Member(const json& object, const char* key) {
  static const json kNull;
  const auto at = object.find(key);
  return at != object.end() ? *at : kNull;
}

// runc marks a container's mounts of type bind by type or by option (runc libcontainer/specconv).
bool IsBind(const json& mount) {
  if (Text(mount, "type") == "bind") return true;
  const json& options = Member(mount, "options");
  return std::any_of(options.begin(), options.end(),
                     [](const json& option) { return option == "bind" || option == "rbind"; });
}

// What runc made of a container that it does not know (any more): a runc that fails removes its
// state though CRIU may have left tasks. They are in the cgroups below our own; what a bundle names
// otherwise (cgroupsPath) is not found.
base::Status RemoveOrphans(const std::string& id) {
  WAFT_ASSIGN(const base::Freezer own, base::Freezer::ForProcess(::getpid()));
  base::Freezer orphans = base::Freezer::AtPath(own.directory() / id);
  if (orphans.Exists()) WAFT_TRY(orphans.KillAll(kKillTimeout));
  WAFT_ASSIGN(const auto cgroups, base::ReadCgroups(::getpid()));
  for (const auto& [controllers, path] : cgroups) {
    const base::Result<fs::path> directory =
        base::CgroupDirectory(::getpid(), controllers.substr(0, controllers.find(',')));
    if (!directory) continue;
    // A task that has just been killed keeps its cgroup busy for a moment.
    const base::Deadline deadline = base::Deadline::After(kKillTimeout);
    while (::rmdir((*directory / id).c_str()) != 0 && errno == EBUSY && !deadline.Passed()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  return {};
}

}  // namespace

base::Status CheckId(std::string_view id) {
  const auto allowed = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '+' || c == '-' ||
           c == '.';
  };
  if (id.empty() || id.size() > 1024 || id == "." || id == ".." ||
      !std::all_of(id.begin(), id.end(), allowed)) {
    return Fail(ErrorCode::kBadArgument,
                fmt::format("'{}' is no container id: letters, digits, '_', '+', '-', '.'", id));
  }
  return {};
}

base::Status CheckPath(const fs::path& path) {
  if (!path.is_absolute() || path.lexically_normal() != path ||
      path.native().find('\0') != std::string::npos) {
    return Fail(ErrorCode::kBadArgument,
                fmt::format("'{}' is not an absolute path in its shortest form", path.string()));
  }
  return {};
}

base::Result<std::vector<Container>> Runc::List() const {
  WAFT_ASSIGN(
      const base::RunResult result,
      base::RunFor({.argv = {"runc", "--root", root_, "list", "--format", "json"}}, kQueryTimeout));
  if (!result.exit.Ok()) {
    return Fail(ErrorCode::kRetry,
                fmt::format("runc list: {}: {}", result.exit.ToString(), result.err));
  }
  const json list = json::parse(result.out, nullptr, false);
  std::vector<Container> containers;
  if (!list.is_array()) return containers;  // runc prints "null" when there are none
  for (const json& entry : list) {
    const json& pid = Member(entry, "pid");
    containers.push_back({.id = Text(entry, "id"),
                          .state = Text(entry, "status"),
                          .pid = pid.is_number_integer() ? pid.get<pid_t>() : 0,
                          .bundle = Text(entry, "bundle"),
                          .rootfs = Text(entry, "rootfs")});
  }
  return containers;
}

base::Result<Container> Runc::Inspect(const std::string& id) const {
  WAFT_TRY(CheckId(id));
  WAFT_ASSIGN(std::vector<Container> containers, List());
  std::vector<std::string> ids;
  for (Container& container : containers) {
    if (container.id == id) return std::move(container);
    ids.push_back(container.id);
  }
  return Fail(ErrorCode::kBadArgument,
              fmt::format("no container '{}' under {}; there {}", id, root_.string(),
                          ids.empty() ? "are none" : fmt::format("are: {}", fmt::join(ids, ", "))));
}

bool Runc::Exists(const std::string& id) const {
  std::error_code error;
  return CheckId(id) && fs::exists(root_ / id, error);
}

base::Result<Bundle> Runc::ReadBundle(const fs::path& directory) {
  WAFT_ASSIGN(const std::string text, base::ReadFile(directory / "config.json"));
  const json config = json::parse(text, nullptr, false);
  if (!config.is_object()) {
    return Fail(ErrorCode::kBadArgument,
                fmt::format("{}/config.json is not a JSON object", directory.string()));
  }
  Bundle bundle{.directory = directory,
                .rootfs = (directory / Text(Member(config, "root"), "path")).lexically_normal()};
  const json& terminal = Member(Member(config, "process"), "terminal");
  bundle.terminal = terminal.is_boolean() && terminal.get<bool>();
  for (const json& space : Member(Member(config, "linux"), "namespaces")) {
    if (Text(space, "type") == "pid") bundle.has_pid_namespace = true;
    if (Text(space, "type") == "network") {
      bundle.has_network_namespace = true;
      bundle.network_path = Text(space, "path");
    }
  }
  for (const json& mount : Member(config, "mounts")) {
    if (!IsBind(mount)) continue;
    fs::path source = Text(mount, "source");
    if (source.is_relative()) source = directory / source;
    bundle.binds.emplace_back(Text(mount, "destination"), source.lexically_normal());
  }
  return bundle;
}

base::Command Runc::CheckpointCommand(const std::string& id, const fs::path& images,
                                      const fs::path& work) const {
  return {.argv = {"runc", "--root", root_, "--log", work / "runc.log", "checkpoint",
                   "--image-path", images, "--work-path", work, "--leave-running",
                   "--tcp-established", "--ext-unix-sk", "--file-locks", id},
          .directory = work};
}

base::Command Runc::RestoreCommand(const std::string& id, const fs::path& bundle,
                                   const fs::path& images, const fs::path& work) const {
  return {.argv = {"runc", "--root", root_, "--log", work / "runc.log", "restore", "--detach",
                   "--bundle", bundle, "--image-path", images, "--work-path", work,
                   "--tcp-established", "--ext-unix-sk", "--file-locks", id},
          .directory = work};
}

base::Status Runc::Delete(const std::string& id) const {
  WAFT_TRY(CheckId(id));
  if (!Exists(id)) return RemoveOrphans(id);
  WAFT_ASSIGN(const std::vector<fs::path> mounts, base::MountsBelow(root_ / id));
  for (const fs::path& mount : mounts) {
    base::LogWarning("unmounting {}, left by a restore that was cut short", mount.string());
    if (::umount2(mount.c_str(), MNT_DETACH) != 0) {
      return base::FailErrno("unmount " + mount.string());
    }
  }
  // No container to runc, which would delete what is there across mounts, but an unfinished create
  // or restore.
  if (!fs::exists(root_ / id / "state.json")) {
    WAFT_TRY(RemoveOrphans(id));
    return base::RemoveTree(root_ / id);
  }
  WAFT_ASSIGN(const base::RunResult result,
              base::Run({.argv = {"runc", "--root", root_, "delete", "--force", id}}));
  if (result.exit.Ok()) return {};
  return Fail(ErrorCode::kFatal,
              fmt::format("runc delete {}: {}: {}", id, result.exit.ToString(), result.err));
}

}  // namespace waft::engine
