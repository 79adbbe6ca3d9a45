#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <memory>
#include <string>

namespace waft::base {

void InitLog(std::string_view program) {
  auto logger = spdlog::stderr_logger_mt(std::string(program));
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%fZ %n[%P] %l: %v", spdlog::pattern_time_type::utc);
  logger->flush_on(spdlog::level::debug);
  if (const char* level = std::getenv("WAFT_LOG"); level != nullptr) {
    logger->set_level(spdlog::level::from_str(level));
  }
  spdlog::set_default_logger(std::move(logger));
}

void LogLine(LogLevel level, std::string_view line) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::debug("{}", line);
    case LogLevel::kInfo:
      return spdlog::info("{}", line);
    case LogLevel::kWarning:
      return spdlog::warn("{}", line);
    case LogLevel::kError:
      return spdlog::error("{}", line);
  }
}

void LogIfError(const Status& status, std::string_view what) {
  if (!status) LogWarning("{}: {}", what, status.error().message());
}

}  // namespace waft::base
