#include "transfer/tls_context.h"

#include <fmt/format.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>

#include <array>

#include "base/file.h"

namespace waft::transfer {
namespace {

using base::ErrorCode;
using base::Fail;
using base::Status;

constexpr std::string_view kHelp = "`waft cert init` makes certificates";

// What SSL_read() takes from the socket at once: several records for one system call.
constexpr size_t kReadBufferBytes = 256 << 10;

std::string TimeText(const ASN1_TIME* time) {
  const std::unique_ptr<BIO, decltype(&BIO_free)> memory(BIO_new(BIO_s_mem()), BIO_free);
  if (!memory || time == nullptr || ASN1_TIME_print(memory.get(), time) != 1) return "unknown date";
  char* text = nullptr;
  const long length = BIO_get_mem_data(memory.get(), &text);
  return {text, static_cast<size_t>(length)};
}

// The reason of a file that OpenSSL would not have: first whether it can be read at all.
Status CheckReadable(const std::filesystem::path& path) {
  const auto text = base::ReadFile(path, 1 << 20);
  if (text) return {};
  return Fail(ErrorCode::kBadArgument, fmt::format("{} ({})", text.error().message(), kHelp));
}

std::unexpected<base::Error> FailFile(const std::filesystem::path& path, std::string_view what) {
  return Fail(ErrorCode::kBadArgument,
              fmt::format("{} {} ({}; {})", path.string(), what, TakeSslErrors(), kHelp));
}

// Whether a peer with the same CA will accept our own certificate, in both roles.
Status CheckOwnCertificate(SSL_CTX* context, const TlsFiles& files) {
  X509* certificate = SSL_CTX_get0_certificate(context);
  STACK_OF(X509)* chain = nullptr;
  SSL_CTX_get0_chain_certs(context, static_cast<void*>(&chain));
  for (const int purpose : {X509_PURPOSE_SSL_SERVER, X509_PURPOSE_SSL_CLIENT}) {
    const std::unique_ptr<X509_STORE_CTX, decltype(&X509_STORE_CTX_free)> check(
        X509_STORE_CTX_new(), X509_STORE_CTX_free);
    if (!check || X509_STORE_CTX_init(check.get(), SSL_CTX_get_cert_store(context), certificate,
                                      chain) != 1) {
      return Fail(ErrorCode::kFatal, TakeSslErrors());
    }
    X509_STORE_CTX_set_purpose(check.get(), purpose);
    if (X509_verify_cert(check.get()) == 1) continue;
    const std::string why = DescribeVerifyError(X509_STORE_CTX_get_error(check.get()),
                                                X509_STORE_CTX_get_current_cert(check.get()));
    TakeSslErrors();
    return Fail(ErrorCode::kBadArgument,
                fmt::format("{}, checked against {}: it {}", files.certificate.string(),
                            files.ca.string(), why));
  }
  return {};
}

}  // namespace

std::string TakeSslErrors() {
  const unsigned long code = ERR_peek_last_error();
  ERR_clear_error();
  if (code == 0) return "no details";
  if (const char* reason = ERR_reason_error_string(code)) return reason;
  std::array<char, 256> text{};
  ERR_error_string_n(code, text.data(), text.size());
  return text.data();
}

std::string DescribeVerifyError(long code, const X509* certificate) {
  switch (code) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return fmt::format(
          "has expired{}: make new ones with `waft cert init`",
          certificate ? fmt::format(" ({})", TimeText(X509_get0_notAfter(certificate))) : "");
    case X509_V_ERR_CERT_NOT_YET_VALID:
      return fmt::format(
          "is not valid yet{}: set the clocks of both hosts, or make new "
          "certificates with `waft cert init`",
          certificate ? fmt::format(" ({})", TimeText(X509_get0_notBefore(certificate))) : "");
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH:
      return "is another host's: use the name it was made for, or make one for this "
             "name with `waft cert init`";
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
      return "is not signed by this CA: give both hosts certificates of one "
             "`waft cert init`";
    case X509_V_ERR_INVALID_PURPOSE:
      return "must be allowed for both TLS server and client authentication: make "
             "one with `waft cert init`";
    default:
      return fmt::format("is not acceptable: {} ({})", X509_verify_cert_error_string(code), kHelp);
  }
}

base::Result<TlsContext> TlsContext::Create(const TlsFiles& files) {
  ERR_clear_error();
  WAFT_TRY(CheckReadable(files.ca));
  WAFT_TRY(CheckReadable(files.certificate));
  WAFT_TRY(CheckReadable(files.key));

  std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_method()), SSL_CTX_free);
  if (!context) return Fail(ErrorCode::kFatal, TakeSslErrors());
  SSL_CTX* ctx = context.get();
  // AES-128-GCM first: the fastest with AES-NI, and no weaker where it matters here.
  if (SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_max_proto_version(ctx, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_ciphersuites(ctx,
                               "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:"
                               "TLS_CHACHA20_POLY1305_SHA256") != 1) {
    return Fail(ErrorCode::kFatal, TakeSslErrors());
  }
  SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(ctx, 0);
  SSL_CTX_set_read_ahead(ctx, 1);
  SSL_CTX_set_default_read_buffer_len(ctx, kReadBufferBytes);
  // The default asks for the passphrase of an encrypted key on the terminal, and waits.
  SSL_CTX_set_default_passwd_cb(ctx, [](char*, int, int, void*) { return -1; });

  if (SSL_CTX_load_verify_locations(ctx, files.ca.c_str(), nullptr) != 1) {
    return FailFile(files.ca, "holds no CA certificate");
  }
  if (SSL_CTX_use_certificate_chain_file(ctx, files.certificate.c_str()) != 1) {
    return FailFile(files.certificate, "holds no certificate");
  }
  if (SSL_CTX_use_PrivateKey_file(ctx, files.key.c_str(), SSL_FILETYPE_PEM) != 1) {
    return FailFile(files.key, fmt::format("holds no unencrypted private key that belongs to {}",
                                           files.certificate.string()));
  }
  WAFT_TRY(CheckOwnCertificate(ctx, files));
  return TlsContext(std::move(context));
}

}  // namespace waft::transfer
