#pragma once

#include <expected>
#include <string>

#include "api/report.pb.h"
#include "base/error.h"

namespace waft::cli {

// What `waft` exits with. docs/exit-codes.md and --help say the same to users; scripts rely on it.
enum class ExitCode {
  kDone = 0,
  kFailed = 1,      // refused or failed; a workload still runs here
  kUsage = 2,       // the command line is at fault; nothing was asked of anyone
  kUnknown = 3,     // the outcome is not known (yet): `waft status` tells
  kNotStarted = 4,  // waftd cannot be reached, so nothing was started
};

// How a call to waftd ended without the answer it was made for.
enum class CallEnd {
  kUnreachable,  // waftd never took the call
  kRefused,      // waftd said no before it began
  kBroken,       // the connection ended after waftd may have begun
  kInterrupted,  // the user stopped waiting (Ctrl-C)
};

struct CallError {
  CallEnd end = CallEnd::kUnreachable;
  std::string message;  // for a person; says what to do
};

template <typename T>
using CallResult = std::expected<T, CallError>;

ExitCode ExitCodeFor(v1::Outcome outcome);
ExitCode ExitCodeFor(CallEnd end);
// Of work done here, without waftd.
ExitCode ExitCodeFor(base::ErrorCode code);

}  // namespace waft::cli
