#include "base/error.h"

#include <fmt/format.h>

#include <cerrno>
#include <system_error>

namespace waft::base {

std::string_view ToString(ErrorCode code) {
  switch (code) {
    case ErrorCode::kRetry:
      return "retry";
    case ErrorCode::kRollBack:
      return "roll-back";
    case ErrorCode::kBadArgument:
      return "bad-argument";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kDataLoss:
      return "data-loss";
    case ErrorCode::kFatal:
      return "fatal";
  }
  return "unknown";
}

Error Error::FromErrno(std::string_view what, int error_number) {
  ErrorCode code = ErrorCode::kRollBack;
  if (error_number == EINTR || error_number == EAGAIN || error_number == ETIMEDOUT) {
    code = ErrorCode::kRetry;
  } else if (error_number == ENOSYS || error_number == EOPNOTSUPP) {
    code = ErrorCode::kUnsupported;
  }
  return Error(code, fmt::format("{}: {}", what, std::generic_category().message(error_number)),
               error_number);
}

Error Error::WithContext(std::string_view context) const {
  return Error(code_, fmt::format("{}: {}", context, message_), errno_);
}

std::unexpected<Error> FailErrno(std::string_view what) {
  return std::unexpected(Error::FromErrno(what, errno));
}

}  // namespace waft::base
