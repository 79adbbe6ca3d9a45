#include "cli/app.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <csignal>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "api/report_json.h"
#include "base/clock.h"
#include "cli/certificates.h"
#include "cli/check.h"
#include "cli/client.h"
#include "cli/exit_code.h"
#include "cli/render.h"

namespace waft::cli {
namespace {

constexpr const char* kDefaultSocket = "/run/waft/waftd.sock";
constexpr std::string_view kModes = "stop";  // separated by ", "

constexpr const char* kFooter = R"(Examples:
  waft check                       can this host send and receive workloads?
  waft ps                          what runs here and could be moved
  waft migrate web --to beta       move it
  waft status                      what became of it
  waft cert init --dir tls --host alpha=10.0.0.1 --host beta=10.0.0.2

Exit codes:
  0  done
  1  refused or failed; the workload still runs here
  2  the command line is wrong; nothing was asked of anyone
  3  the outcome is not known (yet): the migration is in doubt, or waft stopped
     watching it. `waft status` tells
  4  waftd cannot be reached; nothing was started)";

constexpr const char* kMigrateFooter = R"(Examples:
  waft migrate web --to beta
  waft migrate web --to beta:7420 --json > report.json

The migration belongs to waftd: Ctrl-C ends the watching, not the migration
(exit code 3), and `waft status` shows how it goes on.

Exit codes:
  0  moved
  1  refused or failed; the workload still runs here
  2  the command line is wrong
  3  in doubt, or the watching ended early: `waft status` tells
  4  waftd cannot be reached; nothing was started)";

constexpr const char* kCertInitFooter = R"(Example:
  waft cert init --dir tls --host alpha=10.0.0.1 --host beta=10.0.0.2,fd00::2

Run it again to add a host. A key is never overwritten: an authority and hosts
that are there are kept, and a host that is there with other addresses is an
error, unless --renew signs a new certificate for the same key.)";

void Say(std::string_view text) { std::cerr << "waft: " << text << "\n"; }

int Exit(ExitCode code) { return static_cast<int>(code); }

int FailCall(const CallError& error) {
  Say(error.message);
  return Exit(ExitCodeFor(error.end));
}

// The width of the terminal on standard error; 0 if it is none.
int TerminalColumns() {
  if (::isatty(STDERR_FILENO) == 0) return 0;
  winsize size{};
  const bool known = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

// Empty if `text` is HOST or HOST:PORT, with an IPv6 HOST in brackets; else what is wrong with it.
std::string CheckDestination(const std::string& text) {
  const auto wrong = [&](std::string_view why) {
    return fmt::format("'{}' is no HOST or HOST:PORT: {}", text, why);
  };
  const bool bracketed = text.starts_with('[');
  const size_t host_end = bracketed ? text.find(']') : text.find(':');
  if (bracketed && host_end == std::string::npos) return wrong("']' is missing");
  const std::string_view host = std::string_view(text).substr(0, host_end);
  std::string_view rest = std::string_view(text).substr(std::min(host.size(), text.size()));
  if (bracketed) rest.remove_prefix(1);
  if (host.empty() || host == "[") return wrong("the host is missing");
  if (host.find_first_of(" \t\n/@") != std::string_view::npos) {
    return wrong("give the name alone, without user, scheme or path");
  }
  if (rest.empty()) return "";
  rest.remove_prefix(1);
  if (!bracketed && rest.find(':') != std::string_view::npos) {
    return wrong("write an IPv6 address in brackets, such as [fd00::2]:7420");
  }
  int port = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), port);
  if (error != std::errc() || end != rest.data() + rest.size() || port < 1 || port > 65535) {
    return wrong("the port must be a number from 1 to 65535");
  }
  return "";
}

std::string CheckMode(const std::string& mode) {
  if (mode == kModes) return "";
  return fmt::format("there is no mode '{}'; valid modes: {}", mode, kModes);
}

struct Options {
  std::string socket = kDefaultSocket;
  bool json = false;
  std::string workload;
  std::string destination;
  std::string mode = "stop";
  std::string directory;
  std::vector<std::string> hosts;
  int days = CertificateOptions().days;
  bool renew = false;
};

int RunPs(const Options& options) {
  CallResult<ControlClient> client = ControlClient::Connect(options.socket);
  if (!client) return FailCall(client.error());
  const auto reply = client->ListWorkloads();
  if (!reply) return FailCall(reply.error());
  std::cout << (options.json ? WorkloadsJson(*reply) : WorkloadsTable(*reply));
  return Exit(ExitCode::kDone);
}

int RunStatus(const Options& options) {
  CallResult<ControlClient> client = ControlClient::Connect(options.socket);
  if (!client) return FailCall(client.error());
  const auto reply = client->ListMigrations();
  if (!reply) return FailCall(reply.error());
  std::cout << (options.json ? MigrationsJson(*reply)
                             : MigrationsTable(*reply, base::RealtimeNs() / 1'000'000));
  return Exit(ExitCode::kDone);
}

int RunMigrate(const Options& options) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  ::sigprocmask(SIG_BLOCK, &signals, nullptr);

  const auto fail = [](const CallError& error) {
    const int code = FailCall(error);
    if (code == Exit(ExitCode::kUnknown)) Say("watch it with `waft status`");
    if (code == Exit(ExitCode::kNotStarted)) Say("nothing was started");
    return code;
  };
  CallResult<ControlClient> client = ControlClient::Connect(options.socket);
  if (!client) return fail(client.error());
  v1::MigrateRequest request;
  request.set_workload(options.workload);
  request.set_destination(options.destination);
  request.set_mode(options.mode);

  const int columns = TerminalColumns();
  // With --json the report is all that a script reads; a person at a terminal sees progress as
  // well.
  const bool show = columns > 0 || !options.json;
  ProgressView view(std::cerr, columns, options.workload);
  const auto report = client->Migrate(request, {.on_progress =
                                                    [&](const v1::Progress& progress) {
                                                      if (show) view.Show(progress);
                                                    },
                                                .on_tick = [&] { view.Tick(); }});
  view.Finish();
  if (!report) return fail(report.error());
  std::cout << (options.json ? api::ReportToJson(*report) + "\n" : ReportText(*report));
  return Exit(ExitCodeFor(report->outcome()));
}

int RunCertInit(const Options& options) {
  const auto fail = [](const base::Error& error) {
    Say(error.message());
    return Exit(ExitCodeFor(error.code()));
  };
  CertificateOptions request{
      .directory = options.directory, .hosts = {}, .days = options.days, .renew = options.renew};
  for (const std::string& text : options.hosts) {
    auto host = ParseCertificateHost(text);
    if (!host) return fail(host.error());
    request.hosts.push_back(*std::move(host));
  }
  const auto states = InitCertificates(request);
  if (!states) return fail(states.error());

  const std::string prefix = (request.directory / "").string();
  for (const CertificateState& state : *states) {
    std::cout << fmt::format("{} {}{}.crt, {}.key: valid until {}\n", state.made ? "made" : "kept",
                             prefix, state.name, state.name, state.expiry);
  }
  std::cout << "\nPut these into /etc/waft/tls of each host, owned by root:\n";
  for (const CertificateState& state : *states) {
    if (state.name == "ca") continue;
    std::cout << fmt::format(
        "  on {0}: {1}ca.crt as ca.crt, {1}{0}.crt as host.crt, {1}{0}.key as host.key (mode "
        "0600)\n",
        state.name, prefix);
  }
  std::cout << fmt::format("Keep {}ca.key off the hosts: with it anyone can join them.\n", prefix);
  return Exit(ExitCode::kDone);
}

}  // namespace

int RunWaft(int argc, char** argv) {
  Options options;
  CLI::App app("waft moves running workloads to another host while their clients stay connected.",
               "waft");
  app.set_version_flag("--version", "waft " WAFT_VERSION);
  app.footer(kFooter);
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--socket", options.socket, "The socket of this host's waftd")
      ->envname("WAFT_SOCKET")
      ->type_name("PATH")
      ->capture_default_str();
  const auto add_json = [&](CLI::App* command) {
    command->add_flag("--json", options.json,
                      "Print JSON on standard output, and nothing else there");
  };

  CLI::App* ps = app.add_subcommand("ps", "List the workloads of this host");
  add_json(ps);

  CLI::App* migrate = app.add_subcommand("migrate", "Move a workload to another host");
  migrate->footer(kMigrateFooter);
  migrate->add_option("ID", options.workload, "The workload, as `waft ps` names it")
      ->required()
      ->type_name("")
      ->check([](const std::string& id) { return id.empty() ? "it is empty" : ""; });
  migrate
      ->add_option("--to", options.destination,
                   "The host to move it to, as its certificate names it")
      ->required()
      ->type_name("HOST[:PORT]")
      ->check(CheckDestination);
  migrate
      ->add_option(
          "--mode", options.mode,
          "How: stop (freeze, copy everything, run on; the downtime grows with the memory)")
      ->type_name("MODE")
      ->capture_default_str()
      ->check(CheckMode);
  add_json(migrate);

  CLI::App* status =
      app.add_subcommand("status", "List current and recent migrations of this host");
  add_json(status);

  CLI::App* check = app.add_subcommand(
      "check", "Check what this host can do and what it lacks, without waftd running");
  check->footer("Runs `waftd --check`; the exit code is its own.");
  add_json(check);

  CLI::App* cert =
      app.add_subcommand("cert", "Make the certificates that hosts know each other by");
  cert->require_subcommand(1);
  CLI::App* init = cert->add_subcommand(
      "init", "Make an authority, and a certificate for each host signed by it");
  init->footer(kCertInitFooter);
  init->add_option("--dir", options.directory, "Where to keep them")->required()->type_name("DIR");
  init->add_option("--host", options.hosts,
                   "A host: its name and the addresses that other hosts reach it at")
      ->required()
      ->type_name("NAME=ADDRESS[,ADDRESS]");
  init->add_option("--days", options.days, "How long the hosts' certificates are valid")
      ->type_name("N")
      ->capture_default_str();
  init->add_flag("--renew", options.renew,
                 "Sign new certificates for the keys of hosts that are there");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    // CLI11 misses the command before it looks at the word that is none.
    const std::vector<std::string> unknown = app.remaining(true);
    const bool no_command =
        error.get_exit_code() == static_cast<int>(CLI::ExitCodes::RequiredError) &&
        !unknown.empty();
    Say(no_command ? fmt::format("there is no command '{}'", unknown.front()) : error.what());
    Say("`waft --help` and `waft COMMAND --help` show what it takes");
    return Exit(ExitCode::kUsage);
  }

  if (ps->parsed()) return RunPs(options);
  if (migrate->parsed()) return RunMigrate(options);
  if (status->parsed()) return RunStatus(options);
  if (check->parsed()) {
    Say(ExecCheck(options.json));
    return Exit(ExitCode::kNotStarted);
  }
  return RunCertInit(options);
}

}  // namespace waft::cli
