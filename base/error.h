#pragma once

#include <expected>
#include <string>
#include <string_view>
#include <utility>

namespace waft::base {

// What a caller can do about an error, not where it came from.
enum class ErrorCode {
  kRetry,        // passing trouble: the same call may succeed later
  kRollBack,     // this migration cannot go on; the workload can
  kBadArgument,  // the request itself is at fault; the message says how to mend it
  kUnsupported,  // this kernel, CRIU or workload cannot do it
  kDataLoss,     // bytes are missing or wrong; never continue with them
  kFatal,        // our own fault or the machine's: nothing sensible is left to do
};

std::string_view ToString(ErrorCode code);

// An error as a value: a code, the errno behind it (0 if none) and a message for a person.
class Error {
 public:
  Error(ErrorCode code, std::string message, int error_number = 0)
      : code_(code), errno_(error_number), message_(std::move(message)) {}

  // "what: strerror(error_number)". The code is kRetry for EINTR, EAGAIN and ETIMEDOUT,
  // kUnsupported for ENOSYS and EOPNOTSUPP, kRollBack for everything else.
  static Error FromErrno(std::string_view what, int error_number);

  ErrorCode code() const { return code_; }
  int error_number() const { return errno_; }
  const std::string& message() const { return message_; }

  // The same error, seen from further out: "context: message".
  Error WithContext(std::string_view context) const;

 private:
  ErrorCode code_;
  int errno_;
  std::string message_;
};

template <typename T>
using Result = std::expected<T, Error>;
using Status = Result<void>;

inline std::unexpected<Error> Fail(ErrorCode code, std::string message) {
  return std::unexpected(Error(code, std::move(message)));
}
std::unexpected<Error> FailErrno(std::string_view what);  // from the current errno

}  // namespace waft::base

#define WAFT_CONCAT_INNER(a, b) a##b
#define WAFT_CONCAT(a, b) WAFT_CONCAT_INNER(a, b)

// Returns the error of a Status or Result from the enclosing function, if it is one.
#define WAFT_TRY(expression)                                       \
  do {                                                             \
    if (auto waft_result = (expression); !waft_result.has_value()) \
      return std::unexpected(std::move(waft_result).error());      \
  } while (false)

// Declares or assigns `target` from a Result, or returns its error.
// NOLINTBEGIN(bugprone-macro-parentheses): `target` may be a declaration
#define WAFT_ASSIGN(target, expression)                                             \
  auto WAFT_CONCAT(waft_result_, __LINE__) = (expression);                          \
  if (!WAFT_CONCAT(waft_result_, __LINE__).has_value())                             \
    return std::unexpected(std::move(WAFT_CONCAT(waft_result_, __LINE__)).error()); \
  target = std::move(*WAFT_CONCAT(waft_result_, __LINE__))
// NOLINTEND(bugprone-macro-parentheses)
