#include "agent/check.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>

#include "base/error.h"
#include "base/file.h"
#include "base/proc.h"
#include "base/process.h"
#include "base/unique_fd.h"
#include "criu/criu.h"

namespace waft::agent {
namespace {

constexpr std::chrono::seconds kToolTimeout{10};

// From include/uapi/linux/userfaultfd.h and fs.h of Linux 6.7; our libc's headers may be older.
constexpr uint64_t kUffdWpUnpopulated = 1 << 13;
constexpr uint64_t kUffdWpAsync = 1 << 15;
struct PagemapScanArgument {
  uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
constexpr unsigned long kPagemapScan = _IOWR('f', 16, PagemapScanArgument);

std::string Version() {
  utsname name{};
  ::uname(&name);
  return name.release;
}

Feature Kernel() {
  const std::string version = Version();
  int major = 0;
  std::from_chars(version.data(), version.data() + version.size(), major);
  return {"kernel", major >= 5, true, version, "CRIU 4.2 needs Linux 5.x or newer"};
}

Feature Criu() {
  Feature feature{"criu", false, true, "", "nothing can be dumped or restored: run scripts/setup"};
  const base::Result<std::string> version = criu::Version();
  if (!version) {
    feature.found = version.error().message();
    return feature;
  }
  feature.present = criu::VersionIsEnough(*version);
  feature.found = fmt::format("{} ({})", *version, criu::CriuPath().string());
  if (!feature.present) feature.found += ", 4.2 or newer is needed";
  return feature;
}

Feature CriuCheck() {
  const base::Status check = criu::Check();
  return {"criu check", check.has_value(), true, check ? "looks good" : check.error().message(),
          "this kernel lacks what CRIU itself needs"};
}

Feature Runc() {
  Feature feature{"runc", false, true, "", "no container can be moved: install runc"};
  const base::Result<base::RunResult> run =
      base::RunFor({.argv = {"runc", "--version"}}, kToolTimeout);
  if (!run || !run->exit.Ok()) {
    feature.found = run ? run->err : run.error().message();
    return feature;
  }
  feature.present = true;
  feature.found = run->out.substr(0, run->out.find('\n'));
  return feature;
}

Feature Cgroups() {
  Feature feature{"cgroup freezer", false, true, "none mounted", "a workload cannot be frozen"};
  const base::Result<std::vector<base::MountInfo>> mounts = base::ReadMountInfo(::getpid());
  if (!mounts) return feature;
  bool v1 = false;
  bool v2 = false;
  for (const base::MountInfo& mount : *mounts) {
    v1 |= mount.fs_type == "cgroup" && mount.super_options.find("freezer") != std::string::npos;
    v2 |= mount.fs_type == "cgroup2";
  }
  feature.present = v1 || v2;
  if (feature.present) feature.found = v1 && v2 ? "v1 (hybrid)" : v1 ? "v1" : "v2";
  return feature;
}

Feature Capability(const char* name, int number, bool required, const char* lost) {
  bool held = false;
  if (const auto text = base::ReadFile("/proc/self/status"); text) {
    if (const size_t at = text->find("CapEff:\t"); at != std::string::npos) {
      uint64_t mask = 0;
      std::from_chars(text->data() + at + 8, text->data() + text->size(), mask, 16);
      held = ((mask >> static_cast<unsigned>(number)) & 1) != 0;
    }
  }
  return {name, held, required, held ? "held" : "not held", lost};
}

Feature Userfaultfd() {
  Feature feature{"userfaultfd", false, false, "",
                  "no post-copy, and no dirty tracking but by soft-dirty"};
  const base::UniqueFd fd(
      static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
  uffdio_api api{.api = UFFD_API, .features = kUffdWpAsync | kUffdWpUnpopulated};
  if (!fd) {
    feature.found = base::FailErrno("userfaultfd").error().message();
  } else if (::ioctl(fd.get(), UFFDIO_API, &api) != 0) {
    feature.found = "without asynchronous write protection (Linux 6.7)";
  } else {
    feature.present = true;
    feature.found = "with asynchronous write protection";
  }
  return feature;
}

Feature PagemapScan() {
  const base::Result<base::UniqueFd> pagemap = base::Open("/proc/self/pagemap", O_RDONLY);
  PagemapScanArgument argument{.size = sizeof(argument)};
  // An empty range is refused or answered at once; only a kernel without the ioctl says ENOTTY.
  const bool present =
      pagemap && (::ioctl(pagemap->get(), kPagemapScan, &argument) >= 0 || errno != ENOTTY);
  return {"PAGEMAP_SCAN", present, false, present ? "present" : "missing (Linux 6.7)",
          "slower dumps, and no dirty tracking but by soft-dirty"};
}

Feature Path(const char* name, const char* path, const char* lost) {
  std::error_code error;
  const bool present = std::filesystem::exists(path, error);
  return {name, present, false, present ? path : fmt::format("no {}", path), lost};
}

// Tools end their words with a newline, and put some in between.
std::string OnOneLine(std::string text) {
  while (text.ends_with('\n')) text.pop_back();
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

}  // namespace

std::vector<Feature> CheckMachine() {
  return {
      Kernel(),
      Criu(),
      CriuCheck(),
      Runc(),
      Cgroups(),
      Capability("CAP_SYS_ADMIN", CAP_SYS_ADMIN, true, "waftd must run as root"),
      Capability("CAP_SYS_PTRACE", CAP_SYS_PTRACE, true, "CRIU cannot look into tasks"),
      Capability("CAP_NET_ADMIN", CAP_NET_ADMIN, true,
                 "connections and network namespaces cannot be moved"),
      Capability("CAP_SYS_RESOURCE", CAP_SYS_RESOURCE, false,
                 "limits above our own cannot be restored"),
      Userfaultfd(),
      PagemapScan(),
      Path("time namespaces", "/proc/self/ns/time",
           "clocks jump for workloads that look at CLOCK_MONOTONIC"),
      Path("tun device", "/dev/net/tun", "packets cannot be held during the cut-over"),
  };
}

bool IsMigrationPossible(const std::vector<Feature>& features) {
  return std::all_of(features.begin(), features.end(),
                     [](const Feature& feature) { return feature.present || !feature.required; });
}

std::string FeaturesAsText(const std::vector<Feature>& features) {
  std::string text;
  for (const Feature& feature : features) {
    const char* mark = feature.present ? "ok" : feature.required ? "MISSING" : "lost";
    text += fmt::format("{:<8} {:<17} {}", mark, feature.name, OnOneLine(feature.found));
    if (!feature.present) text += fmt::format(" -> {}", feature.lost);
    text += "\n";
  }
  text += IsMigrationPossible(features) ? "Migration is possible on this machine.\n"
                                        : "Migration is not possible on this machine.\n";
  return text;
}

std::string FeaturesAsJson(const std::vector<Feature>& features) {
  nlohmann::ordered_json json;
  json["schema"] = "waft.check/1";
  json["possible"] = IsMigrationPossible(features);
  json["features"] = nlohmann::ordered_json::array();
  for (const Feature& feature : features) {
    json["features"].push_back({{"name", feature.name},
                                {"present", feature.present},
                                {"required", feature.required},
                                {"found", feature.found},
                                {"lost", feature.lost}});
  }
  // What a tool said may be any bytes.
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace waft::agent
