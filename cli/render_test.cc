#include "cli/render.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

namespace waft::cli {
namespace {

using nlohmann::json;
using testing::ContainsRegex;
using testing::HasSubstr;
using testing::Not;

TEST(RenderTest, BytesAndTimesAreReadable) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes((1 << 20) - 1), "1.0 MiB");
  EXPECT_EQ(HumanBytes(uint64_t{5} << 40), "5.0 TiB");
  EXPECT_EQ(HumanMs(0.214), "0.21 ms");
  EXPECT_EQ(HumanMs(48.26), "48.3 ms");
  EXPECT_EQ(HumanMs(999.99), "1.00 s");
  EXPECT_EQ(HumanMs(125'400), "2 min 5 s");
}

TEST(RenderTest, WorkloadsLineUpUnderTheirTitles) {
  v1::ListWorkloadsReply reply;
  v1::Workload& web = *reply.add_workloads();
  web.set_id("web");
  web.set_state("running");
  web.set_pid(4321);
  web.set_tasks(12);
  web.set_memory_bytes((uint64_t{1} << 30) + (1 << 19));
  web.set_bundle("/srv/web");
  reply.add_workloads()->set_id("a-longer-name");
  reply.mutable_workloads(1)->set_state("stopped");
  EXPECT_EQ(WorkloadsTable(reply),
            "ID             STATE     PID  TASKS      MEMORY  BUNDLE\n"
            "web            running  4321     12  1024.5 MiB  /srv/web\n"
            "a-longer-name  stopped     -      0     0.0 MiB\n");
  const json parsed = json::parse(WorkloadsJson(reply));
  EXPECT_EQ(parsed["schema"], "waft.workloads/1");
  EXPECT_EQ(parsed["workloads"][0]["memory_bytes"], (uint64_t{1} << 30) + (1 << 19));
  EXPECT_EQ(parsed["workloads"][1]["pid"], 0);
}

TEST(RenderTest, NothingIsAnEmptyListNotNull) {
  EXPECT_EQ(json::parse(WorkloadsJson({}))["workloads"], json::array());
  EXPECT_EQ(json::parse(MigrationsJson({}))["migrations"], json::array());
}

TEST(RenderTest, MigrationsSayHowLongAgo) {
  v1::ListMigrationsReply reply;
  v1::Migration& migration = *reply.add_migrations();
  migration.set_id("m1");
  migration.set_workload("web");
  migration.set_role("source");
  migration.set_peer("beta");
  migration.set_state("in-doubt");
  migration.set_detail("beta does not answer");
  migration.set_started_ms(1'000'000);
  migration.set_changed_ms(1'090'000);
  const std::string table = MigrationsTable(reply, 1'100'000);
  EXPECT_THAT(table, HasSubstr("m1         web       source     beta        in-doubt  1 min ago  "
                               "10 s ago  beta does not answer\n"));
  EXPECT_EQ(json::parse(MigrationsJson(reply))["migrations"][0]["changed_ms"], 1'090'000);
}

TEST(RenderTest, NoControlCharacterReachesTheTerminal) {
  v1::ListWorkloadsReply reply;
  reply.add_workloads()->set_bundle("/x\x1b[2J\nfake line\x7f");
  const std::string table = WorkloadsTable(reply);
  EXPECT_THAT(table, HasSubstr("/x?[2J?fake line?\n"));
  EXPECT_THAT(table, Not(HasSubstr("\x1b")));
  v1::Report report;
  report.set_error("bad\x1b[31m");
  EXPECT_THAT(ReportText(report), Not(HasSubstr("\x1b")));
}

v1::Report MadeReport(v1::Outcome outcome) {
  v1::Report report;
  report.set_workload("web");
  report.set_source("alpha");
  report.set_destination("beta");
  report.set_outcome(outcome);
  report.set_total_ms(1320);
  return report;
}

TEST(RenderTest, ACompletedReportTellsTheCosts) {
  v1::Report report = MadeReport(v1::COMPLETED);
  report.set_downtime_ms(48.2);
  report.mutable_phases()->set_dump_ms(20.5);
  report.mutable_memory()->set_pages_total(100);
  report.mutable_memory()->set_pages_sent(60);
  report.mutable_memory()->set_bytes_wire(3 << 20);
  const std::string text = ReportText(report);
  EXPECT_THAT(text, HasSubstr("web now runs on beta.\n"));
  EXPECT_THAT(text, HasSubstr("downtime    48.2 ms\n"));
  EXPECT_THAT(text, HasSubstr("total       1.32 s\n"));
  EXPECT_THAT(text, HasSubstr("dump 20.5 ms"));
  EXPECT_THAT(text, HasSubstr("60 of 100 pages sent; 3.0 MiB on the wire"));
}

TEST(RenderTest, AFailureSaysWhereItRunsAndWhatToDo) {
  v1::Report report = MadeReport(v1::ROLLED_BACK);
  report.set_error("beta has no room");
  const std::string rolled_back = ReportText(report);
  EXPECT_THAT(rolled_back, HasSubstr("web was not moved: beta has no room\n"));
  EXPECT_THAT(rolled_back, HasSubstr("alpha (this host), as before"));
  EXPECT_THAT(rolled_back, HasSubstr("what to do"));
  EXPECT_THAT(rolled_back, Not(HasSubstr("downtime")));

  report.set_outcome(v1::IN_DOUBT);
  const std::string in_doubt = ReportText(report);
  EXPECT_THAT(in_doubt, HasSubstr("stays frozen here until beta says"));
  EXPECT_THAT(in_doubt, HasSubstr("`waft status`"));
}

v1::Progress MadeProgress(const std::string& state, const std::string& message) {
  v1::Progress progress;
  progress.set_state(state);
  progress.set_message(message);
  return progress;
}

TEST(RenderTest, OffATerminalEachStateGetsOneLine) {
  std::ostringstream out;
  ProgressView view(out, 0, "web");
  view.Show(MadeProgress("transfer", "begin"));
  view.Show(MadeProgress("transfer", "more"));
  view.Tick();
  view.Show(MadeProgress("restore", "images"));
  view.Finish();
  EXPECT_THAT(out.str(),
              ContainsRegex("^ +[0-9.]+ s  transfer: begin\n +[0-9.]+ s  restore: images\n$"));
}

TEST(RenderTest, OnATerminalTheLineIsRedrawnAndFits) {
  std::ostringstream out;
  ProgressView view(out, 60, "web");
  v1::Progress progress = MadeProgress("transfer", std::string(200, 'm'));
  progress.set_bytes_done(1 << 20);
  progress.set_bytes_total(4 << 20);
  view.Show(progress);
  const std::string drawn = out.str();
  ASSERT_TRUE(drawn.starts_with("\r\x1b[K"));
  EXPECT_EQ(drawn.size() - 4, 59);
  EXPECT_THAT(drawn, ContainsRegex("web: transfer  m+  1.0 MiB of 4.0 MiB [(]25%[)]  0.[0-9] s$"));
  EXPECT_THAT(drawn, Not(HasSubstr("\n")));
  view.Finish();
  EXPECT_TRUE(out.str().ends_with("\r\x1b[K"));
}

TEST(RenderTest, ANarrowTerminalCutsBetweenCodePoints) {
  std::ostringstream out;
  ProgressView view(out, 8, "w");
  view.Show(MadeProgress("\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9", ""));
  EXPECT_EQ(out.str(), "\r\x1b[Kw: \xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9");
}

}  // namespace
}  // namespace waft::cli
