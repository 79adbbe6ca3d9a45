#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/error.h"
#include "transfer/frame.h"
#include "transfer/image_writer.h"
#include "transfer/tls_context.h"

namespace waft::transfer {

struct Expectation;
class Expectations;

// 32 random bytes.
base::Result<Token> NewToken();
// For a token that came as `bytes`: an error unless it is 32 long.
base::Result<Token> ParseToken(std::string_view bytes);

// One image set that the listener waits for or receives. Any thread may call anything. Once Wait()
// has returned, or the destructor, nothing writes into the directory any more; after an error
// nothing of the image set is left in it.
class Reception {
 public:
  Reception(std::shared_ptr<Expectations> all, std::shared_ptr<Expectation> mine);
  Reception(const Reception&) = delete;
  Reception& operator=(const Reception&) = delete;
  ~Reception();  // cancels, and waits for the end

  // Blocks until the image set is complete and verified, its stream has failed (there is no second
  // try: the token is used up), somebody cancelled, or the deadline, which cancels. The errno of
  // the error is as in image_writer.h, or ECANCELED, ETIMEDOUT, ECONNRESET.
  base::Result<ReceiveSummary> Wait(base::Deadline deadline);

  // The token is forgotten at once; a running stream is told and ended soon, and with it Wait().
  void Cancel();

 private:
  std::shared_ptr<Expectations> all_;
  std::shared_ptr<Expectation> mine_;
};

struct ListenerOptions {
  std::chrono::milliseconds handshake_timeout{5'000};  // TLS handshake and Hello together
  std::chrono::milliseconds begin_timeout{600'000};  // from Welcome to Begin: the dump lies between
  std::chrono::milliseconds frame_timeout{30'000};   // for each whole frame after that
  int max_unauthenticated = 16;  // connections that are not a Reception's; more wait in the backlog
};

// The destination's end: a listening TCP socket, one thread that accepts and one per connection.
// Takes only streams that show a certificate of our CA and the one-time token of a Reception; logs
// what it refuses. Any thread may call Expect().
class ImageListener {
 public:
  // `bind_address` is an IP address; port 0 takes any free port.
  static base::Result<std::unique_ptr<ImageListener>> Start(const std::string& bind_address,
                                                            uint16_t port,
                                                            const TlsContext& context,
                                                            const ListenerOptions& options = {});
  ImageListener(const ImageListener&) = delete;
  ImageListener& operator=(const ImageListener&) = delete;
  ~ImageListener();  // cancels every Reception, ends every connection and joins their threads

  uint16_t port() const { return port_; }

  // Takes one image set of at most `limit_bytes` into `directory`, which exists. An id can be
  // expected again once its Reception has ended.
  base::Result<std::shared_ptr<Reception>> Expect(std::string_view migration_id, const Token& token,
                                                  const std::filesystem::path& directory,
                                                  uint64_t limit_bytes);

 private:
  class Server;
  ImageListener(std::unique_ptr<Server> server, std::shared_ptr<Expectations> expectations,
                uint16_t port);
  std::shared_ptr<Expectations> expectations_;
  std::unique_ptr<Server> server_;
  uint16_t port_;
};

}  // namespace waft::transfer
