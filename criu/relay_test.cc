// The real relay and the real stub between a fake runc and a fake CRIU. Both fakes are this program
// run again (main() below): each hands its end of the conversation to the test, which speaks for
// it.
#include "criu/relay.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/process.h"
#include "base/unique_fd.h"
#include "criu/fd_passing.h"
#include "criu/rpc.pb.h"

namespace waft::criu {
namespace {

namespace fs = std::filesystem;
using base::UniqueFd;
using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr int kLimitMs = 20'000;  // for what happens at once unless it is broken
constexpr int kImagesFd = 70;     // the fake runc's numbers: free in our own table
constexpr int kWorkFd = 71;

fs::path OwnProgram() { return fs::read_symlink("/proc/self/exe"); }
fs::path Programs() { return OwnProgram().parent_path().parent_path() / "bin"; }

bool WaitReadable(int fd, int timeout_ms) {
  pollfd wait{fd, POLLIN, 0};
  return ::poll(&wait, 1, timeout_ms) == 1;
}

sockaddr_un AddressOf(const fs::path& path) {
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  return address;
}

UniqueFd ConnectTo(const fs::path& path) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const sockaddr_un address = AddressOf(path);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    fd.reset();
  }
  return fd;
}

UniqueFd ListenOn(const fs::path& path) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const sockaddr_un address = AddressOf(path);
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_EQ(::listen(fd.get(), 4), 0);
  return fd;
}

void Say(int socket, const std::string& bytes, const std::vector<int>& fds = {}) {
  iovec data{const_cast<char*>(bytes.data()), bytes.size()};
  std::array<char, CMSG_SPACE(sizeof(int) * 64)> control{};
  msghdr header{.msg_iov = &data, .msg_iovlen = 1};
  if (!fds.empty()) {
    header.msg_control = control.data();
    header.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* part = CMSG_FIRSTHDR(&header);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(part), fds.data(), sizeof(int) * fds.size());
  }
  EXPECT_EQ(::sendmsg(socket, &header, MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()))
      << std::strerror(errno);
}

struct Heard {
  bool ended = false;
  std::string bytes;
  std::vector<UniqueFd> fds;
};

Heard Hear(int socket) {
  Heard heard;
  if (!WaitReadable(socket, kLimitMs)) {
    ADD_FAILURE() << "nothing came";
    return heard;
  }
  std::string buffer(1 << 20, '\0');
  iovec data{buffer.data(), buffer.size()};
  std::array<char, CMSG_SPACE(sizeof(int) * 64)> control{};
  msghdr header{.msg_iov = &data,
                .msg_iovlen = 1,
                .msg_control = control.data(),
                .msg_controllen = control.size()};
  const ssize_t got = ::recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
  heard.ended = got <= 0;
  heard.bytes = buffer.substr(0, static_cast<size_t>(std::max<ssize_t>(got, 0)));
  for (cmsghdr* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
      heard.fds.emplace_back(fd);
    }
  }
  return heard;
}

bool SameFile(int fd, const fs::path& path) {
  struct stat one{};
  struct stat other{};
  return ::fstat(fd, &one) == 0 && ::stat(path.c_str(), &other) == 0 &&
         one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

// What kind of thing `fd` is in our own table, which is the relay's.
bool IsOurFdFor(int fd, const fs::path& path) {
  const UniqueFd reopened(::open(fmt::format("/proc/{}/fd/{}", ::getpid(), fd).c_str(),
                                 O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  return reopened && SameFile(reopened.get(), path);
}

size_t OpenFds() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

// One runc that talks with one CRIU through the relay.
struct Conversation {
  UniqueFd runc;  // what runc reads and writes
  UniqueFd criu;
  pid_t runc_pid = -1;
  pid_t criu_pid = -1;
  // The fakes end when these are closed.
  UniqueFd runc_life;
  UniqueFd criu_life;
};

class RelayTest : public testing::Test {
 protected:
  RelayTest() {
    std::string name = (fs::temp_directory_path() / "waft-relay-XXXXXX").string();
    directory_ = ::mkdtemp(name.data());
    fs::create_directories(directory_ / "images");
    fs::create_directories(directory_ / "work");
    runc_home_ = ListenOn(directory_ / "runc.home");
    criu_home_ = ListenOn(directory_ / "criu.home");
    ::setenv("WAFT_CRIU", OwnProgram().c_str(), 1);
  }
  ~RelayTest() override {
    relay_.reset();
    ::unsetenv("WAFT_CRIU");
    for (base::Child& child : runcs_) {
      const auto ended = child.WaitFor(milliseconds(kLimitMs));
      EXPECT_TRUE(ended && *ended) << "a fake runc does not end";
      EXPECT_TRUE(child.Signal(SIGKILL));
      EXPECT_TRUE(child.Wait());
    }
    EXPECT_TRUE(base::RemoveTree(directory_));
  }

  void Start(NotifyHook hook = [](const Notification&) {}) {
    auto relay = Relay::Start(directory_ / "work", Programs(), std::move(hook));
    ASSERT_TRUE(relay) << relay.error().message();
    relay_ = std::move(*relay);
  }

  base::Command FakeRunc() const {
    base::Command command{.argv = {OwnProgram(), "fake-runc", directory_},
                          .environment = relay_->environment()};
    command.environment["FAKE_CRIU_HOME"] = directory_ / "criu.home";
    // The preload library comes before the sanitizer's own.
    command.environment["ASAN_OPTIONS"] = "verify_asan_link_order=0";
    return command;
  }

  static void TakeEnd(int home, UniqueFd& life, UniqueFd& end, pid_t& pid) {
    ASSERT_TRUE(WaitReadable(home, kLimitMs)) << "a fake did not come";
    life.reset(::accept4(home, nullptr, nullptr, SOCK_CLOEXEC));
    ASSERT_TRUE(WaitReadable(life.get(), kLimitMs));
    end.reset(ReceiveFd(life.get()));
    ASSERT_TRUE(end) << std::strerror(errno);
    ucred peer{};
    socklen_t length = sizeof(peer);
    ASSERT_EQ(::getsockopt(life.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length), 0);
    pid = peer.pid;
  }

  Conversation Begin() {
    Conversation talk;
    auto child = base::Child::Spawn(FakeRunc());
    EXPECT_TRUE(child);
    if (!child) return talk;
    runcs_.push_back(std::move(*child));
    TakeEnd(runc_home_.get(), talk.runc_life, talk.runc, talk.runc_pid);
    TakeEnd(criu_home_.get(), talk.criu_life, talk.criu, talk.criu_pid);
    EXPECT_EQ(talk.runc_pid, runcs_.back().pid());
    return talk;
  }

  // Whether the relay's destructor returns although nobody helps; `help` is tried if it does not.
  bool EndsPromptly(const std::function<void()>& help) {
    std::promise<void> done;
    std::future<void> ended = done.get_future();
    std::thread destroyer([&] {
      relay_.reset();
      done.set_value();
    });
    const bool prompt = ended.wait_for(std::chrono::seconds(5)) == std::future_status::ready;
    if (!prompt) help();
    destroyer.join();
    return prompt;
  }

  fs::path directory_;
  UniqueFd runc_home_;
  UniqueFd criu_home_;
  std::unique_ptr<Relay> relay_;
  std::vector<base::Child> runcs_;
};

criu_req Request(criu_req_type type) {
  criu_req request;
  request.set_type(type);
  request.mutable_opts()->set_images_dir_fd(kImagesFd);
  request.mutable_opts()->set_work_dir_fd(kWorkFd);
  request.mutable_opts()->set_log_file("dump.log");
  request.mutable_opts()->set_log_level(4);
  request.mutable_opts()->add_external("mnt[/data]:data");
  // Fields of a later CRIU, in both messages.
  request.mutable_opts()->mutable_unknown_fields()->AddLengthDelimited(4001, "later");
  request.mutable_unknown_fields()->AddVarint(4000, 77);
  return request;
}

std::string Notify(const std::string& script, int pid) {
  criu_resp response;
  response.set_type(NOTIFY);
  response.set_success(true);
  response.mutable_notify()->set_script(script);
  if (pid != 0) response.mutable_notify()->set_pid(pid);
  response.mutable_unknown_fields()->AddVarint(4000, 78);
  return response.SerializeAsString();
}

TEST_F(RelayTest, MessagesPassByteForByteBothWays) {
  Start();
  const Conversation talk = Begin();
  criu_req version;
  version.set_type(VERSION);
  version.mutable_unknown_fields()->AddVarint(4000, 77);
  criu_resp answer;
  answer.set_type(VERSION);
  answer.set_success(true);
  answer.mutable_version()->set_major_number(4);
  answer.mutable_version()->set_minor_number(2);
  answer.mutable_unknown_fields()->AddLengthDelimited(4001, std::string("\0later", 6));
  const std::string no_protobuf = std::string("\xff\xff\0", 3) + " no protobuf";
  for (const std::string& message :
       {version.SerializeAsString(), Request(PRE_DUMP).SerializeAsString(),
        Request(CPUINFO_CHECK).SerializeAsString(), no_protobuf, std::string(1, '\0')}) {
    Say(talk.runc.get(), message);
    EXPECT_EQ(Hear(talk.criu.get()).bytes, message);
  }
  for (const std::string& message :
       {answer.SerializeAsString(), Notify("setup-namespaces", 4711), no_protobuf}) {
    Say(talk.criu.get(), message);
    EXPECT_EQ(Hear(talk.runc.get()).bytes, message);
  }
}

TEST_F(RelayTest, MessagesKeepTheirBounds) {
  Start();
  const Conversation talk = Begin();
  for (int i = 0; i < 50; ++i) Say(talk.runc.get(), std::string(static_cast<size_t>(i) + 1, 'x'));
  for (int i = 0; i < 50; ++i) {
    EXPECT_THAT(Hear(talk.criu.get()).bytes, SizeIs(static_cast<size_t>(i) + 1));
  }
}

TEST_F(RelayTest, ALargeMessagePasses) {
  Start();
  const Conversation talk = Begin();
  criu_req request = Request(DUMP);
  std::string name(100 << 10, 'x');
  request.mutable_opts()->add_external(name);
  Say(talk.runc.get(), request.SerializeAsString());
  criu_req got;
  ASSERT_TRUE(got.ParseFromString(Hear(talk.criu.get()).bytes));
  EXPECT_EQ(got.opts().external(1), name);
  Say(talk.criu.get(), name);
  EXPECT_EQ(Hear(talk.runc.get()).bytes, name);
}

class EditTest : public RelayTest, public testing::WithParamInterface<criu_req_type> {};
INSTANTIATE_TEST_SUITE_P(Requests, EditTest, testing::Values(DUMP, RESTORE),
                         [](const auto& info) { return criu_req_type_Name(info.param); });

TEST_P(EditTest, OnlyTheLinkAndTheDirectoriesAreChanged) {
  Start();
  const Conversation talk = Begin();
  criu_req request = Request(GetParam());
  Say(talk.runc.get(), request.SerializeAsString());
  criu_req got;
  ASSERT_TRUE(got.ParseFromString(Hear(talk.criu.get()).bytes));
  EXPECT_EQ(got.opts().network_lock(), SKIP);
  // CRIU's peer is the relay, so the numbers must be good in the relay's table, which is ours.
  EXPECT_TRUE(IsOurFdFor(got.opts().images_dir_fd(), directory_ / "images"));
  EXPECT_TRUE(IsOurFdFor(got.opts().work_dir_fd(), directory_ / "work"));
  request.mutable_opts()->set_network_lock(SKIP);
  // No restored task may run before COMMIT.
  if (GetParam() == RESTORE) request.mutable_opts()->set_leave_stopped(true);
  request.mutable_opts()->set_images_dir_fd(got.opts().images_dir_fd());
  request.mutable_opts()->set_work_dir_fd(got.opts().work_dir_fd());
  EXPECT_EQ(got.SerializeAsString(), request.SerializeAsString()) << got.DebugString();
}

TEST_P(EditTest, AnotherLockMethodIsOverruled) {
  Start();
  const Conversation talk = Begin();
  criu_req request = Request(GetParam());
  request.mutable_opts()->set_network_lock(NFTABLES);
  Say(talk.runc.get(), request.SerializeAsString());
  criu_req got;
  ASSERT_TRUE(got.ParseFromString(Hear(talk.criu.get()).bytes));
  EXPECT_EQ(got.opts().network_lock(), SKIP);
}

TEST_P(EditTest, DirectoriesThatAreNotGivenStayAway) {
  Start();
  const Conversation talk = Begin();
  criu_req request;
  request.set_type(GetParam());
  request.mutable_opts()->set_images_dir_fd(-1);
  request.mutable_opts()->set_images_dir("/images");
  Say(talk.runc.get(), request.SerializeAsString());
  criu_req got;
  ASSERT_TRUE(got.ParseFromString(Hear(talk.criu.get()).bytes));
  EXPECT_EQ(got.opts().images_dir_fd(), -1);
  EXPECT_FALSE(got.opts().has_work_dir_fd());

  criu_req bare;
  bare.set_type(GetParam());
  Say(talk.runc.get(), bare.SerializeAsString());
  EXPECT_EQ(Hear(talk.criu.get()).bytes, bare.SerializeAsString());
}

TEST_P(EditTest, ANumberThatIsNotOpenIsCrius) {
  Start();
  const Conversation talk = Begin();
  criu_req request = Request(GetParam());
  request.mutable_opts()->set_work_dir_fd(987);
  Say(talk.runc.get(), request.SerializeAsString());
  criu_req got;
  ASSERT_TRUE(got.ParseFromString(Hear(talk.criu.get()).bytes)) << "CRIU is to complain, not us";
  EXPECT_TRUE(IsOurFdFor(got.opts().images_dir_fd(), directory_ / "images"));
}

TEST_F(RelayTest, DescriptorsPassBothWays) {
  Start();
  const Conversation talk = Begin();
  const UniqueFd images(::open((directory_ / "images").c_str(), O_RDONLY | O_CLOEXEC));
  const UniqueFd work(::open((directory_ / "work").c_str(), O_RDONLY | O_CLOEXEC));
  const auto expect_both = [&](int from, int to) {
    Say(from, "two", {images.get(), work.get()});
    const Heard heard = Hear(to);
    EXPECT_EQ(heard.bytes, "two");
    ASSERT_THAT(heard.fds, SizeIs(2));
    EXPECT_TRUE(SameFile(heard.fds[0].get(), directory_ / "images"));
    EXPECT_TRUE(SameFile(heard.fds[1].get(), directory_ / "work"));
    Say(from, "none");
    EXPECT_THAT(Hear(to).fds, IsEmpty()) << "those of an earlier message";
    Say(from, "sixteen", std::vector<int>(16, images.get()));
    EXPECT_THAT(Hear(to).fds, SizeIs(16));
  };
  expect_both(talk.runc.get(), talk.criu.get());
  expect_both(talk.criu.get(), talk.runc.get());
}

TEST_F(RelayTest, NoDescriptorStaysBehind) {
  Start();
  const size_t before = OpenFds();
  {
    const Conversation talk = Begin();
    const UniqueFd images(::open((directory_ / "images").c_str(), O_RDONLY | O_CLOEXEC));
    Say(talk.runc.get(), Request(DUMP).SerializeAsString());
    Hear(talk.criu.get());
    Say(talk.runc.get(), "fds", std::vector<int>(16, images.get()));
    Hear(talk.criu.get());
    // More than it takes: it hangs up rather than lose one.
    Say(talk.runc.get(), "too many", std::vector<int>(40, images.get()));
    EXPECT_TRUE(Hear(talk.criu.get()).ended);
    EXPECT_TRUE(Hear(talk.runc.get()).ended);
  }
  // A second conversation begins when the first has been cleaned up. Its fakes, unlike those of the
  // first, still have a pidfd each in the table.
  const Conversation next = Begin();
  Say(next.runc.get(), "x");
  Hear(next.criu.get());
  const size_t ours = 4 + 2;  // Conversation's, and one pidfd for each fake runc
  const size_t relays = 2;    // runc's end and CRIU's
  EXPECT_EQ(OpenFds(), before + ours + relays);
}

TEST_F(RelayTest, TheHookHearsOfANotificationBeforeRuncDoes) {
  std::vector<Notification> heard;
  std::vector<bool> runc_had_it;
  int runc_end = -1;
  Start([&](const Notification& notification) {
    heard.push_back(notification);
    runc_had_it.push_back(WaitReadable(runc_end, 100));
  });
  const Conversation talk = Begin();
  runc_end = talk.runc.get();
  for (const auto& [script, pid] : {std::pair("pre-restore", 0), std::pair("pre-resume", 4711)}) {
    Say(talk.criu.get(), Notify(script, pid));
    EXPECT_EQ(Hear(talk.runc.get()).bytes, Notify(script, pid));
  }
  criu_resp success;  // no notification: the hook has no business with it
  success.set_type(RESTORE);
  success.set_success(true);
  Say(talk.criu.get(), success.SerializeAsString());
  Hear(talk.runc.get());
  relay_.reset();  // the hook's thread has ended: what it wrote is ours

  ASSERT_THAT(heard, SizeIs(2));
  EXPECT_EQ(heard[0].script, "pre-restore");
  EXPECT_EQ(heard[0].workload_pid, 0);
  EXPECT_EQ(heard[1].script, "pre-resume");
  EXPECT_EQ(heard[1].workload_pid, 4711);
  EXPECT_EQ(heard[0].criu_pid, talk.criu_pid);
  EXPECT_EQ(heard[1].criu_pid, talk.criu_pid);
  EXPECT_THAT(runc_had_it, testing::Each(false));
}

TEST_F(RelayTest, RuncsDeathEndsCriusConnection) {
  Start();
  Conversation talk = Begin();
  Say(talk.runc.get(), "last words");
  talk.runc.reset();
  EXPECT_EQ(Hear(talk.criu.get()).bytes, "last words");
  EXPECT_TRUE(Hear(talk.criu.get()).ended);
}

TEST_F(RelayTest, CriusDeathEndsRuncsConnection) {
  Start();
  Conversation talk = Begin();
  Say(talk.criu.get(), "last words");
  talk.criu.reset();
  EXPECT_EQ(Hear(talk.runc.get()).bytes, "last words");
  EXPECT_TRUE(Hear(talk.runc.get()).ended);
}

TEST_F(RelayTest, SeveralConversationsOneAfterTheOther) {
  Start();
  for (int i = 0; i < 5; ++i) {
    const Conversation talk = Begin();
    Say(talk.runc.get(), Request(DUMP).SerializeAsString());
    criu_req got;
    ASSERT_TRUE(got.ParseFromString(Hear(talk.criu.get()).bytes));
    EXPECT_TRUE(IsOurFdFor(got.opts().images_dir_fd(), directory_ / "images"));
    Say(talk.criu.get(), "done");
    EXPECT_EQ(Hear(talk.runc.get()).bytes, "done");
  }
}

TEST_F(RelayTest, ASenselessPeerDoesNotKeepTheNextFromItsTurn) {
  Start();
  const UniqueFd hangs_up = ConnectTo(directory_ / "work" / "relay.sock");
  ASSERT_TRUE(hangs_up);
  ASSERT_EQ(::shutdown(hangs_up.get(), SHUT_RDWR), 0);
  const UniqueFd babbles = ConnectTo(directory_ / "work" / "relay.sock");
  ASSERT_TRUE(babbles);
  Say(babbles.get(), "no descriptor");
  const Conversation talk = Begin();
  Say(talk.runc.get(), "hello");
  EXPECT_EQ(Hear(talk.criu.get()).bytes, "hello");
}

TEST_F(RelayTest, EndsWhileNobodyIsThere) {
  Start();
  EXPECT_TRUE(EndsPromptly([] {}));
}

TEST_F(RelayTest, EndsWhileTwoAreConnected) {
  Start();
  Conversation talk = Begin();
  Say(talk.runc.get(), "hello");
  Hear(talk.criu.get());
  EXPECT_TRUE(EndsPromptly([&] { talk.runc.reset(); }));
  // Both see their peer gone rather than wait for ever.
  EXPECT_TRUE(Hear(talk.criu.get()).ended);
  EXPECT_TRUE(Hear(talk.runc.get()).ended);
}

TEST_F(RelayTest, EndsWhileAPeerIsConnectedThatSaysNothing) {
  Start();
  UniqueFd silent = ConnectTo(directory_ / "work" / "relay.sock");
  ASSERT_TRUE(silent);
  std::this_thread::sleep_for(milliseconds(50));  // for the relay to take it
  EXPECT_TRUE(EndsPromptly([&] { silent.reset(); }));
}

TEST_F(RelayTest, EndsWhileAPeerDoesNotRead) {
  Start();
  Conversation talk = Begin();
  const std::string message(32 << 10, 'x');
  ::fcntl(talk.runc.get(), F_SETFL, O_NONBLOCK);
  // Until what CRIU does not read has filled the relay's buffer, and after it runc's.
  for (int idle = 0; idle < 20;) {
    if (::send(talk.runc.get(), message.data(), message.size(), MSG_NOSIGNAL) < 0) {
      ASSERT_EQ(errno, EAGAIN);
      std::this_thread::sleep_for(milliseconds(5));
      ++idle;
    }
  }
  EXPECT_TRUE(EndsPromptly([&] { talk.criu.reset(); }));
}

TEST_F(RelayTest, ADirectoryThatADeadRelayLeftIsUsedAgain) {
  Start();
  relay_.reset();
  EXPECT_TRUE(fs::exists(directory_ / "work/relay.sock"));
  Start();
  const Conversation talk = Begin();
  Say(talk.runc.get(), "hello");
  EXPECT_EQ(Hear(talk.criu.get()).bytes, "hello");
}

TEST_F(RelayTest, APathTooLongForASocketIsABadArgument) {
  const auto relay = Relay::Start(directory_ / std::string(100, 'x'), Programs(), {});
  ASSERT_FALSE(relay);
  EXPECT_EQ(relay.error().code(), base::ErrorCode::kBadArgument);
}

TEST_F(RelayTest, CriuGetsThePreloadLibraryAndRuncDoesNot) {
  Start();
  const Conversation talk = Begin();
  const auto environment_of = [](pid_t pid) {
    return base::ReadFile(fmt::format("/proc/{}/environ", pid)).value();
  };
  const std::string preload = "LD_PRELOAD=" + (Programs() / "libwaft-criu-preload.so").string();
  EXPECT_THAT(environment_of(talk.criu_pid), HasSubstr(preload));
  EXPECT_THAT(environment_of(talk.runc_pid), Not(HasSubstr("LD_PRELOAD=")));
}

// The stub without a conversation.
class StubTest : public RelayTest {
 protected:
  base::RunResult RunStub(const std::vector<std::string>& arguments,
                          const std::map<std::string, std::string>& environment) {
    base::Command command{.argv = {Programs() / "waft-criu"}, .environment = environment};
    command.argv.insert(command.argv.end(), arguments.begin(), arguments.end());
    // `swrk 5` needs a socket to hand over.
    std::array<int, 2> pair{};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair.data()), 0);
    const UniqueFd ours(pair[0]);
    const UniqueFd theirs(pair[1]);
    command.fds = {{theirs.get(), 5}};
    const auto run = base::RunFor(command, milliseconds(kLimitMs));
    EXPECT_TRUE(run);
    return run.value_or(base::RunResult{});
  }
};

TEST_F(StubTest, OtherCommandsGoStraightToCriu) {
  const base::RunResult run = RunStub({"check", "--all"}, {{"WAFT_CRIU", "/bin/echo"},
                                                           {"WAFT_CRIU_RELAY", "/nowhere"},
                                                           {"WAFT_CRIU_PRELOAD", "libc.so.6"}});
  EXPECT_TRUE(run.exit.Ok()) << run.err;
  EXPECT_EQ(run.out, "check --all\n");
}

TEST_F(StubTest, OutsideOfAMigrationItSaysWhatItIs) {
  ::unsetenv("WAFT_CRIU");
  const base::RunResult run = RunStub({"swrk", "5"}, {});
  EXPECT_EQ(run.exit.code, 2);
  EXPECT_THAT(run.err, HasSubstr("use criu itself"));
}

TEST_F(StubTest, ADeadRelayIsAnError) {
  Start();
  const std::map<std::string, std::string> environment = relay_->environment();
  relay_.reset();
  const base::RunResult run = RunStub({"swrk", "5"}, environment);
  EXPECT_EQ(run.exit.code, 1);
  EXPECT_THAT(run.err, HasSubstr("connect to the relay"));
}

// Hands `end` to the test that listens at `home`, and lives until the test lets go.
int HandOver(const fs::path& home, UniqueFd end) {
  const UniqueFd life = ConnectTo(home);
  if (!life || !SendFd(life.get(), end.get())) return 1;
  end.reset();
  char byte = 0;
  return ::recv(life.get(), &byte, 1, 0) == 0 ? 0 : 1;
}

// Does what runc does: a socket pair, one end to a `criu swrk FD` from PATH, and two directories
// that only it has open.
int FakeRunc(const fs::path& directory) {
  ::dup2(UniqueFd(::open((directory / "images").c_str(), O_RDONLY)).get(), kImagesFd);
  ::dup2(UniqueFd(::open((directory / "work").c_str(), O_RDONLY)).get(), kWorkFd);
  std::array<int, 2> pair{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair.data()) != 0) return 1;
  UniqueFd ours(pair[0]);
  {
    const UniqueFd theirs(pair[1]);
    if (!base::Child::Spawn({.argv = {"criu", "swrk", "3"}, .fds = {{theirs.get(), 3}}})) return 1;
  }
  return HandOver(directory / "runc.home", std::move(ours));
}

}  // namespace
}  // namespace waft::criu

int main(int argc, char** argv) {
  if (argc == 3 && std::strcmp(argv[1], "fake-runc") == 0) return waft::criu::FakeRunc(argv[2]);
  if (argc == 3 && std::strcmp(argv[1], "swrk") == 0) {
    return waft::criu::HandOver(std::getenv("FAKE_CRIU_HOME"),
                                waft::base::UniqueFd(std::atoi(argv[2])));
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
