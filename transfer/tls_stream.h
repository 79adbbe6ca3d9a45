#pragma once

#include <openssl/bio.h>
#include <openssl/types.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/error.h"
#include "base/unique_fd.h"
#include "transfer/cancel_event.h"
#include "transfer/frame.h"
#include "transfer/tls_context.h"

namespace waft::transfer {

// One TLS 1.3 connection over a TCP socket, both ends of which have proved who they are. Owns the
// socket. Every call that waits for the peer ends by its deadline (errno ETIMEDOUT) and soon after
// the cancel event (ECANCELED), whatever the peer sends; a peer that goes away is ECONNRESET, never
// a SIGPIPE. One thread at a time.
class TlsStream {
 public:
  // The client's side, on a connected socket. The server must have a certificate for `host_name`, a
  // DNS name or an IP address. `cancel` may be null and must outlive the stream or the next
  // SetCancel().
  static base::Result<std::unique_ptr<TlsStream>> Connect(base::UniqueFd socket,
                                                          const TlsContext& context,
                                                          const std::string& host_name,
                                                          base::Deadline deadline,
                                                          const CancelEvent* cancel);
  // The server's side.
  static base::Result<std::unique_ptr<TlsStream>> Accept(base::UniqueFd socket,
                                                         const TlsContext& context,
                                                         base::Deadline deadline,
                                                         const CancelEvent* cancel);
  TlsStream(const TlsStream&) = delete;
  TlsStream& operator=(const TlsStream&) = delete;
  ~TlsStream();

  void SetCancel(const CancelEvent* cancel) { cancel_ = cancel; }

  // Exactly `size` bytes.
  base::Status Read(char* data, size_t size, base::Deadline deadline);
  // Every byte. With `stop_on_input` it returns false as soon as the peer has sent something,
  // however much of `bytes` went out; after that, as after an error, the stream only reads.
  base::Result<bool> Write(std::string_view bytes, base::Deadline deadline,
                           bool stop_on_input = false);
  // Whether data of the peer is there to be read. Does not wait; the deadline is for a peer that
  // sends records without data faster than they are read.
  base::Result<bool> HasInput(base::Deadline deadline);

  // Ends our direction and reads away what the peer still sends, until it closes or the deadline: a
  // socket closed with unread input resets the connection, and our last words could be lost with
  // it.
  void Drain(base::Deadline deadline);

  // Over the socket, handshake and TLS overhead included.
  uint64_t sent_bytes() const { return sent_bytes_; }

 private:
  struct FreeSsl {
    void operator()(SSL* ssl) const;
  };

  TlsStream(base::UniqueFd socket, const CancelEvent* cancel);
  base::Status Init(const TlsContext& context);
  base::Status Handshake(base::Deadline deadline);
  // Waits until the socket has one of `events`, which are returned.
  base::Result<short> Poll(short events, base::Deadline deadline);
  // Goes on after an SSL_* call returned `result`: waits for what it needs, or says why it failed.
  base::Result<short> Resume(int result, bool writing, short more_events, base::Deadline deadline);
  base::Error ErrorOf(int ssl_error);
  base::Status CheckInterrupted(base::Deadline deadline) const;

  // Our own BIO: MSG_NOSIGNAL, counting, and an end to endless handshake records.
  static const BIO_METHOD* BioMethod();
  static int BioWrite(BIO* bio, const char* data, int size);
  static int BioRead(BIO* bio, char* data, int size);
  void SetIoError(base::Error error) { io_error_ = std::move(error); }

  base::UniqueFd socket_;
  const CancelEvent* cancel_;
  std::unique_ptr<SSL, FreeSsl> ssl_;
  std::optional<base::Deadline> deadline_;  // of the call that is running
  std::optional<base::Error> io_error_;     // why the BIO failed
  bool write_ended_ = false;
  uint64_t sent_bytes_ = 0;
  uint64_t key_used_bytes_ = 0;
};

// Reads one frame into `buffer`, which grows as far as a length that was checked asks for; what the
// frame points to lives there. Unless `data_allowed`, a Data frame is refused before its payload is
// read.
base::Result<Frame> ReadFrame(TlsStream& stream, std::string* buffer, base::Deadline deadline,
                              bool data_allowed);

}  // namespace waft::transfer
