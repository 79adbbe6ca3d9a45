// waft-criu: what runc finds as `criu`, and CRIU's tar as `gzip`, on their PATH during a migration.
// See README.md.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "criu/fd_passing.h"

namespace {

int Complain(const char* what) {
  std::fprintf(stderr, "waft-criu: %s: %s\n", what, std::strerror(errno));
  return 1;
}

// Gives runc's socket to the relay, and puts CRIU's end of the relay in its place.
int JoinRelay(const std::string& relay, int runc_fd) {
  const int control = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (control < 0) return Complain("socket");
  sockaddr_un address{.sun_family = AF_UNIX};
  if (relay.size() >= sizeof(address.sun_path)) {
    return Complain("the relay's path is too long");
  }
  relay.copy(address.sun_path, relay.size());
  if (::connect(control, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return Complain("connect to the relay (is waftd still there?)");
  }
  if (!waft::criu::SendFd(control, runc_fd)) return Complain("hand over runc's socket");
  const int criu_fd = waft::criu::ReceiveFd(control);
  if (criu_fd < 0) return Complain("take CRIU's socket");
  if (::dup2(criu_fd, runc_fd) < 0) return Complain("dup2");
  ::close(criu_fd);
  ::close(control);
  return 0;
}

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// CRIU has tar compress the content of tmpfs mounts (criu/filesystems.c, tmpfs_dump()), with the
// tasks frozen; gzip's 20 to 50 MB/s would be most of the downtime. Both directions copy instead.
int Copy() {
  std::array<char, 256 << 10> buffer;
  for (;;) {
    const ssize_t got = ::read(STDIN_FILENO, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Complain("read");
    if (got == 0) return 0;
    for (ssize_t done = 0; done < got;) {
      const ssize_t wrote = ::write(STDOUT_FILENO, buffer.data() + done, got - done);
      if (wrote < 0 && errno != EINTR) return Complain("write");
      if (wrote > 0) done += wrote;
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (std::string_view(argv[0]).ends_with("gzip")) return Copy();
  std::string criu = Environment("WAFT_CRIU");
  const std::string relay = Environment("WAFT_CRIU_RELAY");
  const std::string preload = Environment("WAFT_CRIU_PRELOAD");
  if (criu.empty() || relay.empty() || preload.empty()) {
    std::fprintf(stderr, "waft-criu is run by waftd in CRIU's place; use criu itself\n");
    return 2;
  }
  if (argc == 3 && std::strcmp(argv[1], "swrk") == 0) {
    if (const int failed = JoinRelay(relay, std::atoi(argv[2])); failed != 0) return failed;
  }
  ::setenv("LD_PRELOAD", preload.c_str(), 1);
  argv[0] = criu.data();
  ::execv(criu.c_str(), argv);
  return Complain("exec CRIU");
}
