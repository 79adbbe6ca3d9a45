#pragma once

#include <atomic>
#include <memory>

#include "base/error.h"
#include "base/unique_fd.h"

namespace waft::transfer {

// A switch that, once thrown, stays thrown: the way one thread ends another's waiting for a peer.
// Any thread may call anything. Blocks on nothing.
class CancelEvent {
 public:
  static base::Result<std::unique_ptr<CancelEvent>> Create();

  void Cancel();
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }
  // Readable once cancelled: for poll(2), beside the descriptor that is waited for.
  int fd() const { return fd_.get(); }

 private:
  explicit CancelEvent(base::UniqueFd fd) : fd_(std::move(fd)) {}
  base::UniqueFd fd_;  // an eventfd
  std::atomic<bool> cancelled_ = false;
};

}  // namespace waft::transfer
