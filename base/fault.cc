#include "base/fault.h"

#include <fmt/format.h>

#include <csignal>
#include <cstdlib>
#include <map>
#include <string>

#include "base/log.h"

namespace waft::base {
namespace {

std::map<std::string, std::string, std::less<>> ParseFaults(std::string_view list) {
  std::map<std::string, std::string, std::less<>> faults;
  while (!list.empty()) {
    const std::string_view item = list.substr(0, list.find(','));
    list.remove_prefix(std::min(item.size() + 1, list.size()));
    if (const size_t equals = item.find('='); equals != std::string_view::npos) {
      faults.emplace(item.substr(0, equals), item.substr(equals + 1));
    }
  }
  return faults;
}

}  // namespace

Status FaultPoint(std::string_view name) {
  static const auto kFaults = [] {
    const char* list = std::getenv("WAFT_FAULT");
    return ParseFaults(list == nullptr ? "" : list);
  }();
  const auto fault = kFaults.find(name);
  if (fault == kFaults.end()) return {};
  LogWarning("injected fault at {}: {}", name, fault->second);
  if (fault->second == "kill") ::raise(SIGKILL);
  if (fault->second == "stop") ::raise(SIGSTOP);
  if (fault->second == "fail") {
    return Fail(ErrorCode::kRollBack, fmt::format("injected fault at {}", name));
  }
  return {};
}

}  // namespace waft::base
