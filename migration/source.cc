#include "migration/source.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/random.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "base/cgroup.h"
#include "base/clock.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/log.h"
#include "checkpoint/dump.h"
#include "checkpoint/examine.h"
#include "criu/relay.h"
#include "migration/run_directory.h"
#include "migration/source_copy.h"
#include "netns/identity.h"
#include "restore/admission.h"
#include "transfer/image_listener.h"
#include "transfer/image_sender.h"

namespace waft::migration {
namespace fs = std::filesystem;
using base::ErrorCode;
using base::Fail;
using base::NsToMs;
using base::RealtimeNs;
namespace {

constexpr std::chrono::seconds kDataTimeout{10};
constexpr std::chrono::milliseconds kFirstDoubtPause{100};
constexpr std::chrono::milliseconds kLongestDoubtPause{2000};
// How long a caller waits for an answer in doubt before it is told that there is none yet.
constexpr std::chrono::seconds kDoubtReported{10};
constexpr std::chrono::seconds kOrphanTimeout{60};
constexpr int kClockSamples = 5;

base::Result<std::string> NewMigrationId() {
  std::array<unsigned char, 8> bytes{};
  if (::getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    return base::FailErrno("getrandom");
  }
  return fmt::format("{:02x}", fmt::join(bytes, ""));
}

// Longer than any dump that goes on: 20 MiB/s is a tenth of what a busy machine was seen to do.
std::chrono::milliseconds DumpTimeout(uint64_t image_bytes) {
  return std::chrono::seconds(30 + image_bytes / (20 << 20));
}

// Sleeps, but not past a stop.
void Pause(std::chrono::milliseconds span, const std::stop_token& stop) {
  const base::Deadline deadline = base::Deadline::After(span);
  while (!deadline.Passed() && !stop.stop_requested()) {
    std::this_thread::sleep_for(std::min(span, std::chrono::milliseconds(20)));
  }
}

struct ClockOffset {
  int64_t offset_ns = 0;  // destination minus source
  int64_t error_ns = 0;   // at most
};

// The least delayed of a few pings bounds the offset best (as NTP does, RFC 5905 section 8).
base::Result<ClockOffset> EstimateOffset(Peer& peer) {
  ClockOffset best{.offset_ns = 0, .error_ns = INT64_MAX};
  for (int i = 0; i < kClockSamples; ++i) {
    const int64_t sent = RealtimeNs();
    WAFT_ASSIGN(const v1::PingReply reply, peer.Ping());
    const int64_t received = RealtimeNs();
    const int64_t error = (received - sent) / 2;
    if (error < best.error_ns) best = {reply.realtime_ns() - (sent + received) / 2, error};
  }
  return best;
}

// Asks until the destination has decided or `stop`; `waiting` is called after each try without an
// answer.
std::optional<v1::OutcomeReply> AskOutcome(Peer& peer, const std::string& id,
                                           const std::stop_token& stop,
                                           const std::function<void(const std::string&)>& waiting) {
  std::chrono::milliseconds pause = kFirstDoubtPause;
  while (!stop.stop_requested()) {
    const base::Result<v1::OutcomeReply> reply = peer.Outcome(id);
    if (reply && reply->decision() != v1::OutcomeReply::UNDECIDED) return *reply;
    waiting(reply ? fmt::format("{} has not decided yet", peer.name()) : reply.error().message());
    Pause(pause, stop);
    pause = std::min(pause * 2, kLongestDoubtPause);
  }
  return std::nullopt;
}

}  // namespace

// One run of the state machine on the source.
class Source::Attempt {
 public:
  Attempt(Source& source, const std::string& workload, Peer& peer, const SourceEvents& events,
          const std::stop_token& stop)
      : source_(source), peer_(peer), events_(events), stop_(stop), started_ns_(RealtimeNs()) {
    report_.set_workload(workload);
    report_.set_source(source.settings_.host_name);
    report_.set_destination(peer.name());
    report_.set_mode("stop");
  }

  void Run() {
    base::Status prepared = Begin();
    if (prepared) prepared = MoveUntilPrepared();
    if (!prepared) {
      GiveUp(prepared.error());
      return;
    }
    Decide();
  }

 private:
  const std::string& id() const { return report_.migration_id(); }
  fs::path Images() const { return source_.settings_.DirectoryOf(id()) / "images"; }
  fs::path Work() const { return source_.settings_.DirectoryOf(id()) / "work"; }

  void Tell(std::string_view message, uint64_t done = 0, uint64_t total = 0) {
    v1::Progress progress;
    progress.set_migration_id(id());
    progress.set_state(std::string(ToString(journal_ ? journal_->state() : State::kOffered)));
    progress.set_message(std::string(message));
    progress.set_bytes_done(done);
    progress.set_bytes_total(total);
    events_.progress(progress);
  }

  // Everything that can be found out, asked or made while the workload runs.
  base::Status Begin() {
    Tell("looking at the workload");
    WAFT_ASSIGN(std::string new_id, NewMigrationId());
    report_.set_migration_id(std::move(new_id));
    WAFT_ASSIGN(claim_, source_.claims_.Take(report_.workload()));
    WAFT_ASSIGN(container_, source_.runc_.Inspect(report_.workload()));
    if (container_.state != "running") {
      return Fail(ErrorCode::kBadArgument,
                  fmt::format("'{}' is {}: only a running container can be moved", container_.id,
                              container_.state));
    }
    WAFT_ASSIGN(const engine::Bundle bundle, engine::Runc::ReadBundle(container_.bundle));
    WAFT_TRY(CheckBundle(bundle));
    WAFT_ASSIGN(base::Freezer freezer, base::Freezer::ForProcess(container_.pid));
    WAFT_ASSIGN(v1::NetworkIdentity network, netns::Capture(bundle.network_path));
    WAFT_TRY(Examine(bundle, freezer, network));

    Tell(fmt::format("asking {}", peer_.name()));
    WAFT_ASSIGN(offset_, EstimateOffset(peer_));
    report_.set_clock_offset_ms(NsToMs(offset_.offset_ns));
    report_.set_clock_error_ms(NsToMs(offset_.error_ns));
    WAFT_TRY(AskPreflight());

    v1::JournalRecord::Begin begin;
    begin.set_migration_id(id());
    begin.set_role(std::string(ToString(Role::kSource)));
    begin.set_workload(container_.id);
    begin.set_bundle(container_.bundle);
    begin.set_peer(peer_.name());
    begin.set_freezer(freezer.directory());
    *begin.mutable_network() = network;
    begin.set_directory(source_.settings_.DirectoryOf(id()));
    WAFT_ASSIGN(journal_, Journal::Create(source_.settings_.journals, begin));

    WAFT_ASSIGN(copy_, SourceCopy::Open(source_.runc_, container_.id, std::move(freezer),
                                        std::move(network)));
    WAFT_ASSIGN(images_, base::TmpfsMount::Create(Images(), spec_.image_bytes()));
    WAFT_ASSIGN(relay_, criu::Relay::Start(Work(), source_.settings_.programs,
                                           [](const criu::Notification&) {}));

    Tell(fmt::format("preparing {}", peer_.name()));
    WAFT_ASSIGN(session_, peer_.OpenSession());
    v1::Prepare prepare;
    prepare.set_migration_id(id());
    prepare.set_source(source_.settings_.host_name);
    *prepare.mutable_workload() = spec_;
    WAFT_ASSIGN(const v1::Prepared prepared, session_->Prepare(prepare));
    WAFT_ASSIGN(const transfer::Token token, transfer::ParseToken(prepared.token()));
    WAFT_ASSIGN(sender_, transfer::ImageSender::Connect(
                             peer_.address(), static_cast<uint16_t>(prepared.data_port()),
                             peer_.host(), source_.tls_, id(), token, kDataTimeout));
    return {};
  }

  base::Status CheckBundle(const engine::Bundle& bundle) const {
    std::string why;
    if (bundle.terminal) why = "it has a terminal: start it with process.terminal false";
    if (!bundle.has_pid_namespace) why = "it shares the host's pid namespace";
    if (!bundle.has_network_namespace) {
      why = "it shares the host's network: give it a network namespace with a path";
    }
    if (why.empty()) return {};
    return Fail(ErrorCode::kUnsupported,
                fmt::format("'{}' cannot be moved: {}", container_.id, why));
  }

  base::Status Examine(const engine::Bundle& bundle, const base::Freezer& freezer,
                       const v1::NetworkIdentity& network) {
    WAFT_ASSIGN(const std::vector<pid_t> pids, freezer.Processes());
    WAFT_ASSIGN(const checkpoint::Examination found,
                checkpoint::Examine(container_.pid, pids,
                                    {.rootfs = bundle.rootfs, .binds = bundle.binds}));
    if (!found.refusals.empty()) {
      return Fail(ErrorCode::kUnsupported, fmt::format("'{}' cannot be moved: {}", container_.id,
                                                       fmt::join(found.refusals, "; ")));
    }
    spec_.set_id(container_.id);
    spec_.set_bundle(container_.bundle);
    spec_.set_memory_bytes(found.memory_bytes);
    spec_.set_image_bytes(found.image_bytes);
    for (const v1::FileFact& file : found.files) *spec_.add_files() = file;
    v1::FileFact config;
    config.set_path(container_.bundle / "config.json");
    config.set_mode(S_IFREG | 0644);
    WAFT_ASSIGN(std::string digest, base::Sha256File(config.path()));
    config.set_sha256(std::move(digest));
    *spec_.mutable_network() = network;
    // The bundle's own mode is of no importance to the workload, its content is.
    *spec_.add_files() = config;
    return {};
  }

  base::Status AskPreflight() {
    v1::PreflightRequest request;
    request.set_source(source_.settings_.host_name);
    WAFT_ASSIGN(*request.mutable_facts(), restore::OwnFacts());
    *request.mutable_workload() = spec_;
    WAFT_ASSIGN(const v1::PreflightReply reply, peer_.Preflight(request));
    std::vector<std::string> refusals(reply.refusals().begin(), reply.refusals().end());
    // The same questions to ourselves: what cannot be dumped here need not be welcome there.
    for (const std::vector<std::string>& own :
         {restore::FactObjections(request.facts()),
          restore::RoomObjections(spec_, source_.settings_.image_room_bytes)}) {
      for (const std::string& objection : own) refusals.push_back("at the source: " + objection);
    }
    if (refusals.empty()) return {};
    return Fail(ErrorCode::kRollBack, fmt::format("'{}' cannot be moved to {}: {}", container_.id,
                                                  peer_.name(), fmt::join(refusals, "; ")));
  }

  // The downtime begins here. Up to PREPARED the migration is ours to call off.
  base::Status MoveUntilPrepared() {
    Tell("freezing");
    WAFT_TRY(journal_->Advance(State::kFrozen));
    frozen_ = true;
    freeze_ns_ = RealtimeNs();
    report_.set_preparation_ms(NsToMs(freeze_ns_ - started_ns_));
    WAFT_TRY(copy_->Hold());
    const int64_t held_ns = RealtimeNs();
    WAFT_TRY(base::FaultPoint("source-frozen"));

    Tell("dumping");
    WAFT_ASSIGN(
        dump_,
        checkpoint::Dump(source_.runc_.CheckpointCommand(container_.id, Images(), Work()), *relay_,
                         copy_->freezer(), Images(), Work(), DumpTimeout(spec_.image_bytes())));
    const int64_t dumped_ns = RealtimeNs();

    WAFT_ASSIGN(const transfer::SendSummary sent,
                sender_->Send(Images(), [this](uint64_t done, uint64_t total) {
                  Tell("sending", done, total);
                }));
    sent_ns_ = RealtimeNs();

    v1::Phases& phases = *report_.mutable_phases();
    phases.set_freeze_ms(NsToMs(held_ns - freeze_ns_));
    phases.set_dump_ms(NsToMs(dumped_ns - held_ns));
    phases.set_transfer_ms(NsToMs(sent_ns_ - dumped_ns));
    v1::MemoryCost& memory = *report_.mutable_memory();
    memory.set_pages_total(dump_.pages);
    memory.set_pages_sent(dump_.pages);
    memory.set_bytes_wire(sent.bytes_wire);

    if (stop_.stop_requested()) return Fail(ErrorCode::kRollBack, "waftd is being stopped");
    return journal_->Advance(State::kPrepared);
  }

  // From here on only the destination's word counts.
  void Decide() {
    base::LogIfError(base::FaultPoint("source-prepared"), "at PREPARED");
    Tell(fmt::format("{} restores", peer_.name()));
    v1::Handover handover;
    handover.set_files(dump_.files);
    handover.set_bytes(dump_.bytes);
    const base::Result<v1::SessionReply> reply =
        session_->Handover(handover, [this] { Tell(fmt::format("{} is ready", peer_.name())); });
    if (reply && reply->has_committed()) return Commit(reply->committed());
    if (reply) return Abort(reply->aborted().reason());

    const std::string lost = reply.error().message();
    base::LogIfError(journal_->Advance(State::kInDoubt, lost), "journal the doubt");
    base::LogWarning("{}: in doubt: {}", id(), lost);
    const base::Deadline reported = base::Deadline::After(kDoubtReported);
    const std::optional<v1::OutcomeReply> outcome =
        AskOutcome(peer_, id(), stop_, [&](const std::string& why) {
          Tell(fmt::format("in doubt, asking {}: {}", peer_.name(), why));
          if (reported.Passed() && !told_) {
            Finish(v1::IN_DOUBT,
                   fmt::format("lost {} after PREPARED ({}); the workload stays frozen "
                               "here until {} says what it decided",
                               peer_.name(), lost, peer_.name()));
          }
        });
    if (!outcome) {
      Finish(v1::IN_DOUBT,
             "waftd was stopped while in doubt; it goes on asking when started again");
    } else if (outcome->decision() == v1::OutcomeReply::COMMIT) {
      Commit(outcome->committed());
    } else {
      Abort(outcome->reason());
    }
  }

  void Commit(const v1::Committed& committed) {
    base::LogIfError(journal_->Advance(State::kCommitted), "journal COMMIT");
    const int64_t downtime_ns = committed.resumed_ns() - offset_.offset_ns - freeze_ns_;
    report_.set_downtime_ms(NsToMs(downtime_ns));
    v1::Phases& phases = *report_.mutable_phases();
    phases.set_restore_ms(NsToMs(committed.ready_ns() - committed.restore_started_ns()));
    // From the last byte sent to the start of the restore, and from READY to the resume.
    phases.set_handover_ms(NsToMs(committed.restore_started_ns() - offset_.offset_ns - sent_ns_ +
                                  committed.resumed_ns() - committed.ready_ns()));
    Tell("removing the copy here");
    const base::Status released = copy_->Release();
    if (!released) {
      // It stays frozen and cut; recovery repeats the release when waftd starts again.
      Finish(v1::COMPLETED, fmt::format("runs at {}, but its copy here could not be removed: {}",
                                        peer_.name(), released.error().message()));
      return;
    }
    CleanUp();
    base::LogIfError(journal_->Advance(State::kFinished), "journal the end");
    Finish(v1::COMPLETED, std::nullopt);
  }

  void Abort(const std::string& reason) {
    base::LogIfError(journal_->Advance(State::kAborted, reason), "journal ABORT");
    RollBack(fmt::format("{}: {}", peer_.name(), reason));
  }

  // Something failed while the decision was ours.
  void GiveUp(const base::Error& error) {
    sender_.reset();
    session_.reset();
    if (!journal_) {
      Finish(v1::FAILED, error.message());
      return;
    }
    const base::Status aborted = journal_->Advance(State::kAborted, error.message());
    base::LogIfError(aborted, "journal ABORT");
    RollBack(error.message());
  }

  void RollBack(const std::string& reason) {
    if (frozen_) {
      // A CRIU whose runc was killed still holds the tasks, and would freeze them again at its end.
      base::Status resumed = AwaitOrphans(source_.settings_.DirectoryOf(id()), kOrphanTimeout);
      if (resumed) resumed = copy_->Resume();
      if (!resumed) {
        // The journal stays open: recovery tries again when waftd starts.
        Finish(v1::ROLLED_BACK, fmt::format("{}; and it could not be resumed: {}; restart waftd",
                                            reason, resumed.error().message()));
        return;
      }
    }
    CleanUp();
    base::LogIfError(journal_->Advance(State::kFinished), "journal the end");
    Finish(frozen_ ? v1::ROLLED_BACK : v1::FAILED, reason);
  }

  void CleanUp() {
    sender_.reset();
    session_.reset();
    relay_.reset();
    images_.reset();
    base::LogIfError(RemoveRunDirectory(source_.settings_.DirectoryOf(id())),
                     "remove the migration's directory");
  }

  // Tells the caller, once.
  void Finish(v1::Outcome outcome, const std::optional<std::string>& error) {
    base::LogInfo("{}: '{}' to {}: {}{}", id(), report_.workload(), peer_.name(),
                  v1::Outcome_Name(outcome), error ? ": " + *error : "");
    if (std::exchange(told_, true)) return;
    report_.set_outcome(outcome);
    if (error) report_.set_error(*error);
    report_.set_total_ms(NsToMs(RealtimeNs() - started_ns_));
    events_.report(report_);
  }

  Source& source_;
  Peer& peer_;
  const SourceEvents& events_;
  const std::stop_token& stop_;
  const int64_t started_ns_;
  v1::Report report_;
  std::optional<Claims::Claim> claim_;
  engine::Container container_;
  v1::WorkloadSpec spec_;
  ClockOffset offset_;
  std::unique_ptr<Journal> journal_;
  std::optional<SourceCopy> copy_;
  std::optional<base::TmpfsMount> images_;
  std::unique_ptr<criu::Relay> relay_;
  std::unique_ptr<PeerSession> session_;
  std::optional<transfer::ImageSender> sender_;
  checkpoint::DumpResult dump_;
  bool frozen_ = false;
  int64_t freeze_ns_ = 0;
  int64_t sent_ns_ = 0;
  bool told_ = false;
};

void Source::Run(const std::string& workload, Peer& peer, const SourceEvents& events,
                 const std::stop_token& stop) {
  Attempt(*this, workload, peer, events, stop).Run();
}

base::Status Source::Recover(Journal& journal, Peer& peer, const std::stop_token& stop) {
  const v1::JournalRecord::Begin& begin = journal.begin();
  if (journal.state() == State::kFinished) return {};
  WAFT_ASSIGN(const Claims::Claim claim, claims_.Take(begin.workload()));
  base::LogInfo("{}: recovering '{}' from {}", begin.migration_id(), begin.workload(),
                ToString(journal.state()));
  WAFT_TRY(AwaitOrphans(begin.directory(), kOrphanTimeout));

  const bool was_frozen = journal.Find(State::kFrozen).has_value();
  if (MayAbortAlone(Role::kSource, journal.state())) {
    WAFT_TRY(journal.Advance(State::kAborted, "waftd was restarted"));
  }
  if (!IsDecided(journal.state())) {
    const std::optional<v1::OutcomeReply> outcome =
        AskOutcome(peer, begin.migration_id(), stop, [](const std::string&) {});
    if (!outcome) return {};
    const bool commit = outcome->decision() == v1::OutcomeReply::COMMIT;
    WAFT_TRY(journal.Advance(commit ? State::kCommitted : State::kAborted, outcome->reason()));
  }

  base::Result<SourceCopy> copy = SourceCopy::Open(
      runc_, begin.workload(), base::Freezer::AtPath(begin.freezer()), begin.network());
  if (journal.state() == State::kCommitted) {
    // With its network namespace gone already there is no link left to cut.
    WAFT_TRY(copy ? copy->Release() : runc_.Delete(begin.workload()));
  } else if (was_frozen) {
    if (!copy) return std::unexpected(copy.error());
    WAFT_TRY(copy->Resume());
  }
  WAFT_TRY(RemoveRunDirectory(begin.directory()));
  return journal.Advance(State::kFinished);
}

}  // namespace waft::migration
