#include "criu/criu.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <sstream>
#include <system_error>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/log.h"
#include "base/process.h"

namespace waft::criu {
namespace fs = std::filesystem;
using base::ErrorCode;
using base::Fail;
namespace {

constexpr std::chrono::seconds kToolTimeout{20};
constexpr size_t kErrorLines = 4;

// A directory of its own for one run of a tool that wants one.
class ScratchDirectory {
 public:
  static base::Result<ScratchDirectory> Create() {
    std::string name = (fs::temp_directory_path() / "waft-criu-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) return base::FailErrno("mkdtemp " + name);
    return ScratchDirectory(name);
  }
  ScratchDirectory(ScratchDirectory&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  ScratchDirectory& operator=(ScratchDirectory&&) = delete;
  ~ScratchDirectory() {
    if (!path_.empty()) base::LogIfError(base::RemoveTree(path_), "clean up after CRIU");
  }
  const fs::path& path() const { return path_; }

 private:
  explicit ScratchDirectory(fs::path path) : path_(std::move(path)) {}
  fs::path path_;
};

// Runs CRIU and turns a failure into its own words.
base::Result<base::RunResult> RunCriu(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), CriuPath().string());
  WAFT_ASSIGN(base::RunResult result, base::RunFor({.argv = arguments}, kToolTimeout));
  if (!result.exit.Ok()) {
    const std::string& words = result.err.empty() ? result.out : result.err;
    return Fail(ErrorCode::kUnsupported, fmt::format("{}: {}: {}", fmt::join(arguments, " "),
                                                     result.exit.ToString(), words));
  }
  return result;
}

}  // namespace

fs::path CriuPath() {
  if (const char* given = std::getenv("WAFT_CRIU"); given != nullptr) return given;
  const fs::path installed = WAFT_PREFIX "/bin/criu";
  std::error_code error;
  return fs::exists(installed, error) ? installed : fs::path("criu");
}

base::Result<std::string> Version() {
  WAFT_ASSIGN(const base::RunResult result, RunCriu({"--version"}));
  std::istringstream in(result.out);
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("Version: ")) return line.substr(9);
  }
  return Fail(ErrorCode::kUnsupported,
              fmt::format("{} --version printed no version", CriuPath().string()));
}

bool VersionIsEnough(const std::string& version) {
  int major = 0;
  int minor = 0;
  const char* end = version.data() + version.size();
  const auto [dot, error] = std::from_chars(version.data(), end, major);
  if (error == std::errc() && dot != end && *dot == '.') std::from_chars(dot + 1, end, minor);
  return std::pair(major, minor) >= std::pair(4, 2);
}

base::Status Check() {
  WAFT_TRY(RunCriu({"check"}));
  return {};
}

base::Result<std::string> CpuinfoImage() {
  WAFT_ASSIGN(const ScratchDirectory scratch, ScratchDirectory::Create());
  WAFT_TRY(RunCriu({"cpuinfo", "dump", "--images-dir", scratch.path().string()}));
  return base::ReadFile(scratch.path() / "cpuinfo.img");
}

base::Status CheckCpuinfo(const std::string& image) {
  WAFT_ASSIGN(const ScratchDirectory scratch, ScratchDirectory::Create());
  WAFT_TRY(base::WriteFileAtomically(scratch.path() / "cpuinfo.img", image, 0600));
  WAFT_TRY(RunCriu({"cpuinfo", "check", "--images-dir", scratch.path().string()}));
  return {};
}

std::string LogErrors(const fs::path& log) {
  const base::Result<std::string> text = base::ReadFile(log);
  if (!text) return "";
  std::vector<std::string> errors;
  std::istringstream in(*text);
  for (std::string line; std::getline(in, line);) {
    // Without CAP_SYS_RESOURCE CRIU begins with a complaint about its own limits, and goes on.
    if (line.find("rlimit: Can't setup RLIMIT_NOFILE for self") != std::string::npos) continue;
    if (line.find("Error (") != std::string::npos) errors.push_back(line);
  }
  // The first says what went wrong, the last ones what CRIU made of it.
  if (errors.size() > kErrorLines) errors.erase(errors.begin() + 1, errors.end() - kErrorLines + 1);
  return fmt::format("{}", fmt::join(errors, " | "));
}

}  // namespace waft::criu
