// holder THING[=PATH]... -- PROGRAM [ARGUMENT...] becomes PROGRAM, with a child that holds the
// things named: descriptors and the like that decide whether a workload can be moved.
#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/socket.h>
// vm_sockets.h needs sys/socket.h before it.
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <string>
#include <string_view>

#include "tests/workloads/support.h"

namespace waft::workloads {
namespace {

constexpr int kProtocolMptcp = 262;
constexpr int kUserModeOnly = 1;  // UFFD_USER_MODE_ONLY

[[noreturn]] void Sleep() {
  for (;;) ::pause();
}

template <typename Address>
void Listen(const Address& address, int protocol, const char* what) {
  const auto* const any = reinterpret_cast<const sockaddr*>(&address);
  const auto fd = static_cast<int>(Must(::socket(any->sa_family, SOCK_STREAM, protocol), what));
  Must(::bind(fd, any, sizeof(address)), what);
  Must(::listen(fd, 1), what);
}

void HoldMptcpListener() {
  Listen(sockaddr_in{.sin_family = AF_INET, .sin_port = htons(7000)}, kProtocolMptcp, "MPTCP");
}

void HoldUnixListener(const std::string& path) {
  sockaddr_un address{.sun_family = AF_UNIX};
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  Listen(address, 0, path.c_str());
}

// An open file that has lost the name it was opened by and keeps another.
void HoldRenamedFile(const std::string& path) {
  Must(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600), "open");
  Must(::link(path.c_str(), (path + ".other").c_str()), "link");
  Must(::unlink(path.c_str()), "unlink");
}

void HoldTracee() {
  const auto child = static_cast<pid_t>(Must(::fork(), "fork"));
  if (child == 0) Sleep();
  Must(::ptrace(PTRACE_SEIZE, child, nullptr, nullptr), "PTRACE_SEIZE");
}

void Hold(const std::string& thing) {
  const size_t equals = thing.find('=');
  const std::string kind = thing.substr(0, equals);
  const std::string path = equals == std::string::npos ? "" : thing.substr(equals + 1);
  if (kind == "io_uring") {
    io_uring_params parameters{};
    Must(::syscall(SYS_io_uring_setup, 4, &parameters), "io_uring_setup");
  } else if (kind == "userfaultfd") {
    Must(::syscall(SYS_userfaultfd, O_CLOEXEC | kUserModeOnly), "userfaultfd");
  } else if (kind == "vsock") {
    Must(::socket(AF_VSOCK, SOCK_STREAM, 0), "AF_VSOCK");
  } else if (kind == "mptcp") {
    HoldMptcpListener();
  } else if (kind == "tracee") {
    HoldTracee();
  } else if (kind == "unix") {
    HoldUnixListener(path);
  } else if (kind == "renamed") {
    HoldRenamedFile(path);
  } else {
    Die("what is " + thing + "?");
  }
}

}  // namespace
}  // namespace waft::workloads

int main(int argc, char** argv) {
  using namespace waft::workloads;
  int end = 1;
  while (end < argc && std::string_view(argv[end]) != "--") ++end;
  if (end + 1 >= argc) Die("holder THING[=PATH]... -- PROGRAM [ARGUMENT...]");
  std::array<int, 2> ready{};
  Must(::pipe2(ready.data(), O_CLOEXEC), "pipe");
  if (Must(::fork(), "fork") == 0) {
    ::close(ready[0]);
    for (int i = 1; i < end; ++i) Hold(argv[i]);
    Must(::write(ready[1], "", 1), "write");
    ::close(ready[1]);
    Sleep();
  }
  ::close(ready[1]);
  char byte = 0;
  if (::read(ready[0], &byte, 1) != 1) Die("not all could be held");
  ::execv(argv[end + 1], argv + end + 1);
  Die(argv[end + 1]);
}
