#pragma once

#include <fmt/format.h>

#include <string_view>
#include <utility>

#include "base/error.h"

namespace waft::base {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Sends every line to standard error with a UTC time stamp, `program` and its pid. Call once, in
// main. WAFT_LOG=debug|info|warning|error sets the lowest level printed (info).
void InitLog(std::string_view program);

void LogLine(LogLevel level, std::string_view line);

template <typename... Args>
void LogInfo(fmt::format_string<Args...> format, Args&&... args) {
  LogLine(LogLevel::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void LogWarning(fmt::format_string<Args...> format, Args&&... args) {
  LogLine(LogLevel::kWarning, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void LogDebug(fmt::format_string<Args...> format, Args&&... args) {
  LogLine(LogLevel::kDebug, fmt::format(format, std::forward<Args>(args)...));
}

// For clean-up paths, where an error must be told but cannot change what happens next.
void LogIfError(const Status& status, std::string_view what);

}  // namespace waft::base
