// A process tree that holds one of many kinds of things, most of them in an unsettled state, and
// finds out afterwards whether each came along. Single-threaded. Takes the path of a file of
// PatternBytes(0, 0, kFileBytes) as its argument.
//   ARM    brings all things into the state to be moved in: "OK"
//   CHECK  "OK <things looked at>" or "BAD <thing>: <why>; ..."
#include <arpa/inet.h>
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <functional>
#include <memory>
#include <sstream>
#include <utility>
#include <vector>

#include "tests/workloads/support.h"

namespace waft::workloads {
namespace {

constexpr uint16_t kPort = 7000;
constexpr size_t kFileBytes = 1 << 20;
constexpr size_t kMemoryBytes = 1 << 20;
constexpr uint64_t kParent = 1;  // whose pattern
constexpr uint64_t kChild = 2;

// One kind of thing. `check` returns what is wrong.
struct Thing {
  std::string name;
  std::function<void()> arm;
  std::function<std::string()> check;
};

int Fd(long result, const char* what) { return static_cast<int>(Must(result, what)); }

// Empty if `value` is what it should be.
template <typename T>
std::string Expect(const std::string& what, const T& value, const T& expected) {
  if (value == expected) return "";
  std::ostringstream words;
  words << what << " is " << value << ", not " << expected;
  return words.str();
}

// The first complaint, or none.
std::string First(std::initializer_list<std::string> complaints) {
  for (const std::string& complaint : complaints) {
    if (!complaint.empty()) return complaint;
  }
  return "";
}

void WriteAll(int fd, const std::string& bytes) {
  if (::write(fd, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) Die("write");
}

// Exactly `expected`, and not a byte behind it.
std::string ExpectToRead(int fd, const std::string& expected) {
  int waiting = 0;
  Must(::ioctl(fd, FIONREAD, &waiting), "FIONREAD");
  if (waiting != static_cast<int>(expected.size())) {
    return Expect("the number of bytes in flight", waiting, static_cast<int>(expected.size()));
  }
  std::string bytes(expected.size(), '\0');
  size_t have = 0;
  while (have < bytes.size()) {
    const ssize_t got = ::read(fd, bytes.data() + have, bytes.size() - have);
    if (got <= 0) return "the end comes early";
    have += static_cast<size_t>(got);
  }
  return bytes == expected ? "" : "the bytes in flight changed";
}

// A forked process that answers requests of one line over a socket pair.
class Child {
 public:
  explicit Child(const std::function<std::string(const std::string&)>& answer) {
    std::array<int, 2> ends{};
    Must(::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends.data()), "socketpair");
    pid_ = static_cast<pid_t>(Must(::fork(), "fork"));
    if (pid_ == 0) {
      ::close(ends[0]);
      Serve(ends[1], answer);
    }
    ::close(ends[1]);
    fd_ = ends[0];
  }

  pid_t pid() const { return pid_; }

  std::string Ask(const std::string& request) const {
    WriteAll(fd_, request);
    std::array<char, 512> reply{};
    const ssize_t got = ::read(fd_, reply.data(), reply.size());
    if (got <= 0) return "the child is gone";
    return {reply.data() + 1, static_cast<size_t>(got) - 1};
  }

 private:
  [[noreturn]] static void Serve(int fd,
                                 const std::function<std::string(const std::string&)>& answer) {
    for (;;) {
      std::array<char, 512> request{};
      const ssize_t got = ::read(fd, request.data(), request.size());
      if (got <= 0) ::_exit(0);
      // A packet must not be empty, or it could not be told from the end.
      WriteAll(fd, "=" + answer({request.data(), static_cast<size_t>(got)}));
    }
  }

  pid_t pid_ = 0;
  int fd_ = -1;
};

void BecomeUser(uid_t uid, const std::vector<gid_t>& groups) {
  Must(::setgroups(groups.size(), groups.data()), "setgroups");
  Must(::setresgid(uid, uid, uid), "setresgid");
  Must(::setresuid(uid, uid, uid), "setresuid");
}

std::string CheckUser(uid_t uid, const std::vector<gid_t>& expected) {
  std::array<uid_t, 3> uids{};
  std::array<gid_t, 3> gids{};
  std::vector<gid_t> groups(16);
  Must(::getresuid(&uids[0], &uids[1], &uids[2]), "getresuid");
  Must(::getresgid(&gids[0], &gids[1], &gids[2]), "getresgid");
  groups.resize(static_cast<size_t>(
      Must(::getgroups(static_cast<int>(groups.size()), groups.data()), "getgroups")));
  if (uids != std::array{uid, uid, uid}) return "its user ids changed";
  if (gids != std::array{uid, uid, uid}) return "its group ids changed";
  return groups == expected ? "" : "its supplementary groups changed";
}

Thing Zombie() {
  static pid_t pid = 0;
  return {"zombie",
          [] {
            pid = static_cast<pid_t>(Must(::fork(), "fork"));
            if (pid == 0) ::_exit(7);
            siginfo_t info{};
            Must(::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT), "waitid");
          },
          [] {
            int status = 0;
            const pid_t reaped = ::waitpid(pid, &status, WNOHANG);
            return First({Expect("what waitpid() returns", reaped, pid),
                          Expect("its status", WEXITSTATUS(status), 7)});
          }};
}

// A child of another user that shares its start with us copy-on-write, memory, an open file's
// offset and a socket pair.
struct Shared {
  std::string inherited = PatternBytes(kParent, 0, kMemoryBytes);
  uint64_t* memory = nullptr;
  int file = -1;
  std::array<int, 2> pair{};
};

std::string AnswerAsUser(const Shared& shared, pid_t parent, const std::string& request) {
  static const std::string kOwn = PatternBytes(kChild, 0, kMemoryBytes);
  if (request == "ids") {
    return First({CheckUser(1001, {2001, 2002}), Expect("its parent", ::getppid(), parent)});
  }
  if (request == "memory") {
    if (kOwn != PatternBytes(kChild, 0, kMemoryBytes)) return "its own memory changed";
    if (shared.inherited != PatternBytes(kParent, 0, kMemoryBytes))
      return "inherited memory changed";
    *shared.memory += 1;
    return "";
  }
  if (request == "read file") {
    std::array<char, 100> bytes{};
    return Expect("what read() returns", ::read(shared.file, bytes.data(), bytes.size()), 100L);
  }
  if (request == "send") {
    WriteAll(shared.pair[1], PatternBytes(kChild, 1, 3000));
    return "";
  }
  if (request == "receive") return ExpectToRead(shared.pair[1], PatternBytes(kParent, 1, 5000));
  return "bad request";
}

void AddUser(std::vector<Thing>& things, const char* path) {
  static Shared shared;
  shared.file = Fd(::open(path, O_RDONLY | O_CLOEXEC), path);
  void* memory = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) Die("mmap");
  shared.memory = static_cast<uint64_t*>(memory);
  Must(::socketpair(AF_UNIX, SOCK_STREAM, 0, shared.pair.data()), "socketpair");
  static const pid_t kPid = ::getpid();
  static const Child kUser([became = false](const std::string& request) mutable {
    if (!std::exchange(became, true)) BecomeUser(1001, {2001, 2002});
    return AnswerAsUser(shared, kPid, request);
  });

  things.push_back({"child of another user", [] {}, [] { return kUser.Ask("ids"); }});
  things.push_back({"shared memory", [] { *shared.memory = 41; },
                    [] {
                      const std::string complaint = kUser.Ask("memory");
                      return First({complaint, Expect("the value", *shared.memory, uint64_t{42})});
                    }});
  things.push_back({"read-only file", [] { Must(::lseek(shared.file, 4321, SEEK_SET), "lseek"); },
                    [] {
                      std::string bytes(100, '\0');
                      const ssize_t got = ::read(shared.file, bytes.data(), bytes.size());
                      const std::string all = PatternBytes(0, 0, kFileBytes);
                      return First({Expect("what read() returns", got, ssize_t{100}),
                                    bytes == all.substr(4321, 100) ? "" : "its content changed",
                                    Expect("its access mode",
                                           ::fcntl(shared.file, F_GETFL) & O_ACCMODE, O_RDONLY),
                                    Expect("FD_CLOEXEC", ::fcntl(shared.file, F_GETFD), FD_CLOEXEC),
                                    kUser.Ask("read file"),
                                    Expect("the offset shared with a child",
                                           ::lseek(shared.file, 0, SEEK_CUR), off_t{4521})});
                    }});
  things.push_back({"stream socket pair",
                    [] {
                      WriteAll(shared.pair[0], PatternBytes(kParent, 1, 5000));
                      kUser.Ask("send");
                    },
                    [] {
                      return First({ExpectToRead(shared.pair[0], PatternBytes(kChild, 1, 3000)),
                                    kUser.Ask("receive")});
                    }});
}

// A session leader of yet another user, with a child of a third.
void AddSession(std::vector<Thing>& things) {
  static const Child kLeader(
      [child = static_cast<Child*>(nullptr)](const std::string& request) mutable -> std::string {
        if (request == "become") {
          Must(::setsid(), "setsid");
          child = new Child([became = false](const std::string&) mutable {
            if (!std::exchange(became, true)) BecomeUser(1003, {});
            return First({CheckUser(1003, {}), Expect("its session", ::getsid(0), ::getppid())});
          });
          BecomeUser(1002, {1002});
          return child->Ask("check");
        }
        return First({CheckUser(1002, {1002}), Expect("its session", ::getsid(0), ::getpid()),
                      child->Ask("check")});
      });
  if (const std::string complaint = kLeader.Ask("become"); !complaint.empty()) Die(complaint);
  things.push_back({"session of another user", [] {}, [] { return kLeader.Ask("check"); }});
}

// What a timerfd has to read, waiting for up to a second.
uint64_t Expirations(int fd) {
  pollfd wait{fd, POLLIN, 0};
  uint64_t ticks = 0;
  if (::poll(&wait, 1, 1000) == 1) Must(::read(fd, &ticks, sizeof(ticks)), "read");
  return ticks;
}

// Ends of a pipe, an eventfd and a timerfd, all watched by one epoll.
void AddEpoll(std::vector<Thing>& things) {
  static std::array<int, 2> pipe{};
  Must(::pipe(pipe.data()), "pipe");
  static const int kEvent = Fd(::eventfd(0, 0), "eventfd");
  static const int kTimer = Fd(::timerfd_create(CLOCK_MONOTONIC, 0), "timerfd_create");
  static const int kEpoll = Fd(::epoll_create1(0), "epoll_create1");
  for (const auto& [fd, data] : {std::pair{pipe[0], 1U}, {kEvent, 2U}, {kTimer, 3U}}) {
    epoll_event interest{.events = EPOLLIN, .data = {.u32 = data}};
    Must(::epoll_ctl(kEpoll, EPOLL_CTL_ADD, fd, &interest), "epoll_ctl");
  }
  // Looked at before what it watches is drained.
  things.push_back({"epoll", [] {},
                    [] {
                      std::array<epoll_event, 4> ready{};
                      const int count = ::epoll_wait(kEpoll, ready.data(), ready.size(), 0);
                      std::vector<uint32_t> data;
                      data.reserve(ready.size());
                      for (int i = 0; i < count; ++i) data.push_back(ready.at(i).data.u32);
                      std::sort(data.begin(), data.end());
                      return data == std::vector{1U, 2U} ? "" : "another set of events is ready";
                    }});
  things.push_back({"pipe", [] { WriteAll(pipe[1], PatternBytes(kParent, 2, 20'000)); },
                    [] { return ExpectToRead(pipe[0], PatternBytes(kParent, 2, 20'000)); }});
  things.push_back({"eventfd", [] { Must(::eventfd_write(kEvent, 41), "eventfd_write"); },
                    [] {
                      eventfd_t value = 0;
                      ::eventfd_read(kEvent, &value);
                      return Expect("its count", value, eventfd_t{41});
                    }});
  things.push_back({"timerfd",
                    [] {
                      const itimerspec in_an_hour{.it_interval = {.tv_sec = 7, .tv_nsec = 0},
                                                  .it_value = {.tv_sec = 3600, .tv_nsec = 0}};
                      Must(::timerfd_settime(kTimer, 0, &in_an_hour, nullptr), "timerfd_settime");
                    },
                    [] {
                      itimerspec left{};
                      Must(::timerfd_gettime(kTimer, &left), "timerfd_gettime");
                      // A test takes a minute at most; the clocks of the hosts differ by a day.
                      const bool soon = left.it_value.tv_sec < 3540 || left.it_value.tv_sec > 3600;
                      return First({soon ? "the time left changed" : "",
                                    Expect("its interval", left.it_interval.tv_sec, time_t{7})});
                    }});
  static const int kShort = Fd(::timerfd_create(CLOCK_MONOTONIC, 0), "timerfd_create");
  things.push_back({"periodic timerfd",
                    [] {
                      const itimerspec often{.it_interval = {.tv_sec = 0, .tv_nsec = 50'000'000},
                                             .it_value = {.tv_sec = 0, .tv_nsec = 50'000'000}};
                      Must(::timerfd_settime(kShort, 0, &often, nullptr), "timerfd_settime");
                    },
                    [] {
                      // The first read takes what had expired before the move too.
                      Expirations(kShort);
                      const uint64_t ticks = Expirations(kShort);
                      return ticks == 0 ? "it stands still" : ticks > 20 ? "it is too fast" : "";
                    }});
}

void AddDatagrams(std::vector<Thing>& things) {
  static std::array<int, 2> pair{};
  Must(::socketpair(AF_UNIX, SOCK_DGRAM, 0, pair.data()), "socketpair");
  constexpr static std::array<size_t, 3> kSizes = {1, 1000, 8000};
  things.push_back({"datagrams between unix sockets",
                    [] {
                      for (const size_t size : kSizes) {
                        WriteAll(pair[0], PatternBytes(kParent, size, size));
                      }
                    },
                    [] {
                      for (const size_t size : kSizes) {
                        std::string bytes(16'384, '\0');
                        const ssize_t got =
                            ::recv(pair[1], bytes.data(), bytes.size(), MSG_DONTWAIT);
                        bytes.resize(static_cast<size_t>(std::max<ssize_t>(got, 0)));
                        if (bytes != PatternBytes(kParent, size, size)) {
                          return "the one of " + std::to_string(size) + " bytes changed";
                        }
                      }
                      return std::string();
                    }});
}

// Both ends of a TCP connection over loopback.
void AddLoopback(std::vector<Thing>& things) {
  static std::array<int, 2> ends{};
  sockaddr_in address{.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t length = sizeof(address);
  const int listener = Fd(::socket(AF_INET, SOCK_STREAM, 0), "socket");
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  Must(::bind(listener, generic, length), "bind");
  Must(::listen(listener, 1), "listen");
  Must(::getsockname(listener, generic, &length), "getsockname");
  ends[0] = Fd(::socket(AF_INET, SOCK_STREAM, 0), "socket");
  Must(::connect(ends[0], generic, length), "connect");
  ends[1] = Fd(::accept(listener, nullptr, nullptr), "accept");
  ::close(listener);
  things.push_back({"TCP over loopback",
                    [] {
                      WriteAll(ends[0], PatternBytes(kParent, 3, 10'000));
                      WriteAll(ends[1], PatternBytes(kParent, 4, 10));
                    },
                    [] {
                      return First({ExpectToRead(ends[1], PatternBytes(kParent, 3, 10'000)),
                                    ExpectToRead(ends[0], PatternBytes(kParent, 4, 10))});
                    }});
}

void AddFiles(std::vector<Thing>& things) {
  static int removed = -1;
  things.push_back({"removed file",
                    [] {
                      removed = Fd(::open("/tmp/removed", O_RDWR | O_CREAT | O_EXCL, 0600), "open");
                      WriteAll(removed, PatternBytes(kParent, 5, 10'000));
                      Must(::unlink("/tmp/removed"), "unlink");
                    },
                    [] {
                      struct stat info{};
                      Must(::fstat(removed, &info), "fstat");
                      const off_t offset = ::lseek(removed, 0, SEEK_SET);
                      std::string bytes(20'000, '\0');
                      const ssize_t got = ::read(removed, bytes.data(), bytes.size());
                      bytes.resize(static_cast<size_t>(std::max<ssize_t>(got, 0)));
                      ::close(removed);
                      return First(
                          {Expect("its number of links", info.st_nlink, nlink_t{0}),
                           Expect("what lseek() returns", offset, off_t{0}),
                           bytes == PatternBytes(kParent, 5, 10'000) ? "" : "its content changed"});
                    }});
  static const int kMemfd = Fd(::memfd_create("tree", MFD_CLOEXEC), "memfd_create");
  Must(::ftruncate(kMemfd, kMemoryBytes), "ftruncate");
  static void* mapped =
      ::mmap(nullptr, kMemoryBytes, PROT_READ | PROT_WRITE, MAP_SHARED, kMemfd, 0);
  if (mapped == MAP_FAILED) Die("mmap");
  things.push_back({"memfd",
                    [] {
                      const std::string bytes = PatternBytes(kParent, 6, kMemoryBytes);
                      std::memcpy(mapped, bytes.data(), bytes.size());
                    },
                    [] {
                      const std::string bytes = PatternBytes(kParent, 6, kMemoryBytes);
                      if (std::memcmp(mapped, bytes.data(), bytes.size()) != 0)
                        return "its content changed";
                      Must(::pwrite(kMemfd, "!", 1, 0), "pwrite");
                      return *static_cast<const char*>(mapped) == '!' ? ""
                                                                      : "it is not mapped any more";
                    }});
  static const int kLock = Fd(::open("/tmp/lock", O_RDWR | O_CREAT, 0600), "open");
  things.push_back({"flock", [] { Must(::flock(kLock, LOCK_EX), "flock"); },
                    [] {
                      const int other = Fd(::open("/tmp/lock", O_RDWR), "open");
                      const bool held = ::flock(other, LOCK_EX | LOCK_NB) != 0;
                      Must(::flock(kLock, LOCK_UN), "flock");
                      const bool released = ::flock(other, LOCK_EX | LOCK_NB) == 0;
                      ::close(other);
                      return First({held ? "" : "it is not held any more",
                                    released ? "" : "it cannot be released"});
                    }});
}

void AddSignals(std::vector<Thing>& things) {
  static sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  Must(::sigprocmask(SIG_BLOCK, &set, nullptr), "sigprocmask");
  things.push_back({"pending signal",
                    [] { Must(::sigqueue(::getpid(), SIGUSR2, {.sival_int = 1234}), "sigqueue"); },
                    [] {
                      siginfo_t info{};
                      const timespec at_once{};
                      const int signal = ::sigtimedwait(&set, &info, &at_once);
                      return First({Expect("what sigtimedwait() returns", signal, SIGUSR2),
                                    Expect("its value", info.si_value.sival_int, 1234)});
                    }});
  static volatile sig_atomic_t handled = 0;
  struct sigaction action{};
  action.sa_handler = [](int) { handled = 1; };
  Must(::sigaction(SIGUSR1, &action, nullptr), "sigaction");
  things.push_back({"signal handler", [] { handled = 0; },
                    [] {
                      Must(::raise(SIGUSR1), "raise");
                      return handled == 1 ? "" : "it did not run";
                    }});
}

void AddOwnSettings(std::vector<Thing>& things) {
  ::umask(027);
  Must(::chdir("/tmp"), "chdir");
  static const pid_t kPid = ::getpid();
  things.push_back(
      {"process settings", [] {},
       [] {
         std::array<char, 256> directory{};
         if (::getcwd(directory.data(), directory.size()) == nullptr) Die("getcwd");
         const mode_t mask = ::umask(027);
         return First(
             {Expect("the working directory", std::string(directory.data()), std::string("/tmp")),
              Expect("umask", mask, mode_t{027}), Expect("the pid", ::getpid(), kPid)});
       }});
}

std::string Check(const std::vector<Thing>& things) {
  std::string complaints;
  for (const Thing& thing : things) {
    if (const std::string complaint = thing.check(); !complaint.empty()) {
      complaints += (complaints.empty() ? "" : "; ") + thing.name + ": " + complaint;
    }
  }
  return complaints.empty() ? "OK " + std::to_string(things.size()) : "BAD " + complaints;
}

}  // namespace
}  // namespace waft::workloads

int main(int argc, char** argv) {
  using namespace waft::workloads;  // NOLINT(google-build-using-namespace)
  if (argc != 2) Die("usage: tree FILE");
  std::vector<Thing> things;
  // What has children first: they shall not inherit the rest.
  AddUser(things, argv[1]);
  AddSession(things);
  AddEpoll(things);
  AddDatagrams(things);
  AddLoopback(things);
  AddFiles(things);
  AddSignals(things);
  AddOwnSettings(things);
  things.push_back(Zombie());
  ServeLines(kPort, [&things](const std::string& request) {
    if (request == "CHECK") return Check(things);
    if (request != "ARM") return std::string("BAD request");
    for (const Thing& thing : things) thing.arm();
    return std::string("OK");
  });
}
