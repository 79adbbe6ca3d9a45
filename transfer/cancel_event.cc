#include "transfer/cancel_event.h"

#include <sys/eventfd.h>

namespace waft::transfer {

base::Result<std::unique_ptr<CancelEvent>> CancelEvent::Create() {
  base::UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd) return base::FailErrno("eventfd");
  return std::unique_ptr<CancelEvent>(new CancelEvent(std::move(fd)));
}

void CancelEvent::Cancel() {
  cancelled_.store(true, std::memory_order_release);
  // Fails only when the counter is full, and then the descriptor is readable already.
  ::eventfd_write(fd_.get(), 1);
}

}  // namespace waft::transfer
