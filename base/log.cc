#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <memory>
#include <string>

namespace waft::base {

namespace {

std::shared_ptr<spdlog::logger> MakeLogger(std::string_view program) {
  auto logger = std::make_shared<spdlog::logger>(std::string(program),
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%fZ %n[%P] %l: %v", spdlog::pattern_time_type::utc);
  logger->flush_on(spdlog::level::debug);
  if (const char* name = std::getenv("WAFT_LOG"); name != nullptr) {
    // spdlog takes a word it does not know for "off": a typing error must not silence the log.
    const spdlog::level::level_enum level = spdlog::level::from_str(name);
    if (level != spdlog::level::off) {
      logger->set_level(level);
    } else {
      logger->warn("WAFT_LOG={} is none of debug, info, warning, error: using info", name);
    }
  }
  return logger;
}

// Before InitLog(), and in programs that have none, lines go to standard error as well: standard
// output may be somebody's JSON.
std::shared_ptr<spdlog::logger>& Logger() {
  static std::shared_ptr<spdlog::logger> logger = MakeLogger("waft");
  return logger;
}

}  // namespace

void InitLog(std::string_view program) { Logger() = MakeLogger(program); }

void LogLine(LogLevel level, std::string_view line) {
  switch (level) {
    case LogLevel::kDebug:
      return Logger()->debug("{}", line);
    case LogLevel::kInfo:
      return Logger()->info("{}", line);
    case LogLevel::kWarning:
      return Logger()->warn("{}", line);
    case LogLevel::kError:
      return Logger()->error("{}", line);
  }
}

void LogIfError(const Status& status, std::string_view what) {
  if (!status) LogWarning("{}: {}", what, status.error().message());
}

}  // namespace waft::base
