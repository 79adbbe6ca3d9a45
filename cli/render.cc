#include "cli/render.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "api/report_json.h"

namespace waft::cli {
namespace {

using Json = nlohmann::ordered_json;

// Columns a terminal needs for UTF-8 `text`, taking every code point as one.
size_t Columns(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  }));
}

// At most `columns` of `text`, cut between code points.
std::string_view Cut(std::string_view text, size_t columns) {
  size_t end = 0;
  for (size_t used = 0; end < text.size(); ++end) {
    const bool starts = (static_cast<unsigned char>(text[end]) & 0xc0) != 0x80;
    if (starts && used++ == columns) break;
  }
  return text.substr(0, end);
}

struct Column {
  std::string_view title;
  bool right = false;  // numbers line up at their right edge
};

std::string Table(const std::vector<Column>& columns,
                  const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  widths.reserve(columns.size());
  for (const Column& column : columns) widths.push_back(column.title.size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], Columns(row[i]));
  }
  std::string text;
  const auto add_row = [&](const auto& cells, auto to_text) {
    std::string line;
    for (size_t i = 0; i < columns.size(); ++i) {
      const std::string cell(to_text(cells[i]));
      const std::string padding(widths[i] - Columns(cell), ' ');
      line += columns[i].right ? padding + cell : cell + padding;
      line += "  ";
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  };
  add_row(columns, [](const Column& column) { return column.title; });
  for (const auto& row : rows) add_row(row, [](const std::string& cell) { return cell; });
  return text;
}

std::string Ago(int64_t then_ms, int64_t now_ms) {
  const int64_t seconds = std::max<int64_t>(now_ms - then_ms, 0) / 1000;
  if (seconds < 60) return fmt::format("{} s ago", seconds);
  if (seconds < 3600) return fmt::format("{} min ago", seconds / 60);
  if (seconds < int64_t{48} * 3600) return fmt::format("{} h ago", seconds / 3600);
  return fmt::format("{} days ago", seconds / 86400);
}

// The JSON may hold what a workload named itself; bytes that are no UTF-8 are replaced, not fatal.
std::string Dump(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

void AddLine(std::string& text, std::string_view name, std::string_view value) {
  text += fmt::format("  {:<12}{}\n", name, value);
}

std::string PhasesText(const v1::Phases& phases) {
  return fmt::format("freeze {}, dump {}, transfer {}, restore {}, handover {}",
                     HumanMs(phases.freeze_ms()), HumanMs(phases.dump_ms()),
                     HumanMs(phases.transfer_ms()), HumanMs(phases.restore_ms()),
                     HumanMs(phases.handover_ms()));
}

std::string MemoryText(const v1::MemoryCost& memory) {
  std::string text = fmt::format("{} of {} pages sent", memory.pages_sent(), memory.pages_total());
  if (memory.has_pages_resent()) text += fmt::format(", {} again", memory.pages_resent());
  if (memory.has_pages_fetched()) text += fmt::format(", {} on demand", memory.pages_fetched());
  return text + fmt::format("; {} on the wire", HumanBytes(memory.bytes_wire()));
}

}  // namespace

std::string Printable(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return out;
}

std::string HumanBytes(uint64_t bytes) {
  constexpr std::array kUnits{"KiB", "MiB", "GiB", "TiB", "PiB"};
  if (bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  // 1023.95 would be printed as 1024.0.
  for (; value >= 1023.95 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string HumanMs(double milliseconds) {
  if (milliseconds < 9.995) return fmt::format("{:.2f} ms", milliseconds);
  if (milliseconds < 999.95) return fmt::format("{:.1f} ms", milliseconds);
  if (milliseconds < 59'995) return fmt::format("{:.2f} s", milliseconds / 1000);
  const auto seconds = std::llround(milliseconds / 1000);
  return fmt::format("{} min {} s", seconds / 60, seconds % 60);
}

std::string WorkloadsTable(const v1::ListWorkloadsReply& reply) {
  std::vector<std::vector<std::string>> rows;
  for (const v1::Workload& workload : reply.workloads()) {
    rows.push_back(
        {Printable(workload.id()), Printable(workload.state()),
         workload.pid() == 0 ? "-" : std::to_string(workload.pid()),
         std::to_string(workload.tasks()),
         fmt::format("{:.1f} MiB", static_cast<double>(workload.memory_bytes()) / (1 << 20)),
         Printable(workload.bundle())});
  }
  return Table({{"ID"}, {"STATE"}, {"PID", true}, {"TASKS", true}, {"MEMORY", true}, {"BUNDLE"}},
               rows);
}

std::string WorkloadsJson(const v1::ListWorkloadsReply& reply) {
  Json json = {{"schema", "waft.workloads/1"}, {"workloads", Json::array()}};
  for (const v1::Workload& workload : reply.workloads()) {
    json["workloads"].push_back({{"id", workload.id()},
                                 {"state", workload.state()},
                                 {"pid", workload.pid()},
                                 {"tasks", workload.tasks()},
                                 {"memory_bytes", workload.memory_bytes()},
                                 {"bundle", workload.bundle()}});
  }
  return Dump(json);
}

std::string MigrationsTable(const v1::ListMigrationsReply& reply, int64_t now_ms) {
  std::vector<std::vector<std::string>> rows;
  for (const v1::Migration& migration : reply.migrations()) {
    rows.push_back({Printable(migration.id()), Printable(migration.workload()),
                    Printable(migration.role()), Printable(migration.peer()),
                    Printable(migration.state()), Ago(migration.started_ms(), now_ms),
                    Ago(migration.changed_ms(), now_ms), Printable(migration.detail())});
  }
  return Table({{"MIGRATION"},
                {"WORKLOAD"},
                {"THIS HOST"},
                {"OTHER HOST"},
                {"STATE"},
                {"STARTED"},
                {"CHANGED"},
                {"DETAIL"}},
               rows);
}

std::string MigrationsJson(const v1::ListMigrationsReply& reply) {
  Json json = {{"schema", "waft.migrations/1"}, {"migrations", Json::array()}};
  for (const v1::Migration& migration : reply.migrations()) {
    json["migrations"].push_back({{"id", migration.id()},
                                  {"workload", migration.workload()},
                                  {"role", migration.role()},
                                  {"peer", migration.peer()},
                                  {"state", migration.state()},
                                  {"detail", migration.detail()},
                                  {"started_ms", migration.started_ms()},
                                  {"changed_ms", migration.changed_ms()}});
  }
  return Dump(json);
}

std::string ReportText(const v1::Report& report) {
  const std::string workload = Printable(report.workload());
  const std::string source = Printable(report.source());
  const std::string destination = Printable(report.destination());
  const std::string error = report.has_error() ? Printable(report.error()) : "no reason given";
  std::string text;
  switch (report.outcome()) {
    case v1::COMPLETED:
      text = fmt::format("{} now runs on {}.\n", workload, destination);
      break;
    case v1::ROLLED_BACK:
      text = fmt::format("{} was not moved: {}\n", workload, error);
      AddLine(text, "runs on",
              fmt::format("{} (this host), as before: it was rolled back", source));
      AddLine(text, "what to do", "mend what the message names, then migrate again");
      break;
    case v1::FAILED:
      text = fmt::format("{} was not moved: {}\n", workload, error);
      AddLine(text, "runs on",
              fmt::format("{} (this host), untouched, unless the message says that it was lost",
                          source));
      AddLine(text, "what to do",
              "mend what the message names, then migrate again; `waft ps` shows what runs here");
      break;
    case v1::IN_DOUBT:
      text = fmt::format("{} is in doubt: {}\n", workload, error);
      AddLine(text, "runs on",
              fmt::format("{} or nowhere: it stays frozen here until {} says what it decided",
                          destination, destination));
      AddLine(
          text, "what to do",
          fmt::format("see that waftd runs on {} and can be reached; this host goes on asking and "
                      "`waft status` shows the answer. Do not thaw or kill it by hand",
                      destination));
      break;
    default:
      text = fmt::format("waftd reports an outcome that this waft does not know ({}): {}\n",
                         static_cast<int>(report.outcome()), error);
      AddLine(text, "what to do",
              "`waft status` shows where it stands; install the same waft and waftd");
  }
  if (report.has_downtime_ms()) AddLine(text, "downtime", HumanMs(report.downtime_ms()));
  AddLine(text, "total", HumanMs(report.total_ms()));
  if (report.has_phases()) AddLine(text, "phases", PhasesText(report.phases()));
  if (report.has_memory()) AddLine(text, "memory", MemoryText(report.memory()));
  if (report.has_risk_window_ms()) AddLine(text, "at risk", HumanMs(report.risk_window_ms()));
  if (!report.migration_id().empty()) {
    AddLine(text, "migration", Printable(report.migration_id()));
  }
  return text;
}

ProgressView::ProgressView(std::ostream& out, int terminal_columns, std::string_view workload)
    : out_(out), terminal_columns_(terminal_columns), workload_(Printable(workload)) {
  last_.set_state("waiting");
  last_.set_message("for waftd");
}

double ProgressView::ElapsedSeconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

void ProgressView::Show(const v1::Progress& progress) {
  const bool changed = progress.state() != last_.state();
  last_ = progress;
  if (terminal_columns_ > 0) {
    Draw();
  } else if (changed) {
    out_ << fmt::format("{:6.1f} s  {}: {}\n", ElapsedSeconds(), Printable(progress.state()),
                        Printable(progress.message()))
         << std::flush;
  }
}

void ProgressView::Tick() {
  if (terminal_columns_ > 0) Draw();
}

void ProgressView::Draw() {
  std::string bytes;
  if (last_.bytes_total() > 0) {
    // A total is an estimate: more done than expected is still 100 %.
    const double part = std::min(
        1.0, static_cast<double>(last_.bytes_done()) / static_cast<double>(last_.bytes_total()));
    bytes = fmt::format("  {} of {} ({:.0f}%)", HumanBytes(last_.bytes_done()),
                        HumanBytes(last_.bytes_total()), 100 * part);
  }
  // The message gives way when the line is too long; figures and time stay.
  const std::string head = fmt::format("{}: {}", workload_, Printable(last_.state()));
  const std::string tail = fmt::format("{}  {:.1f} s", bytes, ElapsedSeconds());
  const auto width = static_cast<size_t>(terminal_columns_ - 1);
  const size_t used = Columns(head) + Columns(tail) + 2;
  const std::string message = Printable(last_.message());
  const std::string line =
      fmt::format("{}  {}{}", head, used < width ? Cut(message, width - used) : "", tail);
  out_ << "\r\x1b[K" << Cut(line, width) << std::flush;
}

void ProgressView::Finish() {
  if (terminal_columns_ > 0) out_ << "\r\x1b[K" << std::flush;
}

}  // namespace waft::cli
