#include "cli/exit_code.h"

namespace waft::cli {

ExitCode ExitCodeFor(v1::Outcome outcome) {
  switch (outcome) {
    case v1::COMPLETED:
      return ExitCode::kDone;
    case v1::ROLLED_BACK:
    case v1::FAILED:
      return ExitCode::kFailed;
    default:
      // IN_DOUBT, and whatever a newer waftd may report that we cannot name.
      return ExitCode::kUnknown;
  }
}

ExitCode ExitCodeFor(CallEnd end) {
  switch (end) {
    case CallEnd::kUnreachable:
      return ExitCode::kNotStarted;
    case CallEnd::kRefused:
      return ExitCode::kFailed;
    case CallEnd::kBroken:
    case CallEnd::kInterrupted:
      break;
  }
  return ExitCode::kUnknown;
}

ExitCode ExitCodeFor(base::ErrorCode code) {
  return code == base::ErrorCode::kBadArgument ? ExitCode::kUsage : ExitCode::kFailed;
}

}  // namespace waft::cli
