#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"
#include "transfer/frame.h"
#include "transfer/tls_context.h"

namespace waft::transfer {

struct SendSummary {
  uint32_t files = 0;
  uint64_t bytes_payload = 0;  // of the files
  uint64_t bytes_wire = 0;     // written to the socket: frames, TLS and the handshake included
};

// The source's end of one stream: connects, proves itself, and sends one image set. Owns the
// connection. One thread at a time, except Cancel(). Its errors begin with whom it talked to, and
// say which side could not go on.
class ImageSender {
 public:
  // Connects and says Hello, so that only bytes are left to send once a workload is frozen. Tries
  // each address of `address` (IP or name) in turn; blocks up to `timeout` in all, name resolution
  // (the resolver's own timeouts) not included. `host_name` must be in the destination's
  // certificate. `timeout` is also the longest that each later step may stand still.
  static base::Result<ImageSender> Connect(const std::string& address, uint16_t port,
                                           const std::string& host_name, const TlsContext& context,
                                           std::string_view migration_id, const Token& token,
                                           std::chrono::milliseconds timeout);
  ImageSender(ImageSender&&) noexcept;
  ImageSender& operator=(ImageSender&&) noexcept;
  ~ImageSender();

  // Sends every regular file of `directory` (nothing else in it, and no subdirectory) and returns
  // when the destination has them all, verified. Once per sender; the files must not change
  // meanwhile. `progress` (may be empty) is called in this thread with payload bytes.
  base::Result<SendSummary> Send(
      const std::filesystem::path& directory,
      const std::function<void(uint64_t done, uint64_t total)>& progress);

  // From any thread, while this lives: ends a running or later Send() soon, which tells the
  // destination.
  void Cancel();

 private:
  struct Session;
  explicit ImageSender(std::unique_ptr<Session> session);
  std::unique_ptr<Session> session_;
};

}  // namespace waft::transfer
