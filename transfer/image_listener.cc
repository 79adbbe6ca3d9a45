#include "transfer/image_listener.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <variant>

#include "base/fault.h"
#include "base/file.h"
#include "base/log.h"
#include "transfer/tls_stream.h"

namespace waft::transfer {

using base::Deadline;
using base::Error;
using base::ErrorCode;
using base::Result;
using base::Status;

// One image set that is awaited. What changes is guarded by the mutex of Expectations.
struct Expectation {
  std::string migration_id;
  Token token{};
  std::filesystem::path path;
  uint64_t limit_bytes = 0;
  std::unique_ptr<CancelEvent> cancel;  // for the stream that receives it

  base::UniqueFd directory;  // until claimed
  bool claimed = false;
  std::optional<Error> cancelled;  // why
  std::optional<Result<ReceiveSummary>> result;
};

// All of a listener's expectations that have not ended; shared with its Receptions, which may
// outlive it. Any thread.
class Expectations {
 public:
  Status Add(const std::shared_ptr<Expectation>& entry) {
    const std::lock_guard lock(mutex_);
    if (closed_) return base::Fail(ErrorCode::kFatal, "the image listener has been stopped");
    if (!open_.emplace(entry->migration_id, entry).second) {
      return base::Fail(ErrorCode::kBadArgument,
                        fmt::format("the images of {} are awaited already", entry->migration_id));
    }
    return {};
  }

  // The entry that this id and token open, for the one caller that gets it; null for all others.
  std::shared_ptr<Expectation> Claim(const std::string& migration_id, const Token& token) {
    const std::lock_guard lock(mutex_);
    const auto found = open_.find(migration_id);
    if (found == open_.end() || found->second->claimed ||
        CRYPTO_memcmp(found->second->token.data(), token.data(), token.size()) != 0) {
      return nullptr;
    }
    found->second->claimed = true;
    return found->second;
  }

  // The end of a claimed entry.
  void End(Expectation& entry, Result<ReceiveSummary> result) {
    const std::lock_guard lock(mutex_);
    if (!result && entry.cancelled) result = std::unexpected(*entry.cancelled);
    Finish(entry, std::move(result));
  }

  void Cancel(Expectation& entry, const Error& why) {
    const std::lock_guard lock(mutex_);
    CancelLocked(entry, why);
  }

  Result<ReceiveSummary> Wait(Expectation& entry, Deadline deadline) {
    std::unique_lock lock(mutex_);
    while (!entry.result && !deadline.Passed()) {
      ended_.wait_for(lock, std::chrono::milliseconds(deadline.LeftMs() + 1));
    }
    if (!entry.result) {
      CancelLocked(entry,
                   Error(ErrorCode::kRollBack,
                         fmt::format("the images of {} did not arrive in time", entry.migration_id),
                         ETIMEDOUT));
    }
    ended_.wait(lock, [&] { return entry.result.has_value(); });
    return *entry.result;
  }

  void Close(const Error& why) {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    const auto entries = open_;
    for (const auto& [id, entry] : entries) CancelLocked(*entry, why);
  }

 private:
  void CancelLocked(Expectation& entry, const Error& why) {
    if (entry.result || entry.cancelled) return;
    entry.cancelled = why;
    entry.cancel->Cancel();
    if (!entry.claimed) Finish(entry, std::unexpected(why));
  }

  void Finish(Expectation& entry, Result<ReceiveSummary> result) {
    entry.result = std::move(result);
    entry.directory.reset();
    OPENSSL_cleanse(entry.token.data(), entry.token.size());
    open_.erase(std::string(entry.migration_id));
    ended_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable ended_;
  bool closed_ = false;
  std::map<std::string, std::shared_ptr<Expectation>> open_;
};

namespace {

// How long a peer may take to read our last words.
constexpr std::chrono::milliseconds kDrainTimeout{2000};
constexpr std::chrono::milliseconds kLastWords{1000};
// Strangers can make connections fail as fast as they like; the log keeps one line a second.
constexpr std::chrono::milliseconds kStrangerLogInterval{1000};

WireError WireErrorOf(const Error& error) {
  switch (error.error_number()) {
    case EPROTO:
      return WireError::kProtocol;
    case EPROTONOSUPPORT:
      return WireError::kVersion;
    case EACCES:
      return WireError::kRefused;
    case EFBIG:
      return WireError::kLimit;
    case ENOSPC:
    case EDQUOT:
      return WireError::kNoRoom;
    case EBADMSG:
      return WireError::kChecksum;
    case ECANCELED:
      return WireError::kCancelled;
    default:
      return WireError::kInternal;
  }
}

void TellPeer(TlsStream& stream, const Error& error) {
  stream.SetCancel(nullptr);
  if (const auto told =
          stream.Write(Encode(ErrorFrame{kProtocolVersion, WireErrorOf(error), error.message()}),
                       Deadline::After(kLastWords));
      !told) {
    base::LogDebug("image listener: a peer could not be told: {}", told.error().message());
  }
}

std::string AddressText(const sockaddr_storage& address, socklen_t length) {
  std::array<char, NI_MAXHOST> host{};
  if (::getnameinfo(reinterpret_cast<const sockaddr*>(&address), length, host.data(), host.size(),
                    nullptr, 0, NI_NUMERICHOST) != 0) {
    return "an unknown address";
  }
  return host.data();
}

// Everything between Welcome and Done.
Result<ReceiveSummary> Receive(TlsStream& stream, ImageWriter& writer,
                               const ListenerOptions& options) {
  std::string buffer;
  bool fault_reached = false;
  while (!writer.finished()) {
    const Deadline deadline =
        Deadline::After(writer.begun() ? options.frame_timeout : options.begin_timeout);
    WAFT_ASSIGN(const Frame frame,
                ReadFrame(stream, &buffer, deadline, /*data_allowed=*/writer.begun()));
    WAFT_TRY(writer.Apply(frame));
    if (!fault_reached && std::holds_alternative<Data>(frame) &&
        writer.received().bytes * 2 >= writer.announced().bytes) {
      fault_reached = true;
      WAFT_TRY(base::FaultPoint("destination-receiving"));
    }
  }
  const ReceiveSummary summary = writer.received();
  WAFT_TRY(stream.Write(Encode(Done{summary.files, summary.bytes}),
                        Deadline::After(options.frame_timeout)));
  writer.Commit();
  return summary;
}

}  // namespace

// The threads. Everything but the constructor and destructor runs in them.
class ImageListener::Server {
 public:
  Server(base::UniqueFd socket, base::UniqueFd wake, std::unique_ptr<CancelEvent> stop,
         const TlsContext& context, const ListenerOptions& options,
         std::shared_ptr<Expectations> expectations)
      : socket_(std::move(socket)),
        wake_(std::move(wake)),
        stop_(std::move(stop)),
        context_(context),
        options_(options),
        expectations_(std::move(expectations)) {}
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;
  ~Server() {
    stop_->Cancel();
    if (acceptor_.joinable()) acceptor_.join();
  }

  Status Start() {
    return StartThread(&acceptor_, [this] { AcceptLoop(); });
  }

 private:
  struct Connection {
    std::thread thread;
    std::atomic<bool> ended = false;
  };

  template <typename Body>
  static Status StartThread(std::thread* thread, Body body) {
    try {
      *thread = std::thread(std::move(body));
      return {};
    } catch (const std::system_error& error) {
      return std::unexpected(Error::FromErrno("start a thread", error.code().value()));
    }
  }

  void AcceptLoop();
  void AcceptOne();
  void Reap(bool wait);
  void Serve(base::UniqueFd socket, const std::string& peer);
  Result<std::shared_ptr<Expectation>> Authenticate(TlsStream& stream, Deadline deadline);
  void LogStranger(const std::string& peer, const Error& error);
  void Wake() { ::eventfd_write(wake_.get(), 1); }
  void ReleaseSlot() {
    --unauthenticated_;
    Wake();
  }

  const base::UniqueFd socket_;
  const base::UniqueFd wake_;  // an eventfd: a slot is free, or a connection's thread can be joined
  const std::unique_ptr<CancelEvent> stop_;
  const TlsContext context_;
  const ListenerOptions options_;
  const std::shared_ptr<Expectations> expectations_;
  std::atomic<int> unauthenticated_ = 0;
  std::list<Connection> connections_;  // the acceptor's
  std::thread acceptor_;

  std::mutex log_mutex_;
  std::optional<Deadline> quiet_until_;
  int not_logged_ = 0;
};

void ImageListener::Server::AcceptLoop() {
  while (!stop_->cancelled()) {
    const bool has_slot = unauthenticated_ < options_.max_unauthenticated;
    std::array<pollfd, 3> fds = {{{stop_->fd(), POLLIN, 0},
                                  {wake_.get(), POLLIN, 0},
                                  {has_slot ? socket_.get() : -1, POLLIN, 0}}};
    if (::poll(fds.data(), fds.size(), -1) < 0) continue;  // EINTR
    if (fds[1].revents != 0) {
      eventfd_t count = 0;
      ::eventfd_read(wake_.get(), &count);
    }
    Reap(/*wait=*/false);
    if (fds[2].revents != 0) AcceptOne();
  }
  Reap(/*wait=*/true);
}

void ImageListener::Server::AcceptOne() {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  base::UniqueFd socket(::accept4(socket_.get(), reinterpret_cast<sockaddr*>(&address), &length,
                                  SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket) {
    // Out of descriptors or memory, the connection stays in the backlog and poll() returns at once.
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      base::LogIfError(base::FailErrno("accept"), "image listener");
      pollfd stop{stop_->fd(), POLLIN, 0};
      ::poll(&stop, 1, 100);
    }
    return;
  }
  ++unauthenticated_;
  Connection& connection = connections_.emplace_back();
  // A copyable function is not asked for, so the socket may move in.
  const Status started =
      StartThread(&connection.thread, [this, &connection, socket = std::move(socket),
                                       peer = AddressText(address, length)]() mutable {
        Serve(std::move(socket), peer);
        connection.ended = true;
        Wake();
      });
  if (!started) {
    base::LogIfError(started, "image listener");
    connections_.pop_back();
    ReleaseSlot();
  }
}

void ImageListener::Server::Reap(bool wait) {
  for (auto it = connections_.begin(); it != connections_.end();) {
    if (!wait && !it->ended) {
      ++it;
      continue;
    }
    it->thread.join();
    it = connections_.erase(it);
  }
}

void ImageListener::Server::LogStranger(const std::string& peer, const Error& error) {
  if (error.error_number() == ECANCELED) return;  // we are stopping: that is nobody's fault
  const std::lock_guard lock(log_mutex_);
  if (quiet_until_ && !quiet_until_->Passed()) {
    ++not_logged_;
    return;
  }
  quiet_until_ = Deadline::After(kStrangerLogInterval);
  const int not_logged = std::exchange(not_logged_, 0);
  base::LogWarning("image transfer from {} refused: {}{}", peer, error.message(),
                   not_logged > 0 ? fmt::format(" ({} more like it)", not_logged) : "");
}

Result<std::shared_ptr<Expectation>> ImageListener::Server::Authenticate(TlsStream& stream,
                                                                         Deadline deadline) {
  std::string buffer;
  WAFT_ASSIGN(const Frame frame, ReadFrame(stream, &buffer, deadline, /*data_allowed=*/false));
  const auto* hello = std::get_if<Hello>(&frame);
  if (hello == nullptr) {
    return std::unexpected(Error(ErrorCode::kRollBack, "the first frame is not Hello", EPROTO));
  }
  if (hello->version != kProtocolVersion) {
    return std::unexpected(
        Error(ErrorCode::kUnsupported,
              fmt::format(
                  "the source speaks version {} of the transfer protocol, the destination version "
                  "{}",
                  hello->version, kProtocolVersion),
              EPROTONOSUPPORT));
  }
  std::shared_ptr<Expectation> entry = expectations_->Claim(hello->migration_id, hello->token);
  if (entry == nullptr) {
    // The same words whichever of the two is wrong.
    return std::unexpected(Error(
        ErrorCode::kRollBack,
        fmt::format("the destination awaits no images of migration {} with this token: tokens are "
                    "good for one stream",
                    hello->migration_id),
        EACCES));
  }
  return entry;
}

void ImageListener::Server::Serve(base::UniqueFd socket, const std::string& peer) {
  const Deadline deadline = Deadline::After(options_.handshake_timeout);
  auto stream = TlsStream::Accept(std::move(socket), context_, deadline, stop_.get());
  if (!stream) {
    LogStranger(peer, stream.error());
    ReleaseSlot();
    return;
  }
  TlsStream& tls = **stream;
  const auto entry = Authenticate(tls, deadline);
  if (!entry) {
    base::LogWarning("image transfer from {} refused: {}", peer, entry.error().message());
    TellPeer(tls, entry.error());
    tls.SetCancel(stop_.get());
    tls.Drain(Deadline::After(kDrainTimeout));
    ReleaseSlot();
    return;
  }
  ReleaseSlot();

  Expectation& mine = **entry;
  tls.SetCancel(mine.cancel.get());
  Result<ReceiveSummary> result = [&]() -> Result<ReceiveSummary> {
    ImageWriter writer(std::move(mine.directory), mine.path, mine.limit_bytes);
    WAFT_TRY(tls.Write(Encode(Welcome{}), deadline));
    return Receive(tls, writer, options_);
  }();  // the writer is gone, and on an error all it made
  if (!result) {
    if (result.error().error_number() != ECONNABORTED) {
      const bool cancelled = result.error().error_number() == ECANCELED;
      TellPeer(tls, cancelled ? Error(ErrorCode::kRollBack, "the destination cancelled", ECANCELED)
                              : result.error());
    }
    result = std::unexpected(
        result.error().WithContext(fmt::format("images of {} from {}", mine.migration_id, peer)));
  }
  expectations_->End(mine, std::move(result));
  tls.SetCancel(stop_.get());
  tls.Drain(Deadline::After(kDrainTimeout));
}

Reception::Reception(std::shared_ptr<Expectations> all, std::shared_ptr<Expectation> mine)
    : all_(std::move(all)), mine_(std::move(mine)) {}

Reception::~Reception() {
  Cancel();
  [[maybe_unused]] const auto ended = Wait(Deadline::After(std::chrono::milliseconds(0)));
}

Result<ReceiveSummary> Reception::Wait(Deadline deadline) { return all_->Wait(*mine_, deadline); }

void Reception::Cancel() {
  all_->Cancel(*mine_,
               Error(ErrorCode::kRollBack,
                     fmt::format("receiving the images of {} was cancelled", mine_->migration_id),
                     ECANCELED));
}

ImageListener::ImageListener(std::unique_ptr<Server> server,
                             std::shared_ptr<Expectations> expectations, uint16_t port)
    : expectations_(std::move(expectations)), server_(std::move(server)), port_(port) {}

ImageListener::~ImageListener() {
  expectations_->Close(
      Error(ErrorCode::kRollBack, "the destination's image listener was stopped", ECANCELED));
  server_.reset();
}

Result<std::unique_ptr<ImageListener>> ImageListener::Start(const std::string& bind_address,
                                                            uint16_t port,
                                                            const TlsContext& context,
                                                            const ListenerOptions& options) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE;
  addrinfo* list = nullptr;
  if (::getaddrinfo(bind_address.c_str(), fmt::to_string(port).c_str(), &hints, &list) != 0) {
    return base::Fail(ErrorCode::kBadArgument,
                      fmt::format("'{}' is no IP address to listen on", bind_address));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(list, ::freeaddrinfo);
  base::UniqueFd socket(
      ::socket(list->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, list->ai_protocol));
  if (!socket) return base::FailErrno("socket");
  const int on = 1;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (::bind(socket.get(), list->ai_addr, list->ai_addrlen) != 0 ||
      ::listen(socket.get(), SOMAXCONN) != 0) {
    return base::FailErrno(fmt::format("listen for images on {} port {}", bind_address, port));
  }
  sockaddr_storage bound{};
  socklen_t length = sizeof bound;
  if (::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&bound), &length) != 0) {
    return base::FailErrno("getsockname");
  }
  // Both families have their port at the same place.
  const uint16_t bound_port = ntohs(reinterpret_cast<const sockaddr_in*>(&bound)->sin_port);

  base::UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return base::FailErrno("eventfd");
  WAFT_ASSIGN(auto stop, CancelEvent::Create());
  auto expectations = std::make_shared<Expectations>();
  auto server = std::make_unique<Server>(std::move(socket), std::move(wake), std::move(stop),
                                         context, options, expectations);
  WAFT_TRY(server->Start());
  return std::unique_ptr<ImageListener>(
      new ImageListener(std::move(server), std::move(expectations), bound_port));
}

Result<std::shared_ptr<Reception>> ImageListener::Expect(std::string_view migration_id,
                                                         const Token& token,
                                                         const std::filesystem::path& directory,
                                                         uint64_t limit_bytes) {
  WAFT_TRY(CheckMigrationId(migration_id));
  auto entry = std::make_shared<Expectation>();
  entry->migration_id = migration_id;
  entry->token = token;
  entry->path = directory;
  entry->limit_bytes = limit_bytes;
  WAFT_ASSIGN(entry->cancel, CancelEvent::Create());
  WAFT_ASSIGN(entry->directory, base::Open(directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
  WAFT_TRY(expectations_->Add(entry));
  return std::make_shared<Reception>(expectations_, std::move(entry));
}

Result<Token> NewToken() {
  Token token;
  if (RAND_bytes(token.data(), token.size()) != 1) {
    return base::Fail(ErrorCode::kFatal, "no random bytes for a token");
  }
  return token;
}

Result<Token> ParseToken(std::string_view bytes) {
  Token token;
  if (bytes.size() != token.size()) {
    return base::Fail(ErrorCode::kBadArgument, fmt::format("a token of {} bytes: {} are expected",
                                                           bytes.size(), token.size()));
  }
  std::memcpy(token.data(), bytes.data(), token.size());
  return token;
}

}  // namespace waft::transfer
