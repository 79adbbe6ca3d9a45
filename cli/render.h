#pragma once

#include <chrono>
#include <cstdint>
#include <ostream>
#include <string>
#include <string_view>

#include "api/control.pb.h"
#include "api/report.pb.h"

// What people and scripts see. Texts from waftd may come from a workload or from another host, so
// every one is made Printable() before it reaches a terminal. JSON carries them unchanged.
namespace waft::cli {

// `text` with control characters (escape sequences, line ends) replaced by '?'.
std::string Printable(std::string_view text);

std::string HumanBytes(uint64_t bytes);    // "0 B", "1.5 KiB", "512.0 MiB"
std::string HumanMs(double milliseconds);  // "0.21 ms", "48.3 ms", "1.25 s", "2 min 5 s"

std::string WorkloadsTable(const v1::ListWorkloadsReply& reply);
std::string WorkloadsJson(const v1::ListWorkloadsReply& reply);

// `now_ms` is CLOCK_REALTIME in milliseconds: the table shows how long ago things were.
std::string MigrationsTable(const v1::ListMigrationsReply& reply, int64_t now_ms);
std::string MigrationsJson(const v1::ListMigrationsReply& reply);

// How a migration ended, in a few lines: outcome, costs; after a failure where the workload runs
// now and what to do.
std::string ReportText(const v1::Report& report);

// Shows a migration's progress: on a terminal one line redrawn in place, elsewhere one plain line
// for each change of state. Calls must not overlap.
class ProgressView {
 public:
  // `terminal_columns` is the width of the terminal behind `out`; 0 if it is none.
  ProgressView(std::ostream& out, int terminal_columns, std::string_view workload);
  void Show(const v1::Progress& progress);
  void Tick();  // draws the elapsed time anew
  // Clears the line: what comes next starts at the left margin.
  void Finish();

 private:
  void Draw();
  double ElapsedSeconds() const;

  std::ostream& out_;
  const int terminal_columns_;
  const std::string workload_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  v1::Progress last_;
};

}  // namespace waft::cli
