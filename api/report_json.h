#pragma once

#include <string>

#include "api/report.pb.h"

namespace waft::api {

// The report as the JSON object that docs/report.md describes, schema "waft.migration-report/1".
std::string ReportToJson(const v1::Report& report);

// "completed", "rolled-back", "failed" or "in-doubt".
std::string OutcomeName(v1::Outcome outcome);

}  // namespace waft::api
