#include "transfer/image_sender.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

#include "base/fault.h"
#include "base/file.h"
#include "base/log.h"
#include "transfer/tls_stream.h"

namespace waft::transfer {
namespace {

namespace fs = std::filesystem;
using base::Deadline;
using base::Error;
using base::ErrorCode;
using base::Result;
using base::Status;

// Frames are gathered up to this size for one SSL_write(): many small files go out in few writes,
// and what was read from a file is still in the L2 cache when it is hashed and encrypted.
constexpr size_t kBufferBytes = 256 << 10;
static_assert(kBufferBytes <= kMaxDataBytes);
// With less room than this left, Data starts in the next buffer.
constexpr size_t kMinDataBytes = 4 << 10;
// How long to look for the peer's own words after a write to it has failed.
constexpr std::chrono::milliseconds kLastWords{1000};

struct ImageFile {
  std::string name;
  uint64_t size_bytes = 0;
};

struct ImageSet {
  base::UniqueFd directory;
  std::vector<ImageFile> files;
  uint64_t bytes = 0;
};

Result<ImageSet> ListImages(const fs::path& path) {
  ImageSet images;
  WAFT_ASSIGN(images.directory, base::Open(path, O_RDONLY | O_DIRECTORY));
  std::error_code error;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    std::string name = it->path().filename().string();
    struct stat info{};
    if (::fstatat(images.directory.get(), name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
      return base::FailErrno(fmt::format("stat {}", it->path().string()));
    }
    if (!S_ISREG(info.st_mode)) continue;
    WAFT_TRY(CheckFileName(name));
    images.bytes += static_cast<uint64_t>(info.st_size);
    images.files.push_back({std::move(name), static_cast<uint64_t>(info.st_size)});
  }
  if (error) return std::unexpected(Error::FromErrno(path.string(), error.value()));
  if (images.files.size() > kMaxFiles) {
    return base::Fail(ErrorCode::kUnsupported,
                      fmt::format("{} holds {} files; an image set may have {}", path.string(),
                                  images.files.size(), kMaxFiles));
  }
  return images;
}

// What the destination's Error frame is to the caller.
Error FromPeer(const ErrorFrame& error) {
  if (error.code == WireError::kVersion || error.version != kProtocolVersion) {
    return {ErrorCode::kUnsupported,
            fmt::format("it speaks version {} of the transfer protocol and this host version {}: "
                        "install the same waft on both ({})",
                        error.version, kProtocolVersion, error.message),
            EPROTONOSUPPORT};
  }
  switch (error.code) {
    case WireError::kNoRoom:
      return {ErrorCode::kRollBack, error.message, ENOSPC};
    case WireError::kLimit:
      return {ErrorCode::kRollBack, error.message, EFBIG};
    case WireError::kRefused:
      return {ErrorCode::kRollBack, error.message, EACCES};
    case WireError::kChecksum:
      return {ErrorCode::kDataLoss, error.message, EBADMSG};
    case WireError::kCancelled:
      return {ErrorCode::kRollBack, error.message, ECANCELED};
    default:
      return {ErrorCode::kRollBack, error.message, EPROTO};
  }
}

Result<base::UniqueFd> ConnectTo(const addrinfo& address, Deadline deadline) {
  base::UniqueFd socket(::socket(
      address.ai_family, address.ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, address.ai_protocol));
  if (!socket) return base::FailErrno("socket");
  if (::connect(socket.get(), address.ai_addr, address.ai_addrlen) == 0) return socket;
  if (errno != EINPROGRESS) return base::FailErrno("connect");
  pollfd fd{socket.get(), POLLOUT, 0};
  while (fd.revents == 0) {
    if (deadline.Passed()) return std::unexpected(Error::FromErrno("connect", ETIMEDOUT));
    if (::poll(&fd, 1, deadline.LeftMs() + 1) < 0 && errno != EINTR) return base::FailErrno("poll");
  }
  int error = 0;
  socklen_t length = sizeof error;
  ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &length);
  if (error != 0) return std::unexpected(Error::FromErrno("connect", error));
  return socket;
}

Result<base::UniqueFd> ConnectTo(const std::string& address, uint16_t port, Deadline deadline) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* list = nullptr;
  if (const int error = ::getaddrinfo(address.c_str(), fmt::to_string(port).c_str(), &hints, &list);
      error != 0) {
    return base::Fail(ErrorCode::kBadArgument,
                      fmt::format("'{}' has no address: {}", address, ::gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(list, ::freeaddrinfo);
  Result<base::UniqueFd> socket = base::Fail(ErrorCode::kBadArgument, "no address");
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    socket = ConnectTo(*entry, deadline);
    if (socket) break;
  }
  return socket;
}

}  // namespace

struct ImageSender::Session {
  std::string peer;  // for messages
  std::chrono::milliseconds timeout{};
  std::unique_ptr<CancelEvent> cancel;
  std::unique_ptr<TlsStream> stream;
  std::string input;

  std::array<char, kBufferBytes> out;
  size_t used = 0;

  ImageSet images;
  uint64_t sent_bytes = 0;
  bool fault_reached = false;

  // The destination's next frame, where an Error frame is that error.
  Result<Frame> Receive(Deadline deadline);
  // What went wrong there, given what went wrong here when writing to it.
  Error Explain(Error error);
  Status SayHello(std::string_view migration_id, const Token& token, Deadline deadline);

  Status Append(const Frame& frame);
  Status Flush();
  Status SendFile(const ImageFile& file, const std::function<void(uint64_t, uint64_t)>& progress);
  Status SendAll(const std::function<void(uint64_t, uint64_t)>& progress);
  void TellPeer(const Error& error);
};

Result<Frame> ImageSender::Session::Receive(Deadline deadline) {
  WAFT_ASSIGN(Frame frame, ReadFrame(*stream, &input, deadline, /*data_allowed=*/false));
  if (const auto* error = std::get_if<ErrorFrame>(&frame)) {
    return std::unexpected(FromPeer(*error));
  }
  return frame;
}

Error ImageSender::Session::Explain(Error error) {
  if (error.error_number() != ECONNRESET) return error;
  Result<Frame> frame = Receive(Deadline::After(std::min(timeout, kLastWords)));
  if (frame || frame.error().error_number() == ETIMEDOUT) return error;
  return std::move(frame).error();
}

Status ImageSender::Session::SayHello(std::string_view migration_id, const Token& token,
                                      Deadline deadline) {
  const std::string hello = Encode(Hello{kProtocolVersion, token, std::string(migration_id)});
  if (Result<bool> wrote = stream->Write(hello, deadline); !wrote) {
    return std::unexpected(Explain(std::move(wrote).error()));
  }
  // With TLS 1.3 our handshake ends before the server has looked at our certificate: a refusal of
  // it arrives here, too.
  WAFT_ASSIGN(const Frame frame, Receive(deadline));
  const auto* welcome = std::get_if<Welcome>(&frame);
  if (welcome == nullptr || welcome->version != kProtocolVersion) {
    return std::unexpected(
        Error(ErrorCode::kRollBack, "it did not answer Hello with Welcome", EPROTO));
  }
  return {};
}

Status ImageSender::Session::Append(const Frame& frame) {
  const std::string bytes = Encode(frame);
  if (bytes.size() > out.size() - used) WAFT_TRY(Flush());
  std::ranges::copy(bytes, out.begin() + static_cast<ptrdiff_t>(used));
  used += bytes.size();
  return {};
}

Status ImageSender::Session::Flush() {
  if (used == 0) return {};
  const Deadline deadline = Deadline::After(timeout);
  Result<bool> wrote =
      stream->Write({out.data(), std::exchange(used, 0)}, deadline, /*stop_on_input=*/true);
  if (!wrote) return std::unexpected(Explain(std::move(wrote).error()));
  Result<bool> input_waits = !*wrote ? true : stream->HasInput(deadline);
  if (!input_waits) return std::unexpected(std::move(input_waits).error());
  if (!*input_waits) return {};
  // Before Finish the destination speaks only to end it.
  WAFT_TRY(Receive(deadline));
  return std::unexpected(
      Error(ErrorCode::kRollBack, "it sent a frame that only makes sense after Finish", EPROTO));
}

Status ImageSender::Session::SendFile(const ImageFile& file,
                                      const std::function<void(uint64_t, uint64_t)>& progress) {
  base::UniqueFd fd(
      ::openat(images.directory.get(), file.name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd) return base::FailErrno(fmt::format("open {} at the source", file.name));
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> hash(XXH3_createState(),
                                                                      XXH3_freeState);
  if (!hash) return base::Fail(ErrorCode::kFatal, "XXH3_createState");
  XXH3_128bits_reset(hash.get());

  WAFT_TRY(Append(FileBegin{file.size_bytes, file.name}));
  for (uint64_t left = file.size_bytes; left > 0;) {
    if (out.size() - used < kHeaderBytes + kMinDataBytes) WAFT_TRY(Flush());
    char* const data = out.data() + used + kHeaderBytes;
    const size_t wanted = std::min<uint64_t>(left, out.size() - used - kHeaderBytes);
    const ssize_t got = ::read(fd.get(), data, wanted);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return base::FailErrno(fmt::format("read {} at the source", file.name));
    if (got == 0) {
      return base::Fail(
          ErrorCode::kDataLoss,
          fmt::format("{} became shorter at the source while it was sent", file.name));
    }
    const auto size = static_cast<size_t>(got);
    XXH3_128bits_update(hash.get(), data, size);
    const auto header = EncodeHeader({FrameType::kData, static_cast<uint32_t>(size)});
    std::ranges::copy(header, out.begin() + static_cast<ptrdiff_t>(used));
    used += kHeaderBytes + size;
    left -= size;
    sent_bytes += size;
    if (used == out.size()) WAFT_TRY(Flush());
    if (!fault_reached && sent_bytes * 2 >= images.bytes) {
      fault_reached = true;
      WAFT_TRY(Flush());
      WAFT_TRY(base::FaultPoint("source-sending"));
    }
    if (progress) progress(sent_bytes, images.bytes);
  }
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(hash.get()));
  FileEnd end;
  std::ranges::copy(canonical.digest, end.checksum.begin());
  return Append(end);
}

Status ImageSender::Session::SendAll(const std::function<void(uint64_t, uint64_t)>& progress) {
  const auto files = static_cast<uint32_t>(images.files.size());
  WAFT_TRY(Append(Begin{files, images.bytes}));
  // A limit or a full disk there is known from this frame alone: it goes ahead.
  WAFT_TRY(Flush());
  for (const ImageFile& file : images.files) WAFT_TRY(SendFile(file, progress));

  // Not Flush(): the answer to Finish may be here before the write has returned.
  WAFT_TRY(Append(Finish{files, images.bytes}));
  const Deadline deadline = Deadline::After(timeout);
  Result<bool> wrote = stream->Write({out.data(), std::exchange(used, 0)}, deadline);
  if (!wrote) return std::unexpected(Explain(std::move(wrote).error()));
  WAFT_ASSIGN(const Frame frame, Receive(deadline));
  const auto* done = std::get_if<Done>(&frame);
  if (done == nullptr || done->files != files || done->bytes != images.bytes) {
    return std::unexpected(
        Error(ErrorCode::kDataLoss, "it did not confirm the image set that was sent", EPROTO));
  }
  return {};
}

// So that the other side can say why, too. Nothing more can be done if this fails.
void ImageSender::Session::TellPeer(const Error& error) {
  stream->SetCancel(nullptr);
  const WireError code =
      error.error_number() == ECANCELED ? WireError::kCancelled : WireError::kInternal;
  if (const auto told = stream->Write(Encode(ErrorFrame{kProtocolVersion, code, error.message()}),
                                      Deadline::After(std::min(timeout, kLastWords)));
      !told) {
    base::LogDebug("{}: it could not be told: {}", peer, told.error().message());
  }
}

ImageSender::ImageSender(std::unique_ptr<Session> session) : session_(std::move(session)) {}
ImageSender::ImageSender(ImageSender&&) noexcept = default;
ImageSender& ImageSender::operator=(ImageSender&&) noexcept = default;
ImageSender::~ImageSender() = default;

Result<ImageSender> ImageSender::Connect(const std::string& address, uint16_t port,
                                         const std::string& host_name, const TlsContext& context,
                                         std::string_view migration_id, const Token& token,
                                         std::chrono::milliseconds timeout) {
  WAFT_TRY(CheckMigrationId(migration_id));
  auto session = std::make_unique<Session>();
  session->peer = fmt::format("image transfer to {} ({} port {})", host_name, address, port);
  session->timeout = timeout;
  WAFT_ASSIGN(session->cancel, CancelEvent::Create());
  const Deadline deadline = Deadline::After(timeout);
  const auto connect = [&]() -> Status {
    WAFT_ASSIGN(base::UniqueFd socket, ConnectTo(address, port, deadline));
    WAFT_ASSIGN(session->stream, TlsStream::Connect(std::move(socket), context, host_name, deadline,
                                                    session->cancel.get()));
    return session->SayHello(migration_id, token, deadline);
  };
  if (const Status status = connect(); !status) {
    return std::unexpected(status.error().WithContext(session->peer));
  }
  return ImageSender(std::move(session));
}

Result<SendSummary> ImageSender::Send(const fs::path& directory,
                                      const std::function<void(uint64_t, uint64_t)>& progress) {
  Session& session = *session_;
  const auto send = [&]() -> Status {
    WAFT_ASSIGN(session.images, ListImages(directory));
    return session.SendAll(progress);
  };
  if (const Status status = send(); !status) {
    session.TellPeer(status.error());
    return std::unexpected(status.error().WithContext(session.peer));
  }
  return SendSummary{static_cast<uint32_t>(session.images.files.size()), session.images.bytes,
                     session.stream->sent_bytes()};
}

void ImageSender::Cancel() { session_->cancel->Cancel(); }

}  // namespace waft::transfer
