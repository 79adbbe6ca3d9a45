#pragma once

#include <openssl/types.h>

#include <filesystem>
#include <memory>
#include <string>

#include "base/error.h"

namespace waft::transfer {

// What one host proves itself with and checks others by; all PEM.
struct TlsFiles {
  std::filesystem::path ca;           // whoever it signed belongs to us
  std::filesystem::path certificate;  // this host's, intermediate CAs after it
  std::filesystem::path key;          // not encrypted
};

// The settings of every data stream of this host, in either role: TLS 1.3 only, the peer's
// certificate required and checked against the CA, no session resumption (each stream checks anew).
// Shares ownership of an SSL_CTX, so copies are cheap; any thread may use it.
class TlsContext {
 public:
  // Reads the files and checks what peers would check: dates, signature, purpose, matching key. The
  // error says which file and what to do. Blocks on reading files only.
  static base::Result<TlsContext> Create(const TlsFiles& files);

  SSL_CTX* get() const { return context_.get(); }

 private:
  explicit TlsContext(std::shared_ptr<SSL_CTX> context) : context_(std::move(context)) {}
  std::shared_ptr<SSL_CTX> context_;
};

// What is wrong with a certificate and what to do about it, from an X509_V_ERR_* code: "has expired
// (Jan  1 00:00:00 2025 GMT): ...". `certificate` adds the date and may be null.
std::string DescribeVerifyError(long code, const X509* certificate);

// Empties this thread's OpenSSL error queue and returns its last entry's text.
std::string TakeSslErrors();

}  // namespace waft::transfer
