#pragma once

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>

#include "transfer/tls_context.h"

// Certificates for tests, made as `waft cert init` would make them, and wrong ones on request.
namespace waft::transfer::testing {

struct FreeOpenSsl {
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(FILE* file) const { std::fclose(file); }
};
using Key = std::unique_ptr<EVP_PKEY, FreeOpenSsl>;
using Certificate = std::unique_ptr<X509, FreeOpenSsl>;

inline void Check(bool ok) {
  if (!ok) std::abort();
}

struct CertificateOptions {
  std::string san = "DNS:destination.test,IP:127.0.0.1";
  std::string usage = "serverAuth,clientAuth";
  long from_s = -3600;  // of validity, from now
  long to_s = 3600;
};

class TestCa {
 public:
  explicit TestCa(std::filesystem::path directory, const std::string& name = "test CA")
      : directory_(std::move(directory)), key_(EVP_EC_gen("P-256")) {
    std::filesystem::create_directories(directory_);
    certificate_ = Make(name, key_.get(), nullptr, {.to_s = 7200});
    Write("ca.crt", certificate_.get());
  }

  TlsFiles Issue(const std::string& name, const CertificateOptions& options = {}) {
    const Key key(EVP_EC_gen("P-256"));
    const Certificate certificate = Make(name, key.get(), certificate_.get(), options);
    Write(name + ".crt", certificate.get());
    Write(name + ".key", key.get());
    return {directory_ / "ca.crt", directory_ / (name + ".crt"), directory_ / (name + ".key")};
  }

 private:
  Certificate Make(const std::string& name, EVP_PKEY* key, X509* issuer,
                   const CertificateOptions& options) {
    Check(key != nullptr);
    Certificate certificate(X509_new());
    X509* x = certificate.get();
    X509_set_version(x, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(x), ++serial_);
    X509_gmtime_adj(X509_getm_notBefore(x), options.from_s);
    X509_gmtime_adj(X509_getm_notAfter(x), options.to_s);
    X509_set_pubkey(x, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_ASC,
                               reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
    X509_set_issuer_name(x, X509_get_subject_name(issuer == nullptr ? x : issuer));
    if (issuer == nullptr) {
      Extend(x, NID_basic_constraints, "critical,CA:TRUE");
    } else {
      Extend(x, NID_subject_alt_name, options.san);
      Extend(x, NID_ext_key_usage, options.usage);
    }
    Check(X509_sign(x, key_.get(), EVP_sha256()) > 0);
    return certificate;
  }

  static void Extend(X509* certificate, int nid, const std::string& value) {
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, nid, value.c_str());
    Check(extension != nullptr && X509_add_ext(certificate, extension, -1) == 1);
    X509_EXTENSION_free(extension);
  }

  std::unique_ptr<FILE, FreeOpenSsl> Open(const std::string& name) {
    std::unique_ptr<FILE, FreeOpenSsl> file(std::fopen((directory_ / name).c_str(), "we"));
    Check(file != nullptr);
    return file;
  }
  void Write(const std::string& name, X509* certificate) {
    Check(PEM_write_X509(Open(name).get(), certificate) == 1);
  }
  void Write(const std::string& name, EVP_PKEY* key) {
    Check(PEM_write_PrivateKey(Open(name).get(), key, nullptr, nullptr, 0, nullptr, nullptr) == 1);
  }

  std::filesystem::path directory_;
  Key key_;
  Certificate certificate_;
  long serial_ = 0;
};

}  // namespace waft::transfer::testing
