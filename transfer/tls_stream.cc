#include "transfer/tls_stream.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <utility>

namespace waft::transfer {
namespace {

using base::Deadline;
using base::Error;
using base::ErrorCode;
using base::Result;
using base::Status;

// RFC 8446 5.5 allows an AES-GCM key 2^24.5 records, about 380 GiB, and OpenSSL does not count. A
// new key costs microseconds; changed this often, every transfer of some size tries it.
constexpr uint64_t kKeyUpdateBytes = 256 << 20;

constexpr std::string_view kNotTls =
    "the other side does not speak TLS 1.3: is this waft's data port?";

constexpr std::string_view kFix = "give both hosts certificates of one `waft cert init`";

Error TlsError(std::string message, int error_number = EPROTO) {
  return {ErrorCode::kRollBack, std::move(message), error_number};
}

// What the last entry of OpenSSL's error queue means for whoever runs the two hosts.
std::string DescribeSslError(unsigned long code) {
  switch (ERR_GET_REASON(code)) {
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
    case SSL_R_TLSV1_ALERT_DECRYPT_ERROR:  // a CA of the same name with another key
      return fmt::format(
          "the other side refuses this host's certificate: another CA signed it ({})", kFix);
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
      return fmt::format("the other side refuses this host's certificate: it has expired ({})",
                         kFix);
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
      return fmt::format("the other side refuses this host's certificate ({})", kFix);
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
      return fmt::format("a certificate is required and none was shown ({})", kFix);
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_HTTP_REQUEST:
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
    case SSL_R_PACKET_LENGTH_TOO_LONG:
    case SSL_R_BAD_RECORD_TYPE:
      return std::string(kNotTls);
    default:
      return fmt::format("TLS: {}", TakeSslErrors());
  }
}

}  // namespace

void TlsStream::FreeSsl::operator()(SSL* ssl) const { SSL_free(ssl); }

TlsStream::TlsStream(base::UniqueFd socket, const CancelEvent* cancel)
    : socket_(std::move(socket)), cancel_(cancel) {}

TlsStream::~TlsStream() = default;

const BIO_METHOD* TlsStream::BioMethod() {
  static BIO_METHOD* const kMade = [] {
    BIO_METHOD* method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "waft");
    BIO_meth_set_write(method, BioWrite);
    BIO_meth_set_read(method, BioRead);
    BIO_meth_set_ctrl(method, [](BIO*, int command, long, void*) -> long {
      return command == BIO_CTRL_FLUSH ? 1 : 0;  // nothing is held back here
    });
    return method;
  }();
  return kMade;
}

// OpenSSL reads on by itself through records that carry no data, such as key updates. A peer may
// send those without end, so the deadline and the cancel event are looked at here, once per read.
Status TlsStream::CheckInterrupted(Deadline deadline) const {
  if (cancel_ != nullptr && cancel_->cancelled()) {
    return std::unexpected(TlsError("cancelled", ECANCELED));
  }
  if (deadline.Passed()) {
    return std::unexpected(
        Error(ErrorCode::kRetry, "the other side did not go on in time", ETIMEDOUT));
  }
  return {};
}

int TlsStream::BioWrite(BIO* bio, const char* data, int size) {
  auto* self = static_cast<TlsStream*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  const ssize_t sent =
      ::send(self->socket_.get(), data, static_cast<size_t>(size), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent >= 0) {
    self->sent_bytes_ += static_cast<uint64_t>(sent);
    return static_cast<int>(sent);
  }
  if (errno == EAGAIN || errno == EINTR) {
    BIO_set_retry_write(bio);
  } else {
    self->SetIoError(TlsError("the other side closed the connection", ECONNRESET));
  }
  return -1;
}

int TlsStream::BioRead(BIO* bio, char* data, int size) {
  auto* self = static_cast<TlsStream*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  if (self->deadline_) {
    if (const Status status = self->CheckInterrupted(*self->deadline_); !status) {
      self->SetIoError(status.error());
      return -1;
    }
  }
  const ssize_t got = ::recv(self->socket_.get(), data, static_cast<size_t>(size), MSG_DONTWAIT);
  if (got > 0) return static_cast<int>(got);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
    BIO_set_retry_read(bio);
  } else {
    self->SetIoError(TlsError("the other side closed the connection", ECONNRESET));
  }
  return -1;
}

Status TlsStream::Init(const TlsContext& context) {
  ERR_clear_error();
  ssl_.reset(SSL_new(context.get()));
  BIO* bio = ssl_ ? BIO_new(BioMethod()) : nullptr;
  if (bio == nullptr) return base::Fail(ErrorCode::kFatal, TakeSslErrors());
  BIO_set_data(bio, this);
  BIO_set_init(bio, 1);
  SSL_set_bio(ssl_.get(), bio, bio);
  // Frames are gathered into large writes already: waiting for more only adds delay.
  const int on = 1;
  ::setsockopt(socket_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return {};
}

Result<std::unique_ptr<TlsStream>> TlsStream::Connect(base::UniqueFd socket,
                                                      const TlsContext& context,
                                                      const std::string& host_name,
                                                      Deadline deadline,
                                                      const CancelEvent* cancel) {
  std::unique_ptr<TlsStream> stream(new TlsStream(std::move(socket), cancel));
  WAFT_TRY(stream->Init(context));
  SSL* ssl = stream->ssl_.get();
  SSL_set_connect_state(ssl);
  in6_addr address{};
  const bool is_ip = ::inet_pton(AF_INET, host_name.c_str(), &address) == 1 ||
                     ::inet_pton(AF_INET6, host_name.c_str(), &address) == 1;
  // The subject's common name proves nothing since RFC 6125: only subjectAltName counts.
  SSL_set_hostflags(ssl,
                    X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
  const bool accepted =
      is_ip ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), host_name.c_str()) == 1
            : !host_name.empty() && SSL_set1_host(ssl, host_name.c_str()) == 1 &&
                  SSL_set_tlsext_host_name(ssl, host_name.c_str()) == 1;
  if (!accepted) {
    TakeSslErrors();
    return base::Fail(ErrorCode::kBadArgument, fmt::format("'{}' is no host name", host_name));
  }
  WAFT_TRY(stream->Handshake(deadline));
  return stream;
}

Result<std::unique_ptr<TlsStream>> TlsStream::Accept(base::UniqueFd socket,
                                                     const TlsContext& context, Deadline deadline,
                                                     const CancelEvent* cancel) {
  std::unique_ptr<TlsStream> stream(new TlsStream(std::move(socket), cancel));
  WAFT_TRY(stream->Init(context));
  SSL_set_accept_state(stream->ssl_.get());
  if (Status status = stream->Handshake(deadline); !status) {
    // An alert that tells the peer what is wrong is on its way, unless it was the peer that
    // stalled.
    const int error_number = status.error().error_number();
    if (error_number != ETIMEDOUT && error_number != ECANCELED) stream->Drain(deadline);
    return std::unexpected(std::move(status).error());
  }
  return stream;
}

Status TlsStream::Handshake(Deadline deadline) {
  deadline_ = deadline;
  for (;;) {
    ERR_clear_error();
    const int result = SSL_do_handshake(ssl_.get());
    if (result == 1) return {};
    WAFT_TRY(Resume(result, /*writing=*/false, 0, deadline));
  }
}

Result<short> TlsStream::Poll(short events, Deadline deadline) {
  for (;;) {
    WAFT_TRY(CheckInterrupted(deadline));
    std::array<pollfd, 2> fds = {
        {{socket_.get(), events, 0}, {cancel_ ? cancel_->fd() : -1, POLLIN, 0}}};
    // LeftMs() rounds down: without the 1 the last millisecond would be spent spinning.
    if (::poll(fds.data(), fds.size(), deadline.LeftMs() + 1) < 0 && errno != EINTR) {
      return base::FailErrno("poll");
    }
    // Errors and hang-ups count as anything: the next read or write says what they are.
    if (fds[0].revents != 0) return fds[0].revents;
  }
}

Result<short> TlsStream::Resume(int result, bool writing, short more_events, Deadline deadline) {
  const int error = SSL_get_error(ssl_.get(), result);
  if (error == SSL_ERROR_WANT_READ) return Poll(static_cast<short>(POLLIN | more_events), deadline);
  if (error == SSL_ERROR_WANT_WRITE) {
    return Poll(static_cast<short>(POLLOUT | more_events), deadline);
  }
  if (writing) write_ended_ = true;
  return std::unexpected(ErrorOf(error));
}

Error TlsStream::ErrorOf(int ssl_error) {
  const unsigned long code = ERR_peek_last_error();
  const long verified = SSL_get_verify_result(ssl_.get());
  if (verified != X509_V_OK && !SSL_is_init_finished(ssl_.get())) {
    ERR_clear_error();
    return TlsError(
        fmt::format("the other side's certificate {}", DescribeVerifyError(verified, nullptr)));
  }
  if (io_error_) {
    ERR_clear_error();
    return *std::exchange(io_error_, std::nullopt);
  }
  if (ssl_error == SSL_ERROR_ZERO_RETURN) {
    return TlsError("the other side closed the connection", ECONNRESET);
  }
  std::string message = DescribeSslError(code);
  ERR_clear_error();
  return TlsError(std::move(message));
}

Status TlsStream::Read(char* data, size_t size, Deadline deadline) {
  deadline_ = deadline;
  while (size > 0) {
    size_t got = 0;
    ERR_clear_error();
    const int result = SSL_read_ex(ssl_.get(), data, size, &got);
    if (result != 1) {
      WAFT_TRY(Resume(result, /*writing=*/false, 0, deadline));
      continue;
    }
    data += got;
    size -= got;
  }
  return {};
}

Result<bool> TlsStream::HasInput(Deadline deadline) {
  deadline_ = deadline;
  char byte = 0;
  size_t got = 0;
  ERR_clear_error();
  const int result = SSL_peek_ex(ssl_.get(), &byte, 1, &got);
  if (result == 1) return true;
  const int error = SSL_get_error(ssl_.get(), result);
  if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) return false;
  return std::unexpected(ErrorOf(error));
}

Result<bool> TlsStream::Write(std::string_view bytes, Deadline deadline, bool stop_on_input) {
  if (write_ended_) {
    return std::unexpected(TlsError("an earlier write to this stream failed", EPIPE));
  }
  WAFT_TRY(CheckInterrupted(deadline));
  deadline_ = deadline;
  if (key_used_bytes_ += bytes.size(); key_used_bytes_ > kKeyUpdateBytes) {
    if (SSL_key_update(ssl_.get(), SSL_KEY_UPDATE_NOT_REQUESTED) != 1) {
      return std::unexpected(TlsError(fmt::format("TLS: {}", TakeSslErrors())));
    }
    key_used_bytes_ = 0;
  }
  for (;;) {
    size_t wrote = 0;
    ERR_clear_error();
    const int result = SSL_write_ex(ssl_.get(), bytes.data(), bytes.size(), &wrote);
    if (result == 1) return true;  // without SSL_MODE_ENABLE_PARTIAL_WRITE that is all of it
    const Result<short> events =
        Resume(result, /*writing=*/true, stop_on_input ? POLLIN : 0, deadline);
    if (!events) {
      write_ended_ = true;
      return std::unexpected(events.error());
    }
    if (stop_on_input && (*events & POLLIN) != 0) {
      const Result<bool> input = HasInput(deadline);
      if (!input || *input) write_ended_ = true;
      if (!input) return std::unexpected(input.error());
      if (*input) return false;
    }
  }
}

void TlsStream::Drain(Deadline deadline) {
  ::shutdown(socket_.get(), SHUT_WR);
  std::array<char, 16 << 10> scrap;
  while (Poll(POLLIN, deadline)) {
    const ssize_t got = ::recv(socket_.get(), scrap.data(), scrap.size(), MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return;
  }
}

Result<Frame> ReadFrame(TlsStream& stream, std::string* buffer, Deadline deadline,
                        bool data_allowed) {
  std::array<char, kHeaderBytes> bytes;
  WAFT_TRY(stream.Read(bytes.data(), bytes.size(), deadline));
  WAFT_ASSIGN(const FrameHeader header, DecodeHeader({bytes.data(), bytes.size()}));
  if (header.type == FrameType::kData && !data_allowed) {
    return std::unexpected(TlsError("Data frame out of order"));
  }
  if (buffer->size() < header.payload_bytes) buffer->resize(header.payload_bytes);
  WAFT_TRY(stream.Read(buffer->data(), header.payload_bytes, deadline));
  return DecodePayload(header.type, std::string_view(*buffer).substr(0, header.payload_bytes));
}

}  // namespace waft::transfer
