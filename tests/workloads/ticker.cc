// Notes the time every 0.2 ms or so and keeps the largest gap: how long it really stood still.
// CLOCK_REALTIME, because CLOCK_MONOTONIC stands still with it.
//   RESET  "OK": forgets the gaps so far
//   GAP    "OK <largest gap in us> <ticks>" since RESET
#include <atomic>
#include <cstdint>
#include <ctime>
#include <thread>

#include "tests/workloads/support.h"

namespace waft::workloads {
namespace {

constexpr uint16_t kPort = 7000;
constexpr timespec kPause{.tv_sec = 0, .tv_nsec = 200'000};

class Ticker {
 public:
  [[noreturn]] void Run() {
    int64_t before_ns = NowNs();
    for (;;) {
      ::nanosleep(&kPause, nullptr);
      const int64_t now_ns = NowNs();
      if (reset_.exchange(false)) {
        largest_ns_ = 0;
        ticks_ = 0;
      }
      if (now_ns - before_ns > largest_ns_) largest_ns_ = now_ns - before_ns;
      ticks_ += 1;
      before_ns = now_ns;
    }
  }

  std::string Answer(const std::string& request) {
    if (request == "RESET") {
      reset_ = true;
      while (reset_) ::nanosleep(&kPause, nullptr);
      return "OK";
    }
    if (request != "GAP") return "BAD request";
    return "OK " + std::to_string(largest_ns_ / 1000) + " " + std::to_string(ticks_);
  }

 private:
  static int64_t NowNs() {
    timespec now{};
    ::clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec * 1'000'000'000 + now.tv_nsec;
  }

  std::atomic<bool> reset_ = false;
  std::atomic<int64_t> largest_ns_ = 0;
  std::atomic<uint64_t> ticks_ = 0;
};

}  // namespace
}  // namespace waft::workloads

int main() {
  waft::workloads::Ticker ticker;
  std::thread([&ticker] { ticker.Run(); }).detach();
  waft::workloads::ServeLines(waft::workloads::kPort, [&ticker](const std::string& request) {
    return ticker.Answer(request);
  });
}
