#include "api/report_json.h"

#include <nlohmann/json.hpp>

namespace waft::api {
namespace {

using Json = nlohmann::ordered_json;

}  // namespace

std::string OutcomeName(v1::Outcome outcome) {
  switch (outcome) {
    case v1::COMPLETED:
      return "completed";
    case v1::ROLLED_BACK:
      return "rolled-back";
    case v1::IN_DOUBT:
      return "in-doubt";
    default:
      return "failed";
  }
}

std::string ReportToJson(const v1::Report& report) {
  const auto or_null = [](bool set, const auto& value) {
    return set ? Json(value) : Json(nullptr);
  };
  Json json;
  json["schema"] = "waft.migration-report/1";
  json["migration_id"] = report.migration_id();
  json["workload"] = report.workload();
  json["source"] = report.source();
  json["destination"] = report.destination();
  json["mode"] = report.mode();
  json["outcome"] = OutcomeName(report.outcome());
  json["error"] = or_null(report.has_error(), report.error());
  json["downtime_ms"] = or_null(report.has_downtime_ms(), report.downtime_ms());
  json["total_ms"] = report.total_ms();
  json["preparation_ms"] = or_null(report.has_preparation_ms(), report.preparation_ms());
  json["resume_ms"] = or_null(report.has_resume_ms(), report.resume_ms());
  json["risk_window_ms"] = or_null(report.has_risk_window_ms(), report.risk_window_ms());
  json["clock_offset_ms"] = or_null(report.has_clock_offset_ms(), report.clock_offset_ms());
  json["clock_error_ms"] = or_null(report.has_clock_error_ms(), report.clock_error_ms());
  json["phases"] = nullptr;
  if (report.has_phases()) {
    const v1::Phases& phases = report.phases();
    json["phases"] = {{"freeze_ms", phases.freeze_ms()},
                      {"dump_ms", phases.dump_ms()},
                      {"transfer_ms", phases.transfer_ms()},
                      {"restore_ms", phases.restore_ms()},
                      {"handover_ms", phases.handover_ms()}};
  }
  json["memory"] = nullptr;
  if (report.has_memory()) {
    const v1::MemoryCost& memory = report.memory();
    json["memory"] = {
        {"pages_total", memory.pages_total()},
        {"pages_sent", memory.pages_sent()},
        {"pages_resent", or_null(memory.has_pages_resent(), memory.pages_resent())},
        {"pages_zero", or_null(memory.has_pages_zero(), memory.pages_zero())},
        {"pages_gone", or_null(memory.has_pages_gone(), memory.pages_gone())},
        {"pages_fetched", or_null(memory.has_pages_fetched(), memory.pages_fetched())},
        {"bytes_wire", memory.bytes_wire()}};
  }
  json["rounds"] = Json::array();
  json["faults"] = nullptr;
  if (report.has_faults()) {
    const v1::Faults& faults = report.faults();
    json["faults"] = {{"count", faults.count()},
                      {"p50_us", faults.p50_us()},
                      {"p99_us", faults.p99_us()},
                      {"max_us", faults.max_us()}};
  }
  // An error may quote a file name that is not UTF-8.
  return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

}  // namespace waft::api
