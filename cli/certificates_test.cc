#include "cli/certificates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include <cstdio>
#include <memory>
#include <set>
#include <string>

#include "base/file.h"
#include "base/process.h"

namespace waft::cli {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;

class CertificatesTest : public testing::Test {
 protected:
  CertificatesTest() {
    std::string name = (fs::temp_directory_path() / "waft-cert-XXXXXX").string();
    root_ = ::mkdtemp(name.data());
    options_.directory = root_ / "tls";
    options_.hosts = {{"alpha", {"10.0.0.1"}}, {"beta.example.net", {"10.0.0.2", "fd00::2"}}};
  }
  ~CertificatesTest() override { fs::remove_all(root_); }

  fs::path In(const std::string& name) const { return options_.directory / name; }
  std::string Content(const std::string& name) const { return base::ReadFile(In(name)).value(); }

  Certificate Read(const std::string& name) const {
    FILE* file = std::fopen(In(name).c_str(), "r");
    X509* certificate = file == nullptr ? nullptr : PEM_read_X509(file, nullptr, nullptr, nullptr);
    if (file != nullptr) std::fclose(file);
    return {certificate, &X509_free};
  }

  // What `openssl` makes of `arguments`, run in the directory.
  base::RunResult OpenSsl(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), "openssl");
    return base::Run({.argv = arguments, .directory = options_.directory}).value();
  }

  // Verifies for `purpose` as a peer would, with OpenSSL's defaults for everything else.
  static int Verify(X509* certificate, X509* authority, int purpose) {
    const std::unique_ptr<X509_STORE, decltype(&X509_STORE_free)> store(X509_STORE_new(),
                                                                        &X509_STORE_free);
    X509_STORE_add_cert(store.get(), authority);
    const std::unique_ptr<X509_STORE_CTX, decltype(&X509_STORE_CTX_free)> context(
        X509_STORE_CTX_new(), &X509_STORE_CTX_free);
    X509_STORE_CTX_init(context.get(), store.get(), certificate, nullptr);
    X509_STORE_CTX_set_purpose(context.get(), purpose);
    X509_verify_cert(context.get());
    return X509_STORE_CTX_get_error(context.get());
  }

  fs::path root_;
  CertificateOptions options_;
};

TEST_F(CertificatesTest, TheChainVerifiesForServingAndForCalling) {
  const auto states = InitCertificates(options_);
  ASSERT_TRUE(states) << states.error().message();
  ASSERT_EQ(states->size(), 3);
  for (const CertificateState& state : *states) EXPECT_TRUE(state.made) << state.name;

  const Certificate authority = Read("ca.crt");
  const Certificate host = Read("alpha.crt");
  ASSERT_TRUE(authority && host);
  EXPECT_EQ(Verify(host.get(), authority.get(), X509_PURPOSE_SSL_SERVER), X509_V_OK);
  EXPECT_EQ(Verify(host.get(), authority.get(), X509_PURPOSE_SSL_CLIENT), X509_V_OK);
  EXPECT_EQ(Verify(authority.get(), authority.get(), X509_PURPOSE_ANY), X509_V_OK);

  for (const char* purpose : {"sslserver", "sslclient"}) {
    const auto verified = OpenSsl({"verify", "-x509_strict", "-CAfile", "ca.crt", "-purpose",
                                   purpose, "alpha.crt", "beta.example.net.crt"});
    EXPECT_EQ(verified.out, "alpha.crt: OK\nbeta.example.net.crt: OK\n") << verified.err;
  }
}

TEST_F(CertificatesTest, AnotherAuthorityDoesNotVerify) {
  ASSERT_TRUE(InitCertificates(options_));
  CertificateOptions other = options_;
  other.directory = root_ / "other";
  ASSERT_TRUE(InitCertificates(other));
  const auto verified = OpenSsl({"verify", "-CAfile", "../other/ca.crt", "alpha.crt"});
  EXPECT_NE(verified.exit.code, 0);
}

TEST_F(CertificatesTest, NamesAndAddressesAreThoseAskedForAndNoOthers) {
  ASSERT_TRUE(InitCertificates(options_));
  const Certificate beta = Read("beta.example.net.crt");
  ASSERT_TRUE(beta);
  EXPECT_EQ(X509_check_host(beta.get(), "beta.example.net", 0, 0, nullptr), 1);
  EXPECT_EQ(X509_check_host(beta.get(), "alpha", 0, 0, nullptr), 0);
  EXPECT_EQ(X509_check_ip_asc(beta.get(), "10.0.0.2", 0), 1);
  EXPECT_EQ(X509_check_ip_asc(beta.get(), "fd00::2", 0), 1);
  EXPECT_EQ(X509_check_ip_asc(beta.get(), "10.0.0.1", 0), 0);
  const auto text = OpenSsl({"x509", "-in", "beta.example.net.crt", "-noout", "-ext",
                             "subjectAltName,basicConstraints,extendedKeyUsage,keyUsage"});
  EXPECT_THAT(text.out, HasSubstr("DNS:beta.example.net, IP Address:10.0.0.2, "
                                  "IP Address:FD00:0:0:0:0:0:0:2"));
  EXPECT_THAT(text.out, HasSubstr("CA:FALSE"));
  EXPECT_THAT(text.out, HasSubstr("TLS Web Server Authentication, TLS Web Client Authentication"));
}

TEST_F(CertificatesTest, OnlyTheAuthorityMaySign) {
  ASSERT_TRUE(InitCertificates(options_));
  const Certificate authority = Read("ca.crt");
  const Certificate host = Read("alpha.crt");
  ASSERT_TRUE(authority && host);
  EXPECT_EQ(X509_check_ca(authority.get()), 1);
  EXPECT_EQ(X509_check_ca(host.get()), 0);
  EXPECT_EQ(X509_get_pathlen(authority.get()), 0);
  EXPECT_EQ(X509_get_key_usage(authority.get()), uint32_t{KU_KEY_CERT_SIGN | KU_CRL_SIGN});
}

TEST_F(CertificatesTest, ValidityIsWhatWasAskedFor) {
  options_.days = 30;
  ASSERT_TRUE(InitCertificates(options_));
  const auto left_days = [](const Certificate& certificate) {
    int days = 0;
    int seconds = 0;
    ASN1_TIME_diff(&days, &seconds, nullptr, X509_get0_notAfter(certificate.get()));
    return days + (seconds > 43200 ? 1 : 0);
  };
  EXPECT_EQ(left_days(Read("alpha.crt")), 30);
  EXPECT_EQ(left_days(Read("ca.crt")), 3650);
}

TEST_F(CertificatesTest, KeysAreForTheOwnerOnly) {
  // The strictest mode must not come from a lucky umask.
  const mode_t old_umask = ::umask(0);
  const bool made = InitCertificates(options_).has_value();
  ::umask(old_umask);
  ASSERT_TRUE(made);
  for (const char* name : {"ca.key", "alpha.key", "beta.example.net.key"}) {
    struct stat facts{};
    ASSERT_EQ(::stat(In(name).c_str(), &facts), 0) << name;
    EXPECT_EQ(facts.st_mode & 07777, 0600) << name;
  }
}

TEST_F(CertificatesTest, ASecondRunKeepsEverythingAndAddsAHost) {
  ASSERT_TRUE(InitCertificates(options_));
  const std::string ca_key = Content("ca.key");
  const std::string ca = Content("ca.crt");
  const std::string alpha_key = Content("alpha.key");
  const std::string alpha = Content("alpha.crt");
  options_.hosts.push_back({"gamma", {"10.0.0.3"}});
  const auto states = InitCertificates(options_);
  ASSERT_TRUE(states) << states.error().message();
  EXPECT_FALSE((*states)[0].made);
  EXPECT_FALSE((*states)[1].made);
  EXPECT_TRUE((*states)[3].made);
  EXPECT_EQ(Content("ca.key"), ca_key);
  EXPECT_EQ(Content("ca.crt"), ca);
  EXPECT_EQ(Content("alpha.key"), alpha_key);
  EXPECT_EQ(Content("alpha.crt"), alpha);
  EXPECT_EQ(Verify(Read("gamma.crt").get(), Read("ca.crt").get(), X509_PURPOSE_SSL_SERVER),
            X509_V_OK);
}

TEST_F(CertificatesTest, OtherAddressesAreAnErrorUnlessRenewed) {
  ASSERT_TRUE(InitCertificates(options_));
  const std::string key = Content("alpha.key");
  options_.hosts = {{"alpha", {"10.9.9.9"}}};
  const auto refused = InitCertificates(options_);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), base::ErrorCode::kBadArgument);
  EXPECT_THAT(refused.error().message(), HasSubstr("it does not name 10.9.9.9. Use --renew"));

  options_.renew = true;
  const auto renewed = InitCertificates(options_);
  ASSERT_TRUE(renewed) << renewed.error().message();
  EXPECT_EQ(Content("alpha.key"), key);
  const Certificate certificate = Read("alpha.crt");
  EXPECT_EQ(X509_check_ip_asc(certificate.get(), "10.9.9.9", 0), 1);
  EXPECT_EQ(Verify(certificate.get(), Read("ca.crt").get(), X509_PURPOSE_SSL_SERVER), X509_V_OK);
}

TEST_F(CertificatesTest, AHostOfAnotherAuthorityIsAnError) {
  ASSERT_TRUE(InitCertificates(options_));
  fs::remove(In("ca.crt"));
  fs::remove(In("ca.key"));
  const auto refused = InitCertificates(options_);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message(), HasSubstr("alpha.crt exists and does not fit"));
}

TEST_F(CertificatesTest, AnInterruptedRunIsCompletedWithTheSameKey) {
  ASSERT_TRUE(InitCertificates(options_));
  const std::string key = Content("alpha.key");
  fs::remove(In("alpha.crt"));
  ASSERT_TRUE(InitCertificates(options_));
  EXPECT_EQ(Content("alpha.key"), key);
  EXPECT_TRUE(Read("alpha.crt"));
}

TEST_F(CertificatesTest, ALostOrWrongKeyIsSaidNotReplaced) {
  ASSERT_TRUE(InitCertificates(options_));
  const std::string ca_key = Content("ca.key");
  fs::remove(In("ca.key"));
  const auto without_ca_key = InitCertificates(options_);
  ASSERT_FALSE(without_ca_key);
  EXPECT_THAT(without_ca_key.error().message(), HasSubstr("run this where ca.key is kept"));
  EXPECT_FALSE(fs::exists(In("ca.key")));

  ASSERT_TRUE(base::WriteFileAtomically(In("ca.key"), Content("alpha.key"), 0600));
  const auto with_wrong_key = InitCertificates(options_);
  ASSERT_FALSE(with_wrong_key);
  EXPECT_THAT(with_wrong_key.error().message(), HasSubstr("is not the key of"));

  ASSERT_TRUE(base::WriteFileAtomically(In("ca.key"), "no key at all\n", 0600));
  const auto with_rubbish = InitCertificates(options_);
  ASSERT_FALSE(with_rubbish);
  EXPECT_THAT(with_rubbish.error().message(), HasSubstr("holds no private key"));

  ASSERT_TRUE(base::WriteFileAtomically(In("ca.key"), ca_key, 0600));
  fs::remove(In("alpha.key"));
  const auto without_host_key = InitCertificates(options_);
  ASSERT_FALSE(without_host_key);
  EXPECT_THAT(without_host_key.error().message(), HasSubstr("alpha.key is not: put the key back"));
}

TEST_F(CertificatesTest, OptionsThatCannotWorkAreRefusedBeforeAnythingIsMade) {
  options_.days = 0;
  EXPECT_THAT(InitCertificates(options_).error().message(), HasSubstr("1 to 3650 days"));
  options_.days = 825;
  options_.hosts.push_back({"alpha", {"10.0.0.9"}});
  EXPECT_THAT(InitCertificates(options_).error().message(), HasSubstr("alpha is named twice"));
  EXPECT_FALSE(fs::exists(options_.directory));
}

TEST(CertificateHostTest, ParsesNamesAndAddresses) {
  const auto host = ParseCertificateHost("beta-2.example.net=10.0.0.2,fd00::2");
  ASSERT_TRUE(host) << host.error().message();
  EXPECT_EQ(host->name, "beta-2.example.net");
  EXPECT_EQ(host->addresses, (std::vector<std::string>{"10.0.0.2", "fd00::2"}));
}

TEST(CertificateHostTest, RefusesWhatNoCertificateCanName) {
  const auto message = [](const std::string& text) {
    const auto host = ParseCertificateHost(text);
    EXPECT_FALSE(host) << text;
    if (host) return std::string();
    EXPECT_EQ(host.error().code(), base::ErrorCode::kBadArgument) << text;
    return host.error().message();
  };
  EXPECT_THAT(message("alpha"), HasSubstr("is not NAME=ADDRESS"));
  EXPECT_THAT(message("=10.0.0.1"), HasSubstr("1 to 64 characters"));
  EXPECT_THAT(message(std::string(65, 'a') + "=10.0.0.1"), HasSubstr("1 to 64 characters"));
  EXPECT_THAT(message("../etc/passwd=10.0.0.1"), HasSubstr("letters, digits, '-' and '.'"));
  EXPECT_THAT(message("a b=10.0.0.1"), HasSubstr("letters, digits, '-' and '.'"));
  EXPECT_THAT(message("a,DNS:evil=10.0.0.1"), HasSubstr("letters, digits, '-' and '.'"));
  EXPECT_THAT(message("-a=10.0.0.1"), HasSubstr("no '-' first or last"));
  EXPECT_THAT(message("a..b=10.0.0.1"), HasSubstr("1 to 63 characters"));
  EXPECT_THAT(message("ca=10.0.0.1"), HasSubstr("the authority's files"));
  EXPECT_THAT(message("alpha="), HasSubstr("'' of host alpha is no IP address"));
  EXPECT_THAT(message("alpha=10.0.0.256"), HasSubstr("'10.0.0.256' of host alpha"));
  EXPECT_THAT(message("alpha=beta.example.net"), HasSubstr("is no IP address"));
  EXPECT_THAT(message("alpha=10.0.0.1,"), HasSubstr("is no IP address"));
}

}  // namespace
}  // namespace waft::cli
