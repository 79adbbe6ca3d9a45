#include "migration/destination.h"

#include <fmt/format.h>

#include <array>
#include <chrono>
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
#include "migration/run_directory.h"
#include "netns/identity.h"
#include "netns/prepared_network.h"
#include "restore/admission.h"
#include "restore/restore.h"

namespace waft::migration {
namespace fs = std::filesystem;
using base::ErrorCode;
using base::Fail;
namespace {

// The source sends Handover after our Done, so this is only for a source that does not keep to
// that.
constexpr std::chrono::seconds kReceiveTimeout{30};
constexpr std::chrono::seconds kKillTimeout{20};
constexpr std::chrono::seconds kOrphanTimeout{60};
// Repeats of the announcement, in case the first is lost: 50 to 550 ms after it, as QEMU does.
constexpr std::array kAnnouncePauses{std::chrono::milliseconds(50), std::chrono::milliseconds(100),
                                     std::chrono::milliseconds(150),
                                     std::chrono::milliseconds(250)};

// Removes every trace of a workload that was not committed here.
base::Status RemoveWorkload(const engine::Runc& runc, const std::string& id,
                            const v1::NetworkIdentity& network) {
  if (const base::Result<engine::Container> container = runc.Inspect(id);
      container && container->pid > 0) {
    // Frozen tasks are killed where they stand: not one instruction of theirs runs here.
    if (base::Result<base::Freezer> freezer = base::Freezer::ForProcess(container->pid); freezer) {
      WAFT_TRY(freezer->KillAll(kKillTimeout));
    }
  }
  WAFT_TRY(runc.Delete(id));
  return netns::Destroy(network);
}

}  // namespace

struct Incoming::Parts {
  std::string id;
  v1::WorkloadSpec workload;
  fs::path directory;
  std::optional<Claims::Claim> claim;
  std::unique_ptr<Journal> journal;
  std::optional<base::TmpfsMount> images;
  std::optional<netns::PreparedNetwork> network;
  std::shared_ptr<transfer::Reception> reception;
};

v1::PreflightReply Destination::Preflight(const v1::PreflightRequest& request) {
  const v1::WorkloadSpec& workload = request.workload();
  v1::PreflightReply reply;
  const auto add = [&reply](const std::vector<std::string>& objections) {
    for (const std::string& objection : objections) reply.add_refusals(objection);
  };
  for (const base::Status& named :
       {engine::CheckId(workload.id()), engine::CheckPath(workload.bundle())}) {
    if (!named) add({named.error().message()});
  }
  if (reply.refusals_size() > 0) return reply;
  if (runc_.Exists(workload.id())) {
    add({fmt::format("there is a container '{}' here already: remove it or rename one of them",
                     workload.id())});
  }
  add(restore::FactObjections(request.facts()));
  add(restore::FileObjections(workload));
  add(restore::RoomObjections(workload, settings_.image_room_bytes));
  add(netns::Objections(workload.network()));
  base::LogInfo("preflight of '{}' from {}: {} refusals", workload.id(), request.source(),
                reply.refusals_size());
  return reply;
}

base::Result<std::unique_ptr<Incoming>> Destination::Prepare(const v1::Prepare& request,
                                                             v1::Prepared* reply) {
  const v1::WorkloadSpec& workload = request.workload();
  WAFT_TRY(transfer::CheckMigrationId(request.migration_id()));
  WAFT_TRY(engine::CheckId(workload.id()));
  WAFT_TRY(engine::CheckPath(workload.bundle()));
  WAFT_TRY(netns::Validate(workload.network()));
  if (workload.image_bytes() > settings_.image_room_bytes) {
    return Fail(ErrorCode::kRollBack, "the image set is larger than this host's --image-room-mib");
  }
  auto parts = std::make_unique<Incoming::Parts>();
  parts->id = request.migration_id();
  parts->workload = workload;
  parts->directory = settings_.DirectoryOf(parts->id);
  WAFT_ASSIGN(parts->claim, claims_.Take(workload.id()));
  // Asked again now that the id is claimed: an abort would otherwise remove somebody else's.
  if (runc_.Exists(workload.id())) {
    return Fail(ErrorCode::kRollBack, fmt::format("there is a container '{}'", workload.id()));
  }
  std::error_code unknown;  // a peer's path may be too long to be looked at
  if (fs::exists(workload.network().path(), unknown)) {
    return Fail(ErrorCode::kRollBack, fmt::format("{} exists", workload.network().path()));
  }

  v1::JournalRecord::Begin begin;
  begin.set_migration_id(parts->id);
  begin.set_role(std::string(ToString(Role::kDestination)));
  begin.set_workload(workload.id());
  begin.set_bundle(workload.bundle());
  begin.set_peer(request.source());
  *begin.mutable_network() = workload.network();
  begin.set_directory(parts->directory);
  WAFT_ASSIGN(parts->journal, Journal::Create(settings_.journals, begin));
  {
    const std::lock_guard lock(mutex_);
    undecided_.insert(parts->id);
  }
  // From here on the destructor aborts.
  std::unique_ptr<Incoming> incoming(new Incoming(*this, std::move(parts)));
  Incoming::Parts& made = *incoming->parts_;
  WAFT_ASSIGN(made.images,
              base::TmpfsMount::Create(made.directory / "images", workload.image_bytes()));
  std::error_code error;
  fs::create_directories(made.directory / "work", error);
  WAFT_ASSIGN(made.network, netns::PreparedNetwork::Prepare(workload.network()));
  WAFT_ASSIGN(const transfer::Token token, transfer::NewToken());
  WAFT_ASSIGN(made.reception,
              listener_.Expect(made.id, token, made.images->path(), workload.image_bytes()));
  reply->set_data_port(listener_.port());
  reply->set_token(token.data(), token.size());
  return incoming;
}

base::Result<v1::OutcomeReply> Destination::Outcome(const std::string& migration_id) {
  WAFT_TRY(transfer::CheckMigrationId(migration_id));
  // Held throughout, so that an id cannot be prepared while it is being decided.
  const std::lock_guard lock(mutex_);
  v1::OutcomeReply reply;
  if (undecided_.contains(migration_id)) return reply;
  const fs::path path = Journal::PathOf(settings_.journals, migration_id, Role::kDestination);
  if (!fs::exists(path)) {
    v1::JournalRecord::Begin begin;
    begin.set_migration_id(migration_id);
    begin.set_role(std::string(ToString(Role::kDestination)));
    WAFT_ASSIGN(const std::unique_ptr<Journal> journal, Journal::Create(settings_.journals, begin));
    WAFT_TRY(journal->Advance(State::kAborted, "never heard of it"));
    WAFT_TRY(journal->Advance(State::kFinished));
  }
  WAFT_ASSIGN(const std::unique_ptr<Journal> journal, Journal::Open(path));
  if (const auto committed = journal->Find(State::kCommitted)) {
    reply.set_decision(v1::OutcomeReply::COMMIT);
    reply.mutable_committed()->set_restore_started_ns(committed->restore_started_ns());
    reply.mutable_committed()->set_ready_ns(committed->ready_ns());
    reply.mutable_committed()->set_resumed_ns(committed->realtime_ns());
  } else if (const auto aborted = journal->Find(State::kAborted)) {
    reply.set_decision(v1::OutcomeReply::ABORT);
    reply.set_reason(aborted->detail());
  }
  return reply;
}

base::Status Destination::Recover(Journal& journal) {
  const v1::JournalRecord::Begin& begin = journal.begin();
  if (journal.state() == State::kFinished) return {};
  base::LogInfo("{}: recovering '{}' from {}", begin.migration_id(), begin.workload(),
                ToString(journal.state()));
  if (!IsDecided(journal.state())) {
    WAFT_TRY(journal.Advance(State::kAborted, "waftd was restarted here before it had committed"));
  }
  // An id that was only asked about: there never was a workload (see Outcome()).
  if (begin.workload().empty()) return journal.Advance(State::kFinished);
  WAFT_TRY(AwaitOrphans(begin.directory(), kOrphanTimeout));
  if (journal.state() == State::kAborted) {
    WAFT_TRY(RemoveWorkload(runc_, begin.workload(), begin.network()));
  } else {
    WAFT_ASSIGN(const engine::Container container, runc_.Inspect(begin.workload()));
    WAFT_ASSIGN(base::Freezer freezer, base::Freezer::ForProcess(container.pid));
    WAFT_ASSIGN(netns::PreparedNetwork network, netns::PreparedNetwork::Adopt(begin.network()));
    WAFT_TRY(network.Open());
    network.Commit();
    WAFT_TRY(restore::Resume(freezer));
  }
  WAFT_TRY(RemoveRunDirectory(begin.directory()));
  return journal.Advance(State::kFinished);
}

Incoming::Incoming(Destination& destination, std::unique_ptr<Parts> parts)
    : destination_(destination), parts_(std::move(parts)) {}

Incoming::~Incoming() {
  if (!IsDecided(parts_->journal->state())) Abort("the source ended the migration");
}

base::Status Incoming::Complete(const v1::Handover& handover, const std::function<void()>& on_ready,
                                const std::function<void(const v1::Committed&)>& on_committed) {
  const base::Result<v1::Committed> committed = RestoreAndCommit(handover, on_ready);
  if (!committed) {
    Abort(committed.error().message());
    return std::unexpected(committed.error());
  }
  on_committed(*committed);
  parts_->reception.reset();
  parts_->images.reset();
  for (const std::chrono::milliseconds pause : kAnnouncePauses) {
    std::this_thread::sleep_for(pause);
    base::LogIfError(parts_->network->Announce(), "announce");
  }
  base::LogIfError(RemoveRunDirectory(parts_->directory), "remove the migration's directory");
  base::LogIfError(parts_->journal->Advance(State::kFinished), "journal the end");
  return {};
}

base::Result<v1::Committed> Incoming::RestoreAndCommit(const v1::Handover& handover,
                                                       const std::function<void()>& on_ready) {
  WAFT_TRY(base::FaultPoint("destination-prepared"));
  WAFT_ASSIGN(const transfer::ReceiveSummary received,
              parts_->reception->Wait(base::Deadline::After(kReceiveTimeout)));
  if (received.files != handover.files() || received.bytes != handover.bytes()) {
    return Fail(ErrorCode::kDataLoss,
                fmt::format("received {} files of {} bytes, the source dumped {} of {}",
                            received.files, received.bytes, handover.files(), handover.bytes()));
  }
  WAFT_TRY(parts_->journal->Advance(State::kRestoring));
  v1::JournalRecord record;
  record.set_restore_started_ns(base::RealtimeNs());
  const fs::path work = parts_->directory / "work";
  WAFT_ASSIGN(base::Freezer freezer,
              restore::RestoreFrozen(destination_.runc_.RestoreCommand(
                                         parts_->workload.id(), parts_->workload.bundle(),
                                         parts_->images->path(), work),
                                     work, destination_.settings_.programs));
  record.set_ready_ns(base::RealtimeNs());
  WAFT_TRY(parts_->journal->Advance(State::kReady));
  on_ready();
  WAFT_TRY(base::FaultPoint("destination-ready"));

  WAFT_TRY(parts_->journal->Advance(record, State::kCommitted));
  parts_->network->Commit();
  {
    const std::lock_guard lock(destination_.mutex_);
    destination_.undecided_.erase(parts_->id);
  }
  base::LogIfError(base::FaultPoint("destination-committed"), "at COMMIT");
  // From here on nothing may undo it; what goes wrong is told and the workload runs. The gate opens
  // first: what arrives before the tasks run waits in their sockets.
  base::LogIfError(parts_->network->Open(), "open the gate");
  base::LogIfError(restore::Resume(freezer), "resume");
  v1::Committed committed;
  committed.set_restore_started_ns(record.restore_started_ns());
  committed.set_ready_ns(record.ready_ns());
  committed.set_resumed_ns(base::RealtimeNs());
  base::LogInfo("{}: '{}' runs here", parts_->id, parts_->workload.id());
  return committed;
}

void Incoming::Abort(const std::string& reason) {
  Parts& parts = *parts_;
  base::LogWarning("{}: '{}' aborted: {}", parts.id, parts.workload.id(), reason);
  if (parts.reception) parts.reception->Cancel();
  if (const base::Status journalled = parts.journal->Advance(State::kAborted, reason);
      !journalled) {
    // Undecided on disk, so nobody may take it as aborted: recovery decides when waftd starts
    // again.
    base::LogWarning("{}: cannot journal ABORT: {}", parts.id, journalled.error().message());
    return;
  }
  {
    const std::lock_guard lock(destination_.mutex_);
    destination_.undecided_.erase(parts.id);
  }
  parts.reception.reset();
  parts.network.reset();
  // A CRIU whose runc was killed ends by itself.
  base::Status removed = AwaitOrphans(parts.directory, kOrphanTimeout);
  if (removed) {
    removed = RemoveWorkload(destination_.runc_, parts.workload.id(), parts.workload.network());
  }
  parts.images.reset();
  if (removed) removed = RemoveRunDirectory(parts.directory);
  if (!removed) {
    base::LogWarning("{}: not all of it could be removed: {}", parts.id, removed.error().message());
    return;
  }
  base::LogIfError(parts.journal->Advance(State::kFinished), "journal the end");
}

}  // namespace waft::migration
