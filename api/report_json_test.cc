#include "api/report_json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace waft::api {
namespace {

TEST(ReportJsonTest, WhatAModeDoesNotHaveIsNull) {
  v1::Report report;
  report.set_workload("web");
  report.set_outcome(v1::FAILED);
  report.set_error("no room");
  const auto json = nlohmann::json::parse(ReportToJson(report));
  EXPECT_EQ(json["schema"], "waft.migration-report/1");
  EXPECT_EQ(json["outcome"], "failed");
  EXPECT_EQ(json["error"], "no room");
  for (const char* field : {"downtime_ms", "preparation_ms", "resume_ms", "risk_window_ms",
                            "phases", "memory", "faults"}) {
    ASSERT_TRUE(json.contains(field)) << field;
    EXPECT_TRUE(json[field].is_null()) << field;
  }
  EXPECT_TRUE(json["rounds"].empty());
}

TEST(ReportJsonTest, CarriesEveryFigure) {
  v1::Report report;
  report.set_outcome(v1::COMPLETED);
  report.set_downtime_ms(12.5);
  report.mutable_phases()->set_dump_ms(3.25);
  report.mutable_memory()->set_pages_total(7);
  report.mutable_memory()->set_pages_resent(0);
  const auto json = nlohmann::json::parse(ReportToJson(report));
  EXPECT_TRUE(json["error"].is_null());
  EXPECT_EQ(json["downtime_ms"], 12.5);
  EXPECT_EQ(json["phases"]["dump_ms"], 3.25);
  EXPECT_EQ(json["memory"]["pages_total"], 7);
  EXPECT_EQ(json["memory"]["pages_resent"], 0);
  EXPECT_TRUE(json["memory"]["pages_fetched"].is_null());
}

}  // namespace
}  // namespace waft::api
