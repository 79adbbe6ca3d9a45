// Runs the program that users run against a Control server that answers as a test tells it to: what
// it prints where, and what it exits with.
#include "cli/app.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <array>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "api/control.grpc.pb.h"
#include "base/file.h"
#include "base/process.h"

namespace waft::cli {
namespace {

namespace fs = std::filesystem;
using base::RunResult;
using nlohmann::json;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::StartsWith;

constexpr std::chrono::seconds kLimit{20};

using MigrateWriter = grpc::ServerWriter<v1::MigrateEvent>;

class FakeControl final : public v1::Control::Service {
 public:
  grpc::Status ListWorkloads(grpc::ServerContext*, const v1::ListWorkloadsRequest*,
                             v1::ListWorkloadsReply* reply) override {
    *reply = workloads;
    return answer;
  }
  grpc::Status Migrate(grpc::ServerContext* context, const v1::MigrateRequest* request,
                       MigrateWriter* writer) override {
    return migrate(*context, *request, *writer);
  }
  grpc::Status ListMigrations(grpc::ServerContext*, const v1::ListMigrationsRequest*,
                              v1::ListMigrationsReply* reply) override {
    *reply = migrations;
    return answer;
  }

  v1::ListWorkloadsReply workloads;
  v1::ListMigrationsReply migrations;
  grpc::Status answer;  // to the questions
  std::function<grpc::Status(grpc::ServerContext&, const v1::MigrateRequest&, MigrateWriter&)>
      migrate;
};

void SendProgress(MigrateWriter& writer, const std::string& state, uint64_t done = 0) {
  v1::MigrateEvent event;
  event.mutable_progress()->set_state(state);
  event.mutable_progress()->set_message("doing " + state);
  event.mutable_progress()->set_bytes_done(done);
  event.mutable_progress()->set_bytes_total(done == 0 ? 0 : 8 << 20);
  writer.Write(event);
}

v1::Report MadeReport(v1::Outcome outcome) {
  v1::Report report;
  report.set_workload("web");
  report.set_source("alpha");
  report.set_destination("beta");
  report.set_outcome(outcome);
  report.set_total_ms(1234);
  if (outcome == v1::COMPLETED) report.set_downtime_ms(48.2);
  if (outcome != v1::COMPLETED) report.set_error("beta has no room");
  return report;
}

class AppTest : public testing::Test {
 protected:
  AppTest() {
    std::string name = (fs::temp_directory_path() / "waft-app-XXXXXX").string();
    root_ = ::mkdtemp(name.data());
    socket_ = root_ / "waftd.sock";
  }
  ~AppTest() override {
    if (server_) server_->Shutdown(std::chrono::system_clock::now() + kLimit);
    fs::remove_all(root_);
  }

  void StartServer() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + socket_.string(), grpc::InsecureServerCredentials());
    builder.RegisterService(&control_);
    server_ = builder.BuildAndStart();
    ASSERT_TRUE(server_);
  }

  // Has migrations answered with `report` after two states.
  void AnswerWith(const v1::Report& report) {
    control_.migrate = [report](grpc::ServerContext&, const v1::MigrateRequest&,
                                MigrateWriter& writer) {
      SendProgress(writer, "dump");
      SendProgress(writer, "transfer", 2 << 20);
      v1::MigrateEvent event;
      *event.mutable_report() = report;
      writer.Write(event);
      return grpc::Status::OK;
    };
    StartServer();
  }

  base::Command Waft(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), WAFT_PROGRAM);
    return {.argv = arguments, .environment = {{"WAFT_SOCKET", socket_.string()}}};
  }
  RunResult Run(const std::vector<std::string>& arguments) const {
    return base::RunFor(Waft(arguments), kLimit).value();
  }

  fs::path root_;
  fs::path socket_;
  FakeControl control_;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(AppTest, PsPrintsATableOrJson) {
  control_.workloads.add_workloads()->set_id("web");
  control_.workloads.mutable_workloads(0)->set_pid(77);
  StartServer();
  const RunResult table = Run({"ps"});
  EXPECT_EQ(table.exit.code, 0) << table.err;
  EXPECT_THAT(table.out, StartsWith("ID   STATE  PID  TASKS   MEMORY  BUNDLE\nweb "));
  const RunResult parsed = Run({"ps", "--json"});
  EXPECT_EQ(json::parse(parsed.out)["workloads"][0]["pid"], 77);
}

TEST_F(AppTest, StatusPrintsATableOrJson) {
  control_.migrations.add_migrations()->set_id("m1");
  control_.migrations.mutable_migrations(0)->set_state("in-doubt");
  StartServer();
  EXPECT_THAT(Run({"status"}).out, HasSubstr("in-doubt"));
  EXPECT_EQ(json::parse(Run({"status", "--json"}).out)["migrations"][0]["state"], "in-doubt");
}

TEST_F(AppTest, TheSocketOptionWinsOverTheEnvironment) {
  StartServer();
  base::Command command = Waft({"ps", "--socket", socket_.string()});
  command.environment["WAFT_SOCKET"] = "/nowhere/waftd.sock";
  EXPECT_EQ(base::RunFor(command, kLimit)->exit.code, 0);
}

TEST_F(AppTest, ACompletedMigrationIsReported) {
  v1::MigrateRequest seen;
  AnswerWith(MadeReport(v1::COMPLETED));
  const auto answer = control_.migrate;
  control_.migrate = [&](auto& context, const auto& request, auto& writer) {
    seen = request;
    return answer(context, request, writer);
  };
  const RunResult result = Run({"migrate", "web", "--to", "beta:7420"});
  EXPECT_EQ(result.exit.code, 0) << result.err;
  EXPECT_EQ(seen.workload(), "web");
  EXPECT_EQ(seen.destination(), "beta:7420");
  EXPECT_EQ(seen.mode(), "stop");
  EXPECT_THAT(result.out, StartsWith("web now runs on beta.\n"));
  EXPECT_THAT(result.out, HasSubstr("48.2 ms"));
  EXPECT_THAT(result.err, HasSubstr("dump: doing dump\n"));
  EXPECT_THAT(result.err, HasSubstr("transfer: doing transfer\n"));
  EXPECT_THAT(result.err, Not(HasSubstr("\x1b")));
}

TEST_F(AppTest, JsonIsAllThereIsOnStandardOutput) {
  AnswerWith(MadeReport(v1::COMPLETED));
  const RunResult result = Run({"migrate", "web", "--to", "beta", "--json"});
  EXPECT_EQ(result.exit.code, 0);
  EXPECT_EQ(json::parse(result.out)["outcome"], "completed");
  EXPECT_THAT(result.err, IsEmpty());
}

TEST_F(AppTest, ATerminalGetsALineRedrawnInPlace) {
  AnswerWith(MadeReport(v1::COMPLETED));
  const base::UniqueFd terminal(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  ASSERT_TRUE(terminal);
  ASSERT_EQ(::grantpt(terminal.get()), 0);
  ASSERT_EQ(::unlockpt(terminal.get()), 0);
  const base::UniqueFd theirs(::open(::ptsname(terminal.get()), O_RDWR | O_NOCTTY | O_CLOEXEC));
  const fs::path out = root_ / "out";
  const base::UniqueFd out_fd(::open(out.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  base::Command command = Waft({"migrate", "web", "--to", "beta", "--json"});
  command.fds = {{out_fd.get(), 1}, {theirs.get(), 2}};
  base::Child child = base::Child::Spawn(command).value();
  EXPECT_EQ(child.Wait()->code, 0);
  std::array<char, 4096> buffer{};
  const ssize_t got = ::read(terminal.get(), buffer.data(), buffer.size());
  ASSERT_GT(got, 0);
  const std::string drawn(buffer.data(), static_cast<size_t>(got));
  EXPECT_THAT(drawn, HasSubstr("\r\x1b[Kweb: transfer  doing transfer  2.0 MiB of 8.0 MiB (25%)"));
  EXPECT_TRUE(drawn.ends_with("\r\x1b[K"));
  EXPECT_THAT(drawn, Not(HasSubstr("\n")));
  EXPECT_EQ(json::parse(base::ReadFile(out).value())["outcome"], "completed");
}

TEST_F(AppTest, ARollbackExitsWith1) {
  AnswerWith(MadeReport(v1::ROLLED_BACK));
  const RunResult result = Run({"migrate", "web", "--to", "beta"});
  EXPECT_EQ(result.exit.code, 1);
  EXPECT_THAT(result.out, StartsWith("web was not moved: beta has no room\n"));
  EXPECT_EQ(Run({"migrate", "web", "--to", "beta", "--json"}).exit.code, 1);
}

TEST_F(AppTest, DoubtExitsWith3) {
  AnswerWith(MadeReport(v1::IN_DOUBT));
  const RunResult result = Run({"migrate", "web", "--to", "beta"});
  EXPECT_EQ(result.exit.code, 3);
  EXPECT_THAT(result.out, HasSubstr("`waft status`"));
}

TEST_F(AppTest, ARefusalExitsWith1AndSpeaksWaftdsWords) {
  control_.migrate = [](auto&, const auto&, auto&) {
    return grpc::Status(grpc::StatusCode::NOT_FOUND, "no workload web: `waft ps` lists them");
  };
  StartServer();
  const RunResult result = Run({"migrate", "web", "--to", "beta"});
  EXPECT_EQ(result.exit.code, 1);
  EXPECT_EQ(result.err, "waft: no workload web: `waft ps` lists them\n");
}

TEST_F(AppTest, ACallThatBreaksAfterItBeganExitsWith3) {
  // Even a code that would be a refusal at the beginning.
  for (const auto code : {grpc::StatusCode::UNAVAILABLE, grpc::StatusCode::NOT_FOUND,
                          grpc::StatusCode::UNIMPLEMENTED, grpc::StatusCode::OK}) {
    control_.migrate = [code](auto&, const auto&, MigrateWriter& writer) {
      SendProgress(writer, "dump");
      return grpc::Status(code, "");
    };
    if (!server_) StartServer();
    const RunResult result = Run({"migrate", "web", "--to", "beta"});
    EXPECT_EQ(result.exit.code, 3) << code;
    EXPECT_THAT(result.err, HasSubstr("`waft status`")) << code;
  }
}

base::UniqueFd Listen(const fs::path& socket) {
  base::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, socket.c_str(), sizeof(address.sun_path) - 1);
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_EQ(::listen(fd.get(), 1), 0);
  return fd;
}

TEST_F(AppTest, AWaftdThatDiesOnTheRequestExitsWith3) {
  const base::UniqueFd listener = Listen(socket_);
  std::thread waftd([&] { const base::UniqueFd dies(::accept(listener.get(), nullptr, nullptr)); });
  const RunResult result = Run({"migrate", "web", "--to", "beta"});
  waftd.join();
  EXPECT_EQ(result.exit.code, 3);
  EXPECT_THAT(result.err, HasSubstr("the connection to waftd broke"));
}

TEST_F(AppTest, NoWaftdExitsWith4AndSaysHowToStartIt) {
  const RunResult missing = Run({"migrate", "web", "--to", "beta"});
  EXPECT_EQ(missing.exit.code, 4);
  EXPECT_THAT(missing.err, HasSubstr("waftd is not running on this host (socket " +
                                     socket_.string() + "): start it"));
  EXPECT_THAT(missing.err, HasSubstr("nothing was started"));
  Listen(socket_);  // closed again at once: the socket of a dead waftd
  for (const char* command : {"ps", "status"}) {
    const RunResult stale = Run({command});
    EXPECT_EQ(stale.exit.code, 4);
    EXPECT_THAT(stale.err, HasSubstr("waftd is not running on this host"));
  }
  EXPECT_THAT(Run({"ps", "--socket", std::string(200, 'x')}).err, HasSubstr("1 to 107 characters"));
}

TEST_F(AppTest, AWaftdOfAnotherVersionExitsWith4) {
  control_.answer = grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "");
  control_.migrate = [](auto&, const auto&, auto&) {
    return grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "");
  };
  StartServer();
  for (const auto& command : std::vector<std::vector<std::string>>{
           {"ps"}, {"status"}, {"migrate", "web", "--to", "beta"}}) {
    const RunResult result = Run(command);
    EXPECT_EQ(result.exit.code, 4) << command[0];
    EXPECT_THAT(result.err, HasSubstr("different versions")) << command[0];
  }
}

TEST_F(AppTest, CtrlCEndsTheWatchingNotTheMigration) {
  std::mutex mutex;
  std::condition_variable changed;
  bool begun = false;
  bool left_alone = false;
  control_.migrate = [&](grpc::ServerContext& context, const auto&, MigrateWriter& writer) {
    SendProgress(writer, "transfer");
    std::unique_lock lock(mutex);
    begun = true;
    changed.notify_all();
    // As waftd does: the caller has gone, the work goes on.
    changed.wait_for(lock, kLimit, [&] { return context.IsCancelled() || left_alone; });
    return grpc::Status::OK;
  };
  StartServer();
  for (const int signal : {SIGINT, SIGTERM}) {
    begun = false;
    left_alone = false;
    const fs::path errors = root_ / "err";
    const base::UniqueFd fd(::open(errors.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    base::Command command = Waft({"migrate", "web", "--to", "beta"});
    command.fds = {{fd.get(), 2}};
    base::Child child = base::Child::Spawn(command).value();
    {
      std::unique_lock lock(mutex);
      ASSERT_TRUE(changed.wait_for(lock, kLimit, [&] { return begun; }));
    }
    while (base::ReadFile(errors)->empty())
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    ASSERT_TRUE(child.Signal(signal));
    if (!child.WaitFor(kLimit).value()) {
      ADD_FAILURE() << "waft goes on after signal " << signal;
      ASSERT_TRUE(child.Signal(SIGKILL));
    }
    EXPECT_EQ(child.Wait()->code, 3);
    {
      const std::lock_guard lock(mutex);
      left_alone = true;
      changed.notify_all();
    }
    const std::string said = base::ReadFile(errors).value();
    EXPECT_THAT(said, HasSubstr("the migration belongs to waftd and goes on"));
    EXPECT_THAT(said, HasSubstr("`waft status`"));
  }
}

TEST_F(AppTest, AWrongCommandLineExitsWith2AndSaysWhatIsRight) {
  const auto error = [&](const std::vector<std::string>& arguments) {
    const RunResult result = Run(arguments);
    EXPECT_EQ(result.exit.code, 2) << testing::PrintToString(arguments) << result.err;
    EXPECT_THAT(result.out, IsEmpty());
    return result.err;
  };
  EXPECT_THAT(error({}), HasSubstr("waft --help"));
  EXPECT_THAT(error({"teleport"}), HasSubstr("no command 'teleport'"));
  EXPECT_THAT(error({"cert", "forge"}), HasSubstr("no command 'forge'"));
  EXPECT_THAT(error({"migrate", "web"}), HasSubstr("--to"));
  EXPECT_THAT(error({"migrate", "--to", "beta"}), HasSubstr("ID"));
  EXPECT_THAT(error({"migrate", "web", "--to", "beta", "--mode", "precopy"}),
              HasSubstr("no mode 'precopy'; valid modes: stop"));
  const auto destination = [&](const std::string& to) {
    return error({"migrate", "web", "--to", to});
  };
  EXPECT_THAT(destination("beta:"), HasSubstr("from 1 to 65535"));
  EXPECT_THAT(destination("beta:70000"), HasSubstr("from 1 to 65535"));
  EXPECT_THAT(destination(":7420"), HasSubstr("the host is missing"));
  EXPECT_THAT(destination("https://beta"), HasSubstr("'https://beta' is no HOST"));
  EXPECT_THAT(destination("root@beta"), HasSubstr("without user"));
  EXPECT_THAT(destination("fd00::2"), HasSubstr("in brackets"));
  EXPECT_THAT(destination("[fd00::2"), HasSubstr("']' is missing"));
  EXPECT_THAT(error({"cert", "init", "--dir", "/x", "--host", "alpha=nowhere"}),
              HasSubstr("is no IP address"));
}

TEST_F(AppTest, AddressesWithPortsAreAccepted) {
  for (const char* to :
       {"beta", "beta.example.net:1", "10.0.0.2:65535", "[fd00::2]:7420", "[fd00::2]"}) {
    EXPECT_EQ(Run({"migrate", "web", "--to", to}).exit.code, 4)
        << to;  // no waftd, so it got that far
  }
}

TEST_F(AppTest, HelpTeaches) {
  const RunResult help = Run({"--help"});
  EXPECT_EQ(help.exit.code, 0);
  EXPECT_THAT(help.out, HasSubstr("waft migrate web --to beta"));
  EXPECT_THAT(help.out, HasSubstr("Exit codes:"));
  EXPECT_THAT(Run({"cert", "init", "--help"}).out, HasSubstr("--renew"));
  EXPECT_THAT(Run({"--version"}).out, StartsWith("waft "));
}

// A program that says what it was called with.
void WriteWaftd(const fs::path& path, int exit_code) {
  fs::create_directories(path.parent_path());
  ASSERT_TRUE(base::WriteFileAtomically(
      path, "#!/bin/sh\necho \"$0 $*\"\nexit " + std::to_string(exit_code) + "\n", 0755));
}

TEST_F(AppTest, CheckIsTheWaftdBesideWaftElseTheOneOnPath) {
  const fs::path bin = root_ / "bin";
  const fs::path elsewhere = root_ / "elsewhere";
  fs::create_directories(bin);
  fs::copy_file(WAFT_PROGRAM, bin / "waft");
  const auto check = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {(bin / "waft").string(), "check"});
    return base::RunFor(
               {.argv = arguments, .environment = {{"PATH", elsewhere.string() + ":/bin"}}}, kLimit)
        .value();
  };
  const RunResult none = check({});
  EXPECT_EQ(none.exit.code, 4);
  EXPECT_THAT(none.err, HasSubstr("cannot find waftd"));

  WriteWaftd(elsewhere / "waftd", 5);
  const RunResult on_path = check({});
  EXPECT_EQ(on_path.exit.code, 5) << on_path.err;
  EXPECT_EQ(on_path.out, (elsewhere / "waftd").string() + " --check\n");

  WriteWaftd(bin / "waftd", 0);
  const RunResult beside = check({"--json"});
  EXPECT_EQ(beside.exit.code, 0);
  EXPECT_EQ(beside.out, (bin / "waftd").string() + " --check --json\n");
}

TEST_F(AppTest, CertInitSaysWhatGoesWhere) {
  const std::string directory = (root_ / "tls").string();
  const std::vector<std::string> arguments{"cert",   "init",           "--dir",  directory,
                                           "--host", "alpha=10.0.0.1", "--host", "beta=10.0.0.2"};
  const RunResult made = Run(arguments);
  EXPECT_EQ(made.exit.code, 0) << made.err;
  EXPECT_THAT(made.out, HasSubstr("made " + directory + "/ca.crt, ca.key: valid until 20"));
  EXPECT_THAT(made.out, HasSubstr("/etc/waft/tls"));
  EXPECT_THAT(made.out, HasSubstr(directory + "/beta.key as host.key"));
  EXPECT_THAT(made.out, HasSubstr("Keep " + directory + "/ca.key off the hosts"));
  const RunResult kept = Run(arguments);
  EXPECT_EQ(kept.exit.code, 0) << kept.err;
  EXPECT_THAT(kept.out, HasSubstr("kept " + directory + "/alpha.crt"));
}

}  // namespace
}  // namespace waft::cli
