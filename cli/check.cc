#include "cli/check.h"

#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "base/error.h"

namespace waft::cli {
namespace fs = std::filesystem;

std::string ExecCheck(bool json) {
  std::string program = "waftd";
  std::string check = "--check";
  std::string as_json = "--json";
  char* const argv[] = {program.data(), check.data(), json ? as_json.data() : nullptr, nullptr};

  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  const fs::path beside = self.parent_path() / program;
  if (!error && ::access(beside.c_str(), X_OK) == 0) {
    ::execv(beside.c_str(), argv);
    return base::Error::FromErrno("cannot run " + beside.string(), errno).message();
  }
  ::execvp(program.c_str(), argv);
  return "cannot find waftd, which does the checking: it is neither beside waft (" +
         beside.string() + ") nor on PATH; install it";
}

}  // namespace waft::cli
