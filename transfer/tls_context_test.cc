#include "transfer/tls_context.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "transfer/test_certificates.h"

namespace waft::transfer {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::TestCa;

class TlsContextTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "waft-tls-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root_ = name;
    ca_ = std::make_unique<TestCa>(root_ / "ca");
    good_ = ca_->Issue("good");
  }
  void TearDown() override { fs::remove_all(root_); }

  static std::string FailureOf(const TlsFiles& files) {
    const auto context = TlsContext::Create(files);
    EXPECT_FALSE(context);
    if (context) return "";
    EXPECT_EQ(context.error().code(), base::ErrorCode::kBadArgument);
    EXPECT_THAT(context.error().message(), HasSubstr("`waft cert init`"));
    return context.error().message();
  }

  fs::path root_;
  std::unique_ptr<TestCa> ca_;
  TlsFiles good_;
};

TEST_F(TlsContextTest, TakesGoodFiles) {
  const auto context = TlsContext::Create(good_);
  EXPECT_TRUE(context) << context.error().message();
}

TEST_F(TlsContextTest, NamesTheFileThatIsMissing) {
  for (fs::path TlsFiles::* member : {&TlsFiles::ca, &TlsFiles::certificate, &TlsFiles::key}) {
    TlsFiles files = good_;
    files.*member = root_ / "nowhere.pem";
    EXPECT_THAT(FailureOf(files), AllOf(HasSubstr("nowhere.pem"), HasSubstr("No such file")));
  }
}

TEST_F(TlsContextTest, NamesTheFileThatIsNoPem) {
  const fs::path junk = root_ / "junk.pem";
  std::ofstream(junk) << "not PEM\n";
  for (fs::path TlsFiles::* member : {&TlsFiles::ca, &TlsFiles::certificate, &TlsFiles::key}) {
    TlsFiles files = good_;
    files.*member = junk;
    EXPECT_THAT(FailureOf(files), HasSubstr("junk.pem holds no"));
  }
}

TEST_F(TlsContextTest, RefusesAnotherCertificatesKey) {
  TlsFiles files = good_;
  files.key = ca_->Issue("other").key;
  EXPECT_THAT(FailureOf(files), HasSubstr("other.key holds no unencrypted private key"));
}

TEST_F(TlsContextTest, RefusesAnEncryptedKeyWithoutAskingForThePassphrase) {
  const testing::Key key(EVP_EC_gen("P-256"));
  TlsFiles files = good_;
  files.key = root_ / "encrypted.key";
  std::unique_ptr<FILE, testing::FreeOpenSsl> file(std::fopen(files.key.c_str(), "we"));
  ASSERT_NE(file, nullptr);
  unsigned char phrase[] = "secret";
  ASSERT_EQ(
      PEM_write_PrivateKey(file.get(), key.get(), EVP_aes_128_cbc(), phrase, 6, nullptr, nullptr),
      1);
  file.reset();
  EXPECT_THAT(FailureOf(files), HasSubstr("encrypted.key holds no unencrypted private key"));
}

TEST_F(TlsContextTest, RefusesItsOwnCertificateWhenPeersWould) {
  EXPECT_THAT(FailureOf(ca_->Issue("old", {.from_s = -7200, .to_s = -3600})),
              HasSubstr("old.crt, checked against"));
  EXPECT_THAT(FailureOf(ca_->Issue("old", {.from_s = -7200, .to_s = -3600})),
              AllOf(HasSubstr("has expired ("), HasSubstr("GMT")));
  EXPECT_THAT(FailureOf(ca_->Issue("early", {.from_s = 1800, .to_s = 3600})),
              HasSubstr("not valid yet"));
  EXPECT_THAT(FailureOf(ca_->Issue("half", {.usage = "serverAuth"})),
              HasSubstr("both TLS server and client"));
  EXPECT_THAT(FailureOf(ca_->Issue("half", {.usage = "clientAuth"})),
              HasSubstr("both TLS server and client"));
  TestCa other(root_ / "other-ca");
  TlsFiles files = other.Issue("stranger");
  files.ca = good_.ca;
  EXPECT_THAT(FailureOf(files), HasSubstr("not signed by this CA"));
}

}  // namespace
}  // namespace waft::transfer
