#pragma once

#include <chrono>
#include <cstdint>

namespace waft::base {

// Nanoseconds since the epoch on CLOCK_REALTIME: the one clock that two hosts, or a task and its
// restored self, have in common (CLOCK_MONOTONIC stands still during a downtime).
int64_t RealtimeNs();

inline double NsToMs(int64_t ns) { return static_cast<double>(ns) / 1e6; }

// A point on the steady clock by which something must have happened.
class Deadline {
 public:
  static Deadline After(std::chrono::milliseconds span) {
    return Deadline(std::chrono::steady_clock::now() + span);
  }
  bool Passed() const { return std::chrono::steady_clock::now() >= at_; }
  // Milliseconds left, never below 0: fits poll(2).
  int LeftMs() const;

 private:
  explicit Deadline(std::chrono::steady_clock::time_point at) : at_(at) {}
  std::chrono::steady_clock::time_point at_;
};

}  // namespace waft::base
