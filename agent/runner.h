#pragma once

#include <atomic>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <stop_token>
#include <thread>
#include <utility>

namespace waft::agent {

// Runs migrations, each on a thread of its own that no request's end can end. Thread-safe.
// Destroying it asks all to stop and waits for them.
class Runner {
 public:
  void Start(std::function<void(const std::stop_token&)> work) {
    const std::lock_guard lock(mutex_);
    // Threads that have finished are joined here rather than kept until the end.
    threads_.remove_if([](const Entry& entry) { return entry.done->load(); });
    auto done = std::make_shared<std::atomic<bool>>(false);
    threads_.push_back(
        {done, std::jthread([work = std::move(work), done](const std::stop_token& stop) {
           work(stop);
           done->store(true);
         })});
  }

 private:
  struct Entry {
    std::shared_ptr<std::atomic<bool>> done;
    std::jthread thread;
  };
  std::mutex mutex_;
  std::list<Entry> threads_;
};

}  // namespace waft::agent
