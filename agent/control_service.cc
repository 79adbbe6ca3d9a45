#include "agent/control_service.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "agent/peer_client.h"
#include "base/cgroup.h"
#include "base/clock.h"
#include "base/proc.h"
#include "migration/journal.h"

namespace waft::agent {
namespace {

constexpr std::chrono::milliseconds kLookAgain{100};

// From a migration's thread to the request that watches it, which may go away first.
class EventQueue {
 public:
  void Push(v1::MigrateEvent event) {
    const std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
    changed_.notify_one();
  }
  std::optional<v1::MigrateEvent> Pop() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, kLookAgain, [this] { return !events_.empty(); })) {
      return std::nullopt;
    }
    v1::MigrateEvent event = std::move(events_.front());
    events_.pop_front();
    return event;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<v1::MigrateEvent> events_;
};

v1::Report Refusal(const v1::MigrateRequest& request, const std::string& host,
                   const std::string& why) {
  v1::Report report;
  report.set_workload(request.workload());
  report.set_source(host);
  report.set_destination(request.destination());
  report.set_mode(request.mode());
  report.set_outcome(v1::FAILED);
  report.set_error(why);
  return report;
}

// Figures of all tasks of a container; what ends meanwhile is not counted.
void AddFigures(pid_t init, v1::Workload* workload) {
  const base::Result<base::Freezer> cgroup = base::Freezer::ForProcess(init);
  if (!cgroup) return;
  const base::Result<std::vector<pid_t>> pids = cgroup->Processes();
  if (!pids) return;
  for (const pid_t pid : *pids) {
    const base::Result<base::ProcStatus> status = base::ReadProcStatus(pid);
    if (!status) continue;
    workload->set_tasks(workload->tasks() + static_cast<uint32_t>(status->threads));
    workload->set_memory_bytes(workload->memory_bytes() + status->rss_anon_bytes +
                               status->rss_shmem_bytes + status->swap_bytes);
  }
}

}  // namespace

grpc::Status ControlService::ListWorkloads(grpc::ServerContext* /*context*/,
                                           const v1::ListWorkloadsRequest* /*request*/,
                                           v1::ListWorkloadsReply* reply) {
  const base::Result<std::vector<engine::Container>> containers = runc_.List();
  if (!containers) return {grpc::StatusCode::INTERNAL, containers.error().message()};
  for (const engine::Container& container : *containers) {
    v1::Workload* workload = reply->add_workloads();
    workload->set_id(container.id);
    workload->set_state(container.state);
    workload->set_pid(container.pid);
    workload->set_bundle(container.bundle);
    if (container.pid > 0) AddFigures(container.pid, workload);
  }
  return grpc::Status::OK;
}

grpc::Status ControlService::Migrate(grpc::ServerContext* context,
                                     const v1::MigrateRequest* request,
                                     grpc::ServerWriter<v1::MigrateEvent>* writer) {
  const auto refuse = [&](const std::string& why) {
    v1::MigrateEvent event;
    *event.mutable_report() = Refusal(*request, settings_.host_name, why);
    writer->Write(event);
    return grpc::Status::OK;
  };
  if (request->mode() != "stop") {
    return refuse(fmt::format("there is no mode '{}'; the only one is: stop", request->mode()));
  }
  base::Result<std::unique_ptr<migration::Peer>> peer =
      ConnectPeer(request->destination(), credentials_);
  if (!peer) return refuse(peer.error().message());

  auto queue = std::make_shared<EventQueue>();
  const migration::SourceEvents events{
      .progress =
          [queue](const v1::Progress& progress) {
            v1::MigrateEvent event;
            *event.mutable_progress() = progress;
            queue->Push(std::move(event));
          },
      .report =
          [queue](const v1::Report& report) {
            v1::MigrateEvent event;
            *event.mutable_report() = report;
            queue->Push(std::move(event));
          },
  };
  runner_.Start([this, events, workload = request->workload(),
                 peer = std::shared_ptr<migration::Peer>(std::move(*peer))](
                    const std::stop_token& stop) { source_.Run(workload, *peer, events, stop); });

  while (!context->IsCancelled() && !stopping_) {
    const std::optional<v1::MigrateEvent> event = queue->Pop();
    if (!event) continue;
    if (!writer->Write(*event) || event->has_report()) return grpc::Status::OK;
  }
  return {grpc::StatusCode::ABORTED,
          "waftd no longer reports on this migration: see `waft status`"};
}

grpc::Status ControlService::ListMigrations(grpc::ServerContext* /*context*/,
                                            const v1::ListMigrationsRequest* /*request*/,
                                            v1::ListMigrationsReply* reply) {
  const auto ms = [](int64_t ns) { return ns / 1'000'000; };
  for (const auto& journal : migration::Journal::OpenAll(settings_.journals)) {
    const v1::JournalRecord last = journal->Last();
    v1::Migration* migration = reply->add_migrations();
    migration->set_id(journal->begin().migration_id());
    migration->set_workload(journal->begin().workload());
    migration->set_role(std::string(migration::ToString(journal->role())));
    migration->set_peer(journal->begin().peer());
    migration->set_state(last.state());
    migration->set_started_ms(ms(journal->First().realtime_ns()));
    migration->set_changed_ms(ms(last.realtime_ns()));
    // Of a finished migration one wants to know which way it ended.
    const auto aborted = journal->Find(migration::State::kAborted);
    migration->set_detail(aborted ? "aborted: " + aborted->detail()
                          : journal->Find(migration::State::kCommitted) ? "committed"
                                                                        : last.detail());
  }
  std::sort(reply->mutable_migrations()->begin(), reply->mutable_migrations()->end(),
            [](const v1::Migration& a, const v1::Migration& b) {
              return a.started_ms() > b.started_ms();
            });
  return grpc::Status::OK;
}

}  // namespace waft::agent
