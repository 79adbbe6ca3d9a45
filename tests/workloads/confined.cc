// Tells how it is confined, and tries what its seccomp filter (tests/lab/programs.py) forbids.
//   CHECK  "OK <what /proc/self/status says> refused=<errno> killed=<signal>"
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <set>

#include "tests/workloads/support.h"

namespace waft::workloads {
namespace {

constexpr uint16_t kPort = 7000;

std::string Status() {
  static const std::set<std::string> kWanted = {
      "Uid:",    "Gid:",    "Groups:",  "CapInh:",          "CapPrm:",    "CapEff:",
      "CapBnd:", "CapAmb:", "Seccomp:", "Seccomp_filters:", "NoNewPrivs:"};
  std::ifstream in("/proc/self/status");
  std::string result;
  for (std::string name; in >> name;) {
    std::string value;
    std::getline(in, value);
    if (!kWanted.contains(name)) continue;
    // "Uid: 1 1 1 1" as uid's first of four: "Uid=1".
    const size_t start = value.find_first_not_of(" \t");
    const size_t end = value.find_first_of(" \t", start);
    name.back() = '=';
    result += name + (start == std::string::npos ? "" : value.substr(start, end - start)) + " ";
  }
  return result;
}

// The filter answers this with an errno that mkdir() has no use for.
int RefusedErrno() { return ::mkdir("/tmp/forbidden", 0700) == 0 ? 0 : errno; }

// The filter kills for this.
int KilledSignal() {
  const pid_t child = static_cast<pid_t>(Must(::fork(), "fork"));
  if (child == 0) {
    ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    ::_exit(0);
  }
  int status = 0;
  Must(::waitpid(child, &status, 0), "waitpid");
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

}  // namespace
}  // namespace waft::workloads

int main() {
  using namespace waft::workloads;  // NOLINT(google-build-using-namespace)
  ServeLines(kPort, [](const std::string& request) {
    if (request != "CHECK") return std::string("BAD request");
    return "OK " + Status() + "refused=" + std::to_string(RefusedErrno()) +
           " killed=" + std::to_string(KilledSignal());
  });
}
