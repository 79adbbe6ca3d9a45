#include "cli/certificates.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <openssl/bio.h>
#include <openssl/bn.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <ctime>
#include <memory>
#include <optional>
#include <set>
#include <system_error>

#include "base/file.h"

namespace waft::cli {
namespace fs = std::filesystem;
using base::ErrorCode;
using base::Fail;
using base::Result;
using base::Status;
namespace {

constexpr int kAuthorityDays = 3650;
constexpr long kDaySeconds = 86400;
// Certificates are valid from a little in the past: the hosts' clocks may be behind ours.
constexpr long kBackdateSeconds = 3600;
constexpr size_t kMaxNameLength = 64;  // of an X.509 common name
constexpr std::string_view kAuthorityName = "ca";

template <auto Free>
struct Deleter {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};
using Key = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Deleter<X509_free>>;
using Bio = std::unique_ptr<BIO, Deleter<BIO_free_all>>;
using BigNumber = std::unique_ptr<BIGNUM, Deleter<BN_free>>;
using Extension = std::unique_ptr<X509_EXTENSION, Deleter<X509_EXTENSION_free>>;
using Store = std::unique_ptr<X509_STORE, Deleter<X509_STORE_free>>;
using StoreContext = std::unique_ptr<X509_STORE_CTX, Deleter<X509_STORE_CTX_free>>;

std::unexpected<base::Error> FailOpenSsl(std::string_view what) {
  const unsigned long code = ERR_get_error();
  const char* reason = ERR_reason_error_string(code);
  ERR_clear_error();
  return Fail(ErrorCode::kFatal, fmt::format("{}: {}", what, reason == nullptr ? "?" : reason));
}

Status CheckName(std::string_view name) {
  const auto fail = [whole = name](std::string_view why) {
    return Fail(ErrorCode::kBadArgument,
                fmt::format("'{}' is no host name for a certificate: {}", whole, why));
  };
  if (name.empty() || name.size() > kMaxNameLength) {
    return fail(fmt::format("it must have 1 to {} characters", kMaxNameLength));
  }
  if (name == kAuthorityName) return fail("ca.crt and ca.key are the authority's files");
  const bool good_characters = std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return (std::isalnum(c) != 0 && c < 0x80) || c == '-' || c == '.';
  });
  if (!good_characters) return fail("use letters, digits, '-' and '.' only");
  while (true) {
    const std::string_view label = name.substr(0, name.find('.'));
    if (label.empty() || label.front() == '-' || label.back() == '-' || label.size() > 63) {
      return fail("between its dots are 1 to 63 characters, no '-' first or last");
    }
    if (label.size() == name.size()) return {};
    name.remove_prefix(label.size() + 1);
  }
}

bool IsAddress(const std::string& text) {
  std::array<unsigned char, 16> bytes{};
  return ::inet_pton(AF_INET, text.c_str(), bytes.data()) == 1 ||
         ::inet_pton(AF_INET6, text.c_str(), bytes.data()) == 1;
}

bool Exists(const fs::path& path) {
  std::error_code unreadable;  // then opening it says why
  return fs::exists(path, unreadable);
}

template <typename Write>
Status WritePem(const fs::path& path, mode_t mode, Write write) {
  const Bio bio(BIO_new(BIO_s_mem()));
  if (!bio || write(bio.get()) != 1) return FailOpenSsl("cannot encode " + path.string());
  char* data = nullptr;
  const long len_bytes = BIO_get_mem_data(bio.get(), &data);
  return base::WriteFileAtomically(path, {data, static_cast<size_t>(len_bytes)}, mode);
}

Result<Bio> OpenPem(const fs::path& path) {
  WAFT_ASSIGN(const std::string text, base::ReadFile(path, 1 << 20));
  Bio bio(BIO_new(BIO_s_mem()));
  if (!bio || BIO_write(bio.get(), text.data(), static_cast<int>(text.size())) !=
                  static_cast<int>(text.size())) {
    return FailOpenSsl("cannot hold " + path.string());
  }
  return bio;
}

Result<Certificate> ReadCertificate(const fs::path& path) {
  WAFT_ASSIGN(const Bio bio, OpenPem(path));
  Certificate certificate(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
  if (!certificate) return FailOpenSsl(path.string() + " holds no certificate");
  return certificate;
}

// The key in `path`; one is made and written there first if there is none.
Result<Key> ReadOrMakeKey(const fs::path& path) {
  if (!Exists(path)) {
    const Key key(EVP_EC_gen("P-256"));
    if (!key) return FailOpenSsl("cannot make a key");
    WAFT_TRY(WritePem(path, 0600, [&](BIO* bio) {
      return PEM_write_bio_PKCS8PrivateKey(bio, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
    }));
  }
  WAFT_ASSIGN(const Bio bio, OpenPem(path));
  // Without a callback OpenSSL would ask for a pass phrase on the terminal.
  const auto no_pass_phrase = [](char*, int, int, void*) { return -1; };
  Key key(PEM_read_bio_PrivateKey(bio.get(), nullptr, no_pass_phrase, nullptr));
  if (!key) return FailOpenSsl(path.string() + " holds no private key that can be read");
  return key;
}

Status AddExtension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const Extension extension(X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
  if (!extension || X509_add_ext(certificate, extension.get(), -1) != 1) {
    return FailOpenSsl(fmt::format("cannot add the extension {}={}", OBJ_nid2sn(nid), value));
  }
  return {};
}

struct Issue {
  std::string common_name;
  EVP_PKEY* key = nullptr;
  int days = 0;
  X509* issuer = nullptr;  // null: self-signed
  EVP_PKEY* issuer_key = nullptr;
  std::vector<std::pair<int, std::string>> extensions;
};

Result<Certificate> Sign(const Issue& issue) {
  Certificate certificate(X509_new());
  const BigNumber serial(BN_new());
  // 127 random bits: positive, and within the 20 octets of RFC 5280.
  if (!certificate || !serial || X509_set_version(certificate.get(), X509_VERSION_3) != 1 ||
      BN_rand(serial.get(), 127, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) != 1 ||
      BN_to_ASN1_INTEGER(serial.get(), X509_get_serialNumber(certificate.get())) == nullptr ||
      X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -kBackdateSeconds) == nullptr ||
      X509_gmtime_adj(X509_getm_notAfter(certificate.get()), issue.days * kDaySeconds) == nullptr ||
      X509_set_pubkey(certificate.get(), issue.key) != 1) {
    return FailOpenSsl("cannot fill in a certificate");
  }
  X509_NAME* subject = X509_get_subject_name(certificate.get());
  const auto* name = reinterpret_cast<const unsigned char*>(issue.common_name.c_str());
  if (X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8, name, -1, -1, 0) != 1) {
    return FailOpenSsl("cannot name a certificate");
  }
  X509* issuer = issue.issuer == nullptr ? certificate.get() : issue.issuer;
  if (X509_set_issuer_name(certificate.get(), X509_get_subject_name(issuer)) != 1) {
    return FailOpenSsl("cannot name a certificate's issuer");
  }
  for (const auto& [nid, value] : issue.extensions) {
    WAFT_TRY(AddExtension(certificate.get(), issuer, nid, value));
  }
  if (X509_sign(certificate.get(), issue.issuer_key, EVP_sha256()) == 0) {
    return FailOpenSsl("cannot sign a certificate");
  }
  return certificate;
}

Status WriteCertificate(const fs::path& path, X509* certificate) {
  return WritePem(path, 0644, [&](BIO* bio) { return PEM_write_bio_X509(bio, certificate); });
}

std::string Expiry(const X509* certificate) {
  std::tm time{};
  ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &time);
  return fmt::format("{:04}-{:02}-{:02}", time.tm_year + 1900, time.tm_mon + 1, time.tm_mday);
}

struct Authority {
  Certificate certificate;
  Key key;
  bool made = false;
};

Result<Authority> LoadOrMakeAuthority(const fs::path& directory) {
  const fs::path certificate_path = directory / "ca.crt";
  const fs::path key_path = directory / "ca.key";
  Authority authority;
  authority.made = !Exists(certificate_path);
  if (!authority.made && !Exists(key_path)) {
    return Fail(
        ErrorCode::kBadArgument,
        fmt::format("{} is there but {} is not: run this where ca.key is kept, or name an empty "
                    "directory to begin with a new authority",
                    certificate_path.string(), key_path.string()));
  }
  WAFT_ASSIGN(authority.key, ReadOrMakeKey(key_path));
  if (authority.made) {
    WAFT_ASSIGN(authority.certificate,
                Sign({.common_name = "waft certificate authority",
                      .key = authority.key.get(),
                      .days = kAuthorityDays,
                      .issuer_key = authority.key.get(),
                      .extensions = {{NID_basic_constraints, "critical,CA:TRUE,pathlen:0"},
                                     {NID_key_usage, "critical,keyCertSign,cRLSign"},
                                     {NID_subject_key_identifier, "hash"}}}));
    WAFT_TRY(WriteCertificate(certificate_path, authority.certificate.get()));
    return authority;
  }
  WAFT_ASSIGN(authority.certificate, ReadCertificate(certificate_path));
  if (X509_check_private_key(authority.certificate.get(), authority.key.get()) != 1) {
    return Fail(ErrorCode::kBadArgument, fmt::format("{} is not the key of {}", key_path.string(),
                                                     certificate_path.string()));
  }
  if (X509_check_ca(authority.certificate.get()) != 1) {
    return Fail(ErrorCode::kBadArgument, fmt::format("{} is not the certificate of an authority",
                                                     certificate_path.string()));
  }
  return authority;
}

// Why the host's existing certificate does not fit what is asked for; empty if it does.
Result<std::string> Misfit(X509* certificate, const CertificateHost& host,
                           const Authority& authority) {
  if (X509_check_host(certificate, host.name.data(), host.name.size(), 0, nullptr) != 1) {
    return "it does not name " + host.name;
  }
  for (const std::string& address : host.addresses) {
    if (X509_check_ip_asc(certificate, address.c_str(), 0) != 1)
      return "it does not name " + address;
  }
  const Store store(X509_STORE_new());
  const StoreContext context(X509_STORE_CTX_new());
  if (!store || !context || X509_STORE_add_cert(store.get(), authority.certificate.get()) != 1 ||
      X509_STORE_CTX_init(context.get(), store.get(), certificate, nullptr) != 1) {
    return FailOpenSsl("cannot set up verification");
  }
  if (X509_verify_cert(context.get()) == 1) return "";
  return std::string(X509_verify_cert_error_string(X509_STORE_CTX_get_error(context.get())));
}

Result<CertificateState> MakeHost(const CertificateOptions& options, const CertificateHost& host,
                                  const Authority& authority) {
  const fs::path certificate_path = options.directory / (host.name + ".crt");
  const fs::path key_path = options.directory / (host.name + ".key");
  CertificateState state{.name = host.name};
  if (Exists(certificate_path) && !Exists(key_path)) {
    return Fail(
        ErrorCode::kBadArgument,
        fmt::format("{} is there but {} is not: put the key back, or remove the certificate to "
                    "have both made anew",
                    certificate_path.string(), key_path.string()));
  }
  if (Exists(certificate_path) && !options.renew) {
    WAFT_ASSIGN(const Certificate existing, ReadCertificate(certificate_path));
    WAFT_ASSIGN(const std::string misfit, Misfit(existing.get(), host, authority));
    if (!misfit.empty()) {
      return Fail(
          ErrorCode::kBadArgument,
          fmt::format("{} exists and does not fit: {}. Use --renew to sign a new one for the same "
                      "key",
                      certificate_path.string(), misfit));
    }
    state.expiry = Expiry(existing.get());
    return state;
  }
  WAFT_ASSIGN(const Key key, ReadOrMakeKey(key_path));
  std::string names = "DNS:" + host.name;
  for (const std::string& address : host.addresses) names += ",IP:" + address;
  WAFT_ASSIGN(const Certificate certificate,
              Sign({.common_name = host.name,
                    .key = key.get(),
                    .days = options.days,
                    .issuer = authority.certificate.get(),
                    .issuer_key = authority.key.get(),
                    .extensions = {{NID_basic_constraints, "critical,CA:FALSE"},
                                   {NID_key_usage, "critical,digitalSignature"},
                                   {NID_ext_key_usage, "serverAuth,clientAuth"},
                                   {NID_subject_alt_name, names},
                                   {NID_subject_key_identifier, "hash"},
                                   {NID_authority_key_identifier, "keyid:always"}}}));
  WAFT_TRY(WriteCertificate(certificate_path, certificate.get()));
  state.made = true;
  state.expiry = Expiry(certificate.get());
  return state;
}

Status CheckOptions(const CertificateOptions& options) {
  if (options.days < 1 || options.days > kAuthorityDays) {
    return Fail(
        ErrorCode::kBadArgument,
        fmt::format("{} days: a host's certificate is valid for 1 to {} days, as long as the "
                    "authority at most",
                    options.days, kAuthorityDays));
  }
  std::set<std::string_view> names;
  for (const CertificateHost& host : options.hosts) {
    WAFT_TRY(CheckName(host.name));
    if (!names.insert(host.name).second) {
      return Fail(ErrorCode::kBadArgument,
                  fmt::format("{} is named twice: write {}=ADDRESS,ADDRESS for a host with several "
                              "addresses",
                              host.name, host.name));
    }
  }
  return {};
}

}  // namespace

Result<CertificateHost> ParseCertificateHost(std::string_view text) {
  const size_t equals = text.find('=');
  if (equals == std::string_view::npos) {
    return Fail(ErrorCode::kBadArgument,
                fmt::format("'{}' is not NAME=ADDRESS, such as alpha=10.0.0.1", text));
  }
  CertificateHost host{.name = std::string(text.substr(0, equals))};
  WAFT_TRY(CheckName(host.name));
  std::string_view rest = text.substr(equals + 1);
  while (true) {
    const std::string address(rest.substr(0, rest.find(',')));
    if (!IsAddress(address)) {
      return Fail(ErrorCode::kBadArgument,
                  fmt::format("'{}' of host {} is no IP address, such as 10.0.0.1 or fd00::1",
                              address, host.name));
    }
    host.addresses.push_back(address);
    if (address.size() == rest.size()) return host;
    rest.remove_prefix(address.size() + 1);
  }
}

Result<std::vector<CertificateState>> InitCertificates(const CertificateOptions& options) {
  WAFT_TRY(CheckOptions(options));
  std::error_code error;
  if (fs::create_directories(options.directory, error); error) {
    return std::unexpected(
        base::Error::FromErrno("cannot make " + options.directory.string(), error.value()));
  }
  WAFT_ASSIGN(const Authority authority, LoadOrMakeAuthority(options.directory));
  const X509* ca = authority.certificate.get();
  std::time_t end = std::time(nullptr) + options.days * kDaySeconds - kDaySeconds;
  if (X509_cmp_time(X509_get0_notAfter(ca), &end) < 0) {
    return Fail(
        ErrorCode::kBadArgument,
        fmt::format("the authority ends on {}, before the {} days asked for: ask for fewer with "
                    "--days, or begin with a new authority in another directory",
                    Expiry(ca), options.days));
  }
  std::vector<CertificateState> states{
      {.name = std::string(kAuthorityName), .made = authority.made, .expiry = Expiry(ca)}};
  for (const CertificateHost& host : options.hosts) {
    WAFT_ASSIGN(const CertificateState state, MakeHost(options, host, authority));
    states.push_back(state);
  }
  return states;
}

}  // namespace waft::cli
