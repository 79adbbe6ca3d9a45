// Both ends over real TCP on 127.0.0.1, and each end against a peer that misbehaves.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <fstream>
#include <future>
#include <random>
#include <thread>

#include "base/file.h"
#include "transfer/image_listener.h"
#include "transfer/image_sender.h"
#include "transfer/test_certificates.h"
#include "transfer/tls_stream.h"

namespace waft::transfer {
namespace {

namespace fs = std::filesystem;
using base::Deadline;
using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using testing::TestCa;

constexpr milliseconds kTimeout{10'000};
constexpr uint64_t kMiB = 1 << 20;

Deadline Soon() { return Deadline::After(kTimeout); }

Token TokenOf(unsigned char byte) {
  Token token;
  token.fill(byte);
  return token;
}

std::string RandomBytes(size_t size, uint32_t seed = 1) {
  std::mt19937_64 random(seed);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

FileEnd EndOf(std::string_view content) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(content.data(), content.size()));
  FileEnd end;
  std::ranges::copy(canonical.digest, end.checksum.begin());
  return end;
}

base::UniqueFd ConnectTcp(uint16_t port) {
  base::UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  return socket;
}

// True if the other side closes within `timeout`; whatever it sends before is dropped.
bool ClosesWithin(int socket, milliseconds timeout) {
  const Deadline deadline = Deadline::After(timeout);
  std::array<char, 4096> scrap;
  for (;;) {
    pollfd fd{socket, POLLIN, 0};
    if (::poll(&fd, 1, deadline.LeftMs()) != 1) return false;
    if (::recv(socket, scrap.data(), scrap.size(), 0) <= 0) return true;
  }
}

// A peer with a good certificate that sends whatever the test wants.
class RawPeer {
 public:
  explicit RawPeer(std::unique_ptr<TlsStream> stream) : stream_(std::move(stream)) {}

  static RawPeer Connect(uint16_t port, const TlsContext& context) {
    auto stream =
        TlsStream::Connect(ConnectTcp(port), context, "destination.test", Soon(), nullptr);
    EXPECT_TRUE(stream) << stream.error().message();
    return RawPeer(stream ? std::move(*stream) : nullptr);
  }
  void Send(const Frame& frame) { SendBytes(Encode(frame)); }
  void SendBytes(std::string_view bytes) { EXPECT_TRUE(stream_->Write(bytes, Soon())); }
  base::Result<Frame> Next() {
    return ReadFrame(*stream_, &buffer_, Soon(), /*data_allowed=*/true);
  }
  void ExpectWelcome() {
    const auto frame = Next();
    ASSERT_TRUE(frame) << frame.error().message();
    EXPECT_TRUE(std::holds_alternative<Welcome>(*frame));
  }
  ErrorFrame ExpectError() {
    const auto frame = Next();
    EXPECT_TRUE(frame) << frame.error().message();
    const auto* error = frame ? std::get_if<ErrorFrame>(&*frame) : nullptr;
    EXPECT_NE(error, nullptr);
    return error == nullptr ? ErrorFrame{} : *error;
  }
  void Close() { stream_.reset(); }

 private:
  std::unique_ptr<TlsStream> stream_;
  std::string buffer_;
};

// A destination for one connection that does what the test says.
class RawServer {
 public:
  RawServer(const TlsContext& context, std::function<void(RawPeer)> serve) {
    socket_ = base::UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    auto* const any = reinterpret_cast<sockaddr*>(&address);
    EXPECT_EQ(::bind(socket_.get(), any, length), 0);
    EXPECT_EQ(::listen(socket_.get(), 1), 0);
    EXPECT_EQ(::getsockname(socket_.get(), any, &length), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this, context, serve = std::move(serve)] {
      base::UniqueFd peer(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      auto stream = TlsStream::Accept(std::move(peer), context, Soon(), nullptr);
      if (stream) serve(RawPeer(std::move(*stream)));
    });
  }
  ~RawServer() { thread_.join(); }
  uint16_t port() const { return port_; }

 private:
  base::UniqueFd socket_;
  uint16_t port_ = 0;
  std::thread thread_;
};

class ImageTransferTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "waft-transfer-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root_ = name;
    source_ = root_ / "source";
    destination_ = root_ / "destination";
    fs::create_directory(source_);
    fs::create_directory(destination_);
    ca_ = std::make_unique<TestCa>(root_ / "ca");
    context_ = std::make_unique<TlsContext>(MakeContext(ca_->Issue("host")));
  }
  void TearDown() override {
    listener_.reset();
    fs::remove_all(root_);
  }

  static TlsContext MakeContext(const TlsFiles& files) {
    auto context = TlsContext::Create(files);
    EXPECT_TRUE(context) << context.error().message();
    return *context;
  }

  void Listen(const ListenerOptions& options = {}) {
    auto listener = ImageListener::Start("127.0.0.1", 0, *context_, options);
    ASSERT_TRUE(listener) << listener.error().message();
    listener_ = std::move(*listener);
  }

  std::shared_ptr<Reception> Expect(std::string_view id = "m1", uint64_t limit_bytes = 1 << 30) {
    auto reception = listener_->Expect(id, TokenOf(7), destination_, limit_bytes);
    EXPECT_TRUE(reception) << reception.error().message();
    return *reception;
  }

  base::Result<ImageSender> ConnectTo(uint16_t port, std::string_view id = "m1",
                                      const Token& token = TokenOf(7),
                                      milliseconds timeout = kTimeout) {
    return ImageSender::Connect("127.0.0.1", port, "destination.test", *context_, id, token,
                                timeout);
  }
  base::Result<ImageSender> Connect() { return ConnectTo(listener_->port()); }

  // Connects, sends what is in source_.
  base::Result<SendSummary> Send() {
    WAFT_ASSIGN(ImageSender sender, Connect());
    return sender.Send(source_, {});
  }

  // A raw source that has said Hello for "m1" and been welcomed.
  RawPeer WelcomedPeer() {
    RawPeer peer = RawPeer::Connect(listener_->port(), *context_);
    peer.Send(Hello{kProtocolVersion, TokenOf(7), "m1"});
    peer.ExpectWelcome();
    return peer;
  }

  void Write(const std::string& name, std::string_view content) const {
    std::ofstream(source_ / name, std::ios::binary) << content;
  }

  static size_t FilesIn(const fs::path& directory) {
    return static_cast<size_t>(
        std::distance(fs::directory_iterator(directory), fs::directory_iterator()));
  }

  // The reception's error, after which nothing of the image set may be left.
  base::Error FailureOf(Reception& reception) const {
    const auto result = reception.Wait(Soon());
    EXPECT_FALSE(result);
    EXPECT_EQ(FilesIn(destination_), 0U);
    return result ? base::Error(base::ErrorCode::kFatal, "") : result.error();
  }

  // That the listener is well and takes another image set.
  void ExpectStillServing() {
    const fs::path directory = root_ / "again";
    fs::create_directory(directory);
    auto reception = listener_->Expect("again", TokenOf(9), directory, 1 << 30);
    ASSERT_TRUE(reception);
    auto sender = ConnectTo(listener_->port(), "again", TokenOf(9));
    ASSERT_TRUE(sender) << sender.error().message();
    const auto sent = sender->Send(source_, {});
    EXPECT_TRUE(sent) << sent.error().message();
    EXPECT_TRUE((*reception)->Wait(Soon()));
  }

  // A TLS client with settings of its own; the message of what OpenSSL says when it reads.
  std::string OpenSslClientFails(const TlsFiles* files, int max_version = TLS1_3_VERSION) const {
    const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(
        SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
    SSL_CTX_set_max_proto_version(context.get(), max_version);
    if (files != nullptr) {
      SSL_CTX_use_certificate_chain_file(context.get(), files->certificate.c_str());
      SSL_CTX_use_PrivateKey_file(context.get(), files->key.c_str(), SSL_FILETYPE_PEM);
    }
    const base::UniqueFd socket = ConnectTcp(listener_->port());
    const std::unique_ptr<SSL, decltype(&SSL_free)> ssl(SSL_new(context.get()), SSL_free);
    SSL_set_fd(ssl.get(), socket.get());
    char byte = 0;
    ERR_clear_error();
    const bool ok = SSL_connect(ssl.get()) == 1 && SSL_read(ssl.get(), &byte, 1) == 1;
    EXPECT_FALSE(ok);
    return TakeSslErrors();
  }

  fs::path root_;
  fs::path source_;
  fs::path destination_;
  std::unique_ptr<TestCa> ca_;
  std::unique_ptr<TlsContext> context_;
  std::unique_ptr<ImageListener> listener_;
};

TEST_F(ImageTransferTest, EveryFileArrivesByteForByte) {
  Write("inventory.img", "short");
  Write("empty.img", "");
  Write("pages-1.img", RandomBytes(5 * kMiB));
  Write("sparse.img", "head");
  fs::resize_file(source_ / "sparse.img", 40 * kMiB + 3);
  for (int i = 0; i < 500; ++i) Write("core-" + std::to_string(i) + ".img", RandomBytes(i, i));
  // Neither is part of an image set.
  fs::create_directory(source_ / "subdirectory");
  fs::create_symlink("inventory.img", source_ / "link");
  Listen();
  const auto reception = Expect();

  auto sender = Connect();
  ASSERT_TRUE(sender) << sender.error().message();
  uint64_t last = 0;
  uint64_t total = 0;
  const auto sent = sender->Send(source_, [&](uint64_t done, uint64_t of) {
    EXPECT_GE(done, last);
    last = done;
    total = of;
  });
  ASSERT_TRUE(sent) << sent.error().message();
  const auto received = reception->Wait(Soon());
  ASSERT_TRUE(received) << received.error().message();

  const uint64_t bytes = 5 + 5 * kMiB + 40 * kMiB + 3 + 499 * 500 / 2;
  EXPECT_EQ(sent->files, 504U);
  EXPECT_EQ(sent->bytes_payload, bytes);
  EXPECT_GT(sent->bytes_wire, bytes);
  EXPECT_LT(sent->bytes_wire, bytes + bytes / 100);
  EXPECT_EQ(last, bytes);
  EXPECT_EQ(total, bytes);
  EXPECT_EQ(received->files, 504U);
  EXPECT_EQ(received->bytes, bytes);
  EXPECT_EQ(FilesIn(destination_), 504U);
  for (const auto& entry : fs::directory_iterator(destination_)) {
    EXPECT_EQ(base::ReadFile(entry.path()).value(),
              base::ReadFile(source_ / entry.path().filename()).value())
        << entry.path();
  }
}

TEST_F(ImageTransferTest, AnEmptyImageSetArrives) {
  Listen();
  const auto reception = Expect();
  const auto sent = Send();
  ASSERT_TRUE(sent) << sent.error().message();
  EXPECT_EQ(reception->Wait(Soon()).value().files, 0U);
}

// Larger than OpenSSL is allowed to encrypt under one key (kKeyUpdateBytes).
TEST_F(ImageTransferTest, KeysAreChangedOnTheWay) {
  Write("pages-1.img", "head");
  fs::resize_file(source_ / "pages-1.img", 600 * kMiB);
  Listen();
  const auto reception = Expect();
  const auto sent = Send();
  ASSERT_TRUE(sent) << sent.error().message();
  EXPECT_EQ(reception->Wait(Soon()).value().bytes, 600 * kMiB);
}

TEST_F(ImageTransferTest, TwoImageSetsAtOnceDoNotMix) {
  Write("a", RandomBytes(kMiB));
  Listen();
  const fs::path other = root_ / "other";
  fs::create_directory(other);
  const auto first = Expect("m1");
  const auto second = listener_->Expect("m2", TokenOf(8), other, kMiB);
  ASSERT_TRUE(second);
  auto to_second = ConnectTo(listener_->port(), "m2", TokenOf(8));
  auto to_first = ConnectTo(listener_->port());
  ASSERT_TRUE(to_first && to_second);
  auto task = std::async(std::launch::async, [&] { return to_second->Send(source_, {}); });
  EXPECT_TRUE(to_first->Send(source_, {}));
  EXPECT_TRUE(task.get());
  EXPECT_TRUE(first->Wait(Soon()));
  EXPECT_TRUE((*second)->Wait(Soon()));
  EXPECT_EQ(FilesIn(other), 1U);
}

// --- Who may send
// -----------------------------------------------------------------------------------

TEST_F(ImageTransferTest, AWrongTokenIsRefusedAndTheRightOneStillGood) {
  Write("a", "content");
  Listen();
  const auto reception = Expect();
  const auto wrong = ConnectTo(listener_->port(), "m1", TokenOf(6));
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().error_number(), EACCES);
  EXPECT_THAT(wrong.error().message(), AllOf(HasSubstr("destination.test"), HasSubstr("token")));
  EXPECT_TRUE(Send());
  EXPECT_TRUE(reception->Wait(Soon()));
}

TEST_F(ImageTransferTest, ATokenIsGoodOnce) {
  Write("a", "content");
  Listen();
  const auto reception = Expect();
  auto first = Connect();
  ASSERT_TRUE(first);
  EXPECT_FALSE(Connect());  // while the first is open
  EXPECT_TRUE(first->Send(source_, {}));
  EXPECT_TRUE(reception->Wait(Soon()));
  const auto reused = Connect();
  ASSERT_FALSE(reused);
  EXPECT_EQ(reused.error().error_number(), EACCES);
}

TEST_F(ImageTransferTest, AnUnknownMigrationIsRefusedInTheSameWords) {
  Listen();
  const auto reception = Expect("m1");
  const auto unknown = ConnectTo(listener_->port(), "m2");
  const auto wrong = ConnectTo(listener_->port(), "m1", TokenOf(6));
  ASSERT_FALSE(unknown);
  ASSERT_FALSE(wrong);
  EXPECT_EQ(
      unknown.error().message(),
      std::string(wrong.error().message()).replace(wrong.error().message().find("m1"), 2, "m2"));
}

TEST_F(ImageTransferTest, AnIdIsExpectedOnceAtATime) {
  Listen();
  auto reception = Expect();
  EXPECT_FALSE(listener_->Expect("m1", TokenOf(1), destination_, 1));
  reception.reset();
  EXPECT_TRUE(listener_->Expect("m1", TokenOf(1), destination_, 1));
  EXPECT_FALSE(listener_->Expect("m2", TokenOf(1), root_ / "nowhere", 1));
}

TEST_F(ImageTransferTest, AnExpiredClientIsRefused) {
  Listen();
  const auto reception = Expect();
  const TlsFiles expired = ca_->Issue("expired", {.from_s = -7200, .to_s = -3600});
  EXPECT_THAT(OpenSslClientFails(&expired), HasSubstr("certificate expired"));
  ExpectStillServing();
}

TEST_F(ImageTransferTest, AClientWithoutACertificateIsRefused) {
  Listen();
  const auto reception = Expect();
  EXPECT_THAT(OpenSslClientFails(nullptr), HasSubstr("certificate required"));
  ExpectStillServing();
}

TEST_F(ImageTransferTest, AClientWithTls12IsRefused) {
  Listen();
  const auto reception = Expect();
  const TlsFiles good = ca_->Issue("good");
  EXPECT_THAT(OpenSslClientFails(&good, TLS1_2_VERSION), HasSubstr("protocol version"));
  ExpectStillServing();
}

TEST_F(ImageTransferTest, APlainTextClientIsRefused) {
  Listen();
  const auto reception = Expect();
  const base::UniqueFd socket = ConnectTcp(listener_->port());
  const std::string request = "GET / HTTP/1.1\r\n\r\n";
  ASSERT_EQ(::send(socket.get(), request.data(), request.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(request.size()));
  EXPECT_TRUE(ClosesWithin(socket.get(), milliseconds(1000)));
  const base::UniqueFd plain = ConnectTcp(listener_->port());
  const std::string hello = Encode(Hello{kProtocolVersion, TokenOf(7), "m1"});
  ASSERT_EQ(::send(plain.get(), hello.data(), hello.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(hello.size()));
  EXPECT_TRUE(ClosesWithin(plain.get(), milliseconds(1000)));
  ExpectStillServing();
}

// Each side sees a certificate of a CA it does not know; whoever is asked says what to do.
TEST_F(ImageTransferTest, AnotherCaIsRefusedByBothSides) {
  Listen();
  const auto reception = Expect();
  for (const std::string name : {"test CA", "CA of another name"}) {
    TestCa other(root_ / "other-ca", name);
    const TlsContext stranger = MakeContext(other.Issue("stranger"));
    const auto by_client = ImageSender::Connect("127.0.0.1", listener_->port(), "destination.test",
                                                stranger, "m1", TokenOf(7), kTimeout);
    ASSERT_FALSE(by_client);
    EXPECT_THAT(by_client.error().message(),
                AllOf(HasSubstr("the other side's certificate is not signed by this CA"),
                      HasSubstr("waft cert init")));
  }

  // A client that trusts both CAs, but whose own certificate is of the other one.
  const TlsFiles theirs = TestCa(root_ / "other-ca", "CA of another name").Issue("stranger");
  const fs::path both = root_ / "both.crt";
  std::ofstream(both) << base::ReadFile(theirs.ca).value()
                      << base::ReadFile(ca_->Issue("x").ca).value();
  const TlsContext trusting = MakeContext({both, theirs.certificate, theirs.key});
  const auto by_server = ImageSender::Connect("127.0.0.1", listener_->port(), "destination.test",
                                              trusting, "m1", TokenOf(7), kTimeout);
  ASSERT_FALSE(by_server);
  EXPECT_THAT(by_server.error().message(),
              AllOf(HasSubstr("refuses this host's certificate"), HasSubstr("another CA"),
                    HasSubstr("waft cert init")));
  ExpectStillServing();
}

TEST_F(ImageTransferTest, TheServersNameMustBeInItsCertificate) {
  Listen();
  const auto connect = [&](const std::string& name) {
    return ImageSender::Connect("127.0.0.1", listener_->port(), name, *context_, "m1", TokenOf(7),
                                kTimeout);
  };
  for (const std::string name : {"elsewhere.test", "127.0.0.2", "host", ""}) {  // "host" is the CN
    const auto reception = Expect();
    const auto sender = connect(name);
    ASSERT_FALSE(sender) << name;
    if (!name.empty()) {
      EXPECT_THAT(sender.error().message(),
                  AllOf(HasSubstr("is another host's"), HasSubstr("waft cert init")));
    }
  }
  for (const std::string name : {"destination.test", "127.0.0.1"}) {
    const auto reception = Expect();
    const auto sender = connect(name);
    EXPECT_TRUE(sender) << sender.error().message();
  }
}

TEST_F(ImageTransferTest, NobodyListeningIsAnErrorWithTheAddress) {
  Listen();
  const uint16_t port = listener_->port();
  listener_.reset();
  const auto sender = ConnectTo(port);
  ASSERT_FALSE(sender);
  EXPECT_THAT(sender.error().message(),
              AllOf(HasSubstr("127.0.0.1 port " + std::to_string(port)), HasSubstr("refused")));
}

// --- Peers that stall
// -------------------------------------------------------------------------------

TEST_F(ImageTransferTest, HalfOpenClientsTimeOutAndBlockNobody) {
  Listen({.handshake_timeout = milliseconds(400), .max_unauthenticated = 3});
  const auto reception = Expect();
  const base::UniqueFd silent = ConnectTcp(listener_->port());
  const base::UniqueFd half_hello = ConnectTcp(listener_->port());
  ASSERT_EQ(::send(half_hello.get(), "\x16\x03\x01\x02\x00\x01", 6, MSG_NOSIGNAL), 6);
  ExpectStillServing();  // in the third slot
  EXPECT_TRUE(ClosesWithin(silent.get(), milliseconds(2000)));
  EXPECT_TRUE(ClosesWithin(half_hello.get(), milliseconds(2000)));
}

TEST_F(ImageTransferTest, MoreStrangersThanSlotsOnlyDelay) {
  Listen({.handshake_timeout = milliseconds(200), .max_unauthenticated = 2});
  std::vector<base::UniqueFd> strangers;
  strangers.reserve(6);
  for (int i = 0; i < 6; ++i) strangers.push_back(ConnectTcp(listener_->port()));
  const auto reception = Expect();
  const auto sent = Send();
  EXPECT_TRUE(sent) << sent.error().message();
  EXPECT_TRUE(reception->Wait(Soon()));
}

TEST_F(ImageTransferTest, AClientThatSaysNoHelloTimesOut) {
  Listen({.handshake_timeout = milliseconds(300)});
  const auto reception = Expect();
  RawPeer peer = RawPeer::Connect(listener_->port(), *context_);
  EXPECT_THAT(peer.ExpectError().message, HasSubstr("in time"));
  ExpectStillServing();
}

TEST_F(ImageTransferTest, ASourceThatStallsTimesOut) {
  Listen({.begin_timeout = milliseconds(300), .frame_timeout = milliseconds(300)});
  for (const bool begun : {false, true}) {
    const auto reception = Expect();
    RawPeer peer = WelcomedPeer();
    if (begun) {
      peer.Send(Begin{1, 100});
      peer.Send(FileBegin{100, "a"});
      peer.SendBytes(Encode(Data{"never the rest"}).substr(0, 12));
    }
    EXPECT_EQ(FailureOf(*reception).error_number(), ETIMEDOUT);
    EXPECT_THAT(peer.ExpectError().message, HasSubstr("in time"));
  }
}

TEST_F(ImageTransferTest, ADestinationThatStallsTimesOut) {
  Write("a", RandomBytes(20 * kMiB));
  std::promise<void> enough;
  const RawServer server(*context_, [&](RawPeer peer) {
    EXPECT_TRUE(peer.Next());
    peer.Send(Welcome{});
    enough.get_future().wait();
  });
  auto sender = ConnectTo(server.port(), "m1", TokenOf(7), milliseconds(300));
  ASSERT_TRUE(sender);
  const auto sent = sender->Send(source_, {});
  enough.set_value();
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().error_number(), ETIMEDOUT);
}

TEST_F(ImageTransferTest, WaitEndsTheReceptionAtItsDeadline) {
  Listen();
  const auto reception = Expect();
  const auto result = reception->Wait(Deadline::After(milliseconds(100)));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().error_number(), ETIMEDOUT);
  EXPECT_FALSE(Connect());
}

// --- Peers that die
// ---------------------------------------------------------------------------------

TEST_F(ImageTransferTest, ASourceThatDiesMidFileLeavesNothing) {
  Listen();
  const auto reception = Expect();
  RawPeer peer = WelcomedPeer();
  peer.Send(Begin{2, 10});
  peer.Send(FileBegin{3, "a"});
  peer.Send(Data{"abc"});
  peer.Send(EndOf("abc"));
  peer.Send(FileBegin{7, "b"});
  peer.Send(Data{"xyz"});
  peer.Close();
  const base::Error error = FailureOf(*reception);
  EXPECT_EQ(error.error_number(), ECONNRESET);
  EXPECT_THAT(error.message(), AllOf(HasSubstr("m1"), HasSubstr("closed the connection")));
}

TEST_F(ImageTransferTest, ADestinationThatDiesMidFileIsAnErrorAndNoSignal) {
  Write("a", RandomBytes(20 * kMiB));
  const RawServer server(*context_, [](RawPeer peer) {
    EXPECT_TRUE(peer.Next());
    peer.Send(Welcome{});
    for (int i = 0; i < 4; ++i) EXPECT_TRUE(peer.Next());
  });  // closes with data unread: a reset
  auto sender = ConnectTo(server.port());
  ASSERT_TRUE(sender);
  const auto sent = sender->Send(source_, {});
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().error_number(), ECONNRESET);
  EXPECT_THAT(sent.error().message(), AllOf(HasSubstr("destination.test"), HasSubstr("closed")));
}

TEST_F(ImageTransferTest, ADestinationThatDiesBeforeDoneIsAnError) {
  const RawServer server(*context_, [](RawPeer peer) {
    for (int i = 0; i < 3; ++i) {  // Hello, Begin, Finish
      EXPECT_TRUE(peer.Next());
      if (i == 0) peer.Send(Welcome{});
    }
  });
  auto sender = ConnectTo(server.port());
  ASSERT_TRUE(sender);
  EXPECT_FALSE(sender->Send(source_, {}));
}

TEST_F(ImageTransferTest, DoneWithOtherTotalsIsAnError) {
  Write("a", "abc");
  const RawServer server(*context_, [](RawPeer peer) {
    EXPECT_TRUE(peer.Next());
    peer.Send(Welcome{});
    for (int i = 0; i < 5; ++i) EXPECT_TRUE(peer.Next());
    peer.Send(Done{1, 2});
    EXPECT_FALSE(std::holds_alternative<Finish>(peer.Next().value_or(Finish{})));
  });
  auto sender = ConnectTo(server.port());
  ASSERT_TRUE(sender);
  const auto sent = sender->Send(source_, {});
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().code(), base::ErrorCode::kDataLoss);
}

// --- Room, limits, damage
// ---------------------------------------------------------------------------

TEST_F(ImageTransferTest, MoreThanTheLimitIsRefusedAtOnceWithBothNumbers) {
  Write("a", RandomBytes(3 * kMiB));
  Listen();
  const auto reception = Expect("m1", 3 * kMiB - 1);
  const auto sent = Send();
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().error_number(), EFBIG);
  EXPECT_THAT(sent.error().message(), AllOf(HasSubstr("3145728"), HasSubstr("3145727")));
  EXPECT_EQ(FailureOf(*reception).error_number(), EFBIG);
}

class NoRoomTest : public ImageTransferTest {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "mounting a tmpfs takes root";
    ImageTransferTest::SetUp();
    auto mount = base::TmpfsMount::Create(destination_, 4 * kMiB);
    ASSERT_TRUE(mount) << mount.error().message();
    mount_.emplace(std::move(*mount));
  }
  void TearDown() override {
    mount_.reset();
    if (!root_.empty()) ImageTransferTest::TearDown();
  }
  std::optional<base::TmpfsMount> mount_;
};

TEST_F(NoRoomTest, KnownFromTheAnnouncement) {
  Write("pages-1.img", RandomBytes(6 * kMiB));
  Listen();
  const auto reception = Expect();
  const auto sent = Send();
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().error_number(), ENOSPC);
  EXPECT_THAT(sent.error().message(),
              AllOf(HasSubstr("no room at the destination: 4194304 bytes are free"),
                    HasSubstr(destination_.string()), HasSubstr("6291456")));
  EXPECT_EQ(FailureOf(*reception).error_number(), ENOSPC);
}

TEST_F(NoRoomTest, FoundOutOnTheWay) {
  Write("pages-1.img", RandomBytes(7 * kMiB / 2));
  Listen();
  const auto reception = Expect();
  auto sender = Connect();
  ASSERT_TRUE(sender);
  bool filled = false;
  const auto sent = sender->Send(source_, [&](uint64_t, uint64_t) {
    if (std::exchange(filled, true)) return;
    std::ofstream(destination_ / "someone-elses", std::ios::binary) << RandomBytes(2 * kMiB);
  });
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().error_number(), ENOSPC);
  EXPECT_THAT(sent.error().message(), HasSubstr("no room at the destination"));
  const auto received = reception->Wait(Soon());
  ASSERT_FALSE(received);
  EXPECT_EQ(received.error().error_number(), ENOSPC);
  EXPECT_EQ(FilesIn(destination_), 1U);  // someone else's
}

TEST_F(ImageTransferTest, AWrongChecksumIsDataLoss) {
  Listen();
  const auto reception = Expect();
  RawPeer peer = WelcomedPeer();
  peer.Send(Begin{1, 3});
  peer.Send(FileBegin{3, "a"});
  peer.Send(Data{"abc"});
  peer.Send(EndOf("abd"));
  const ErrorFrame error = peer.ExpectError();
  EXPECT_EQ(error.code, WireError::kChecksum);
  EXPECT_THAT(error.message, HasSubstr("checksum"));
  EXPECT_EQ(FailureOf(*reception).code(), base::ErrorCode::kDataLoss);
}

TEST_F(ImageTransferTest, NamesThatLeadOutOfTheDirectoryAreRefused) {
  Listen();
  for (const std::string name : {"../outside", "..", "/tmp/outside", "sub/outside", ".outside"}) {
    const auto reception = Expect();
    RawPeer peer = WelcomedPeer();
    peer.Send(Begin{1, 3});
    peer.Send(FileBegin{3, name});
    const ErrorFrame error = peer.ExpectError();
    EXPECT_EQ(error.code, WireError::kProtocol) << name;
    EXPECT_THAT(error.message, HasSubstr(name));
    EXPECT_EQ(FailureOf(*reception).error_number(), EPROTO);
    EXPECT_FALSE(fs::exists(root_ / "outside"));
  }
}

TEST_F(ImageTransferTest, TheSourceRefusesFilesThatTheDestinationWould) {
  Write(".hidden", "x");
  Listen();
  const auto reception = Expect();
  const auto sent = Send();
  ASSERT_FALSE(sent);
  EXPECT_THAT(sent.error().message(), HasSubstr(".hidden"));
  const base::Error error = FailureOf(*reception);
  EXPECT_EQ(error.error_number(), ECONNABORTED);
  EXPECT_THAT(error.message(), AllOf(HasSubstr("the source gave up"), HasSubstr(".hidden")));
}

TEST_F(ImageTransferTest, AFileThatShrinksIsAnErrorOnBothSides) {
  Write("a", RandomBytes(kMiB));
  Write("b", RandomBytes(kMiB));
  Listen();
  const auto reception = Expect();
  auto sender = Connect();
  ASSERT_TRUE(sender);
  const auto sent = sender->Send(source_, [&](uint64_t, uint64_t) {
    fs::resize_file(source_ / "a", 10);
    fs::resize_file(source_ / "b", 10);
  });
  ASSERT_FALSE(sent);
  EXPECT_THAT(sent.error().message(), HasSubstr("shorter at the source"));
  EXPECT_THAT(FailureOf(*reception).message(), HasSubstr("shorter at the source"));
}

// --- Frames that no waft sends
// ----------------------------------------------------------------------

TEST_F(ImageTransferTest, AnotherVersionIsRefusedNamingBoth) {
  Listen();
  const auto reception = Expect();
  RawPeer peer = RawPeer::Connect(listener_->port(), *context_);
  peer.Send(Hello{7, TokenOf(7), "m1"});
  const ErrorFrame error = peer.ExpectError();
  EXPECT_EQ(error.code, WireError::kVersion);
  EXPECT_EQ(error.version, kProtocolVersion);
  EXPECT_THAT(error.message, AllOf(HasSubstr("version 7"), HasSubstr("version 1")));

  const RawServer server(*context_, [](RawPeer newer) {
    EXPECT_TRUE(newer.Next());
    newer.Send(ErrorFrame{7, WireError::kVersion, "cannot"});
  });
  const auto sender = ConnectTo(server.port());
  ASSERT_FALSE(sender);
  EXPECT_EQ(sender.error().code(), base::ErrorCode::kUnsupported);
  EXPECT_THAT(sender.error().message(), AllOf(HasSubstr("version 7"), HasSubstr("version 1")));
}

TEST_F(ImageTransferTest, GarbageIsRefusedInEveryState) {
  Listen();
  std::string huge = Encode(Data{"x"});
  std::fill_n(huge.begin() + 4, 4, '\xff');  // a payload of 4 GiB - 1
  for (const std::string& junk : {std::string(64, 'z'), huge, Encode(Done{1, 1})}) {
    RawPeer stranger = RawPeer::Connect(listener_->port(), *context_);
    stranger.SendBytes(junk);
    EXPECT_EQ(stranger.ExpectError().code, WireError::kProtocol);

    for (const bool in_file : {false, true}) {
      const auto reception = Expect();
      RawPeer peer = WelcomedPeer();
      if (in_file) {
        peer.Send(Begin{1, 100});
        peer.Send(FileBegin{100, "a"});
      }
      peer.SendBytes(junk);
      EXPECT_EQ(peer.ExpectError().code, WireError::kProtocol);
      EXPECT_EQ(FailureOf(*reception).error_number(), EPROTO);
    }
  }
}

TEST_F(ImageTransferTest, ASenderEndsWhenTheDestinationTalksNonsense) {
  Write("a", RandomBytes(20 * kMiB));
  for (const std::string& nonsense :
       {std::string(64, 'z'), Encode(Done{1, 1}), Encode(Data{"x"}), Encode(Welcome{})}) {
    const RawServer server(*context_, [&](RawPeer peer) {
      EXPECT_TRUE(peer.Next());
      peer.Send(Welcome{});
      EXPECT_TRUE(peer.Next());
      peer.SendBytes(nonsense);
      while (peer.Next()) {
      }
    });
    auto sender = ConnectTo(server.port());
    ASSERT_TRUE(sender);
    const auto sent = sender->Send(source_, {});
    ASSERT_FALSE(sent);
    EXPECT_EQ(sent.error().error_number(), EPROTO) << sent.error().message();
  }
}

// --- Cancelling
// -------------------------------------------------------------------------------------

TEST_F(ImageTransferTest, CancelForgetsTheToken) {
  Listen();
  const auto reception = Expect();
  auto waiting = std::async(std::launch::async, [&] { return reception->Wait(Soon()); });
  reception->Cancel();
  const auto result = waiting.get();
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().error_number(), ECANCELED);
  EXPECT_FALSE(Connect());
}

TEST_F(ImageTransferTest, CancelEndsAStreamAndTellsTheSource) {
  Listen();
  const auto reception = Expect();
  RawPeer peer = WelcomedPeer();
  peer.Send(Begin{1, 100});
  peer.Send(FileBegin{100, "a"});
  peer.Send(Data{"abc"});
  auto waiting = std::async(std::launch::async, [&] { return FailureOf(*reception); });
  std::this_thread::sleep_for(milliseconds(50));
  const auto start = std::chrono::steady_clock::now();
  reception->Cancel();
  EXPECT_EQ(waiting.get().error_number(), ECANCELED);
  EXPECT_LT(std::chrono::steady_clock::now() - start, milliseconds(1000));
  const ErrorFrame error = peer.ExpectError();
  EXPECT_EQ(error.code, WireError::kCancelled);
}

TEST_F(ImageTransferTest, CancelReachesASenderAtFullSpeed) {
  Write("a", RandomBytes(30 * kMiB));
  Listen();
  const auto reception = Expect();
  auto sender = Connect();
  ASSERT_TRUE(sender);
  const auto sent = sender->Send(source_, [&](uint64_t done, uint64_t total) {
    if (done > total / 4) reception->Cancel();
  });
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().error_number(), ECANCELED);
  EXPECT_THAT(sent.error().message(), HasSubstr("the destination cancelled"));
  EXPECT_EQ(FailureOf(*reception).error_number(), ECANCELED);
}

TEST_F(ImageTransferTest, TheSenderCanBeCancelled) {
  Write("a", RandomBytes(30 * kMiB));
  Listen();
  const auto reception = Expect();
  auto sender = Connect();
  ASSERT_TRUE(sender);
  const auto sent = sender->Send(source_, [&](uint64_t, uint64_t) { sender->Cancel(); });
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().error_number(), ECANCELED);
  EXPECT_THAT(FailureOf(*reception).message(),
              AnyOf(HasSubstr("the source gave up"), HasSubstr("closed the connection")));
}

TEST_F(ImageTransferTest, DestroyingTheListenerEndsEverythingSoon) {
  Listen();
  const base::UniqueFd half_open = ConnectTcp(listener_->port());
  const auto waiting = listener_->Expect("other", TokenOf(1), root_, 1);
  ASSERT_TRUE(waiting);
  const auto reception = Expect();
  RawPeer peer = WelcomedPeer();
  peer.Send(Begin{1, 100});
  peer.Send(FileBegin{100, "a"});
  peer.Send(Data{"abc"});
  std::this_thread::sleep_for(milliseconds(50));
  const auto start = std::chrono::steady_clock::now();
  listener_.reset();
  EXPECT_LT(std::chrono::steady_clock::now() - start, milliseconds(1000));
  EXPECT_THAT(FailureOf(*reception).message(), HasSubstr("stopped"));
  EXPECT_FALSE((*waiting)->Wait(Soon()));
}

// --- Fault points
// -----------------------------------------------------------------------------------

using ImageTransferDeathTest = ImageTransferTest;

TEST_F(ImageTransferDeathTest, FaultPointsAreReachedHalfWay) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // WAFT_FAULT is read once per process
  // What a killed child leaves then lies in our directory, and goes with it.
  ::setenv("TMPDIR", root_.c_str(), 1);
  Write("a", RandomBytes(2 * kMiB));
  const auto run = [&](const char* fault) {
    ::setenv("WAFT_FAULT", fault, 1);
    Listen();
    const auto reception = Expect();
    const auto sent = Send();
    if (!sent) std::fprintf(stderr, "%s\n", sent.error().message().c_str());
    const auto received = reception->Wait(Soon());
    if (!received) std::fprintf(stderr, "%s\n", received.error().message().c_str());
    std::_Exit(!sent && !received ? 0 : 1);
  };
  EXPECT_EXIT(run("source-sending=fail"), ::testing::ExitedWithCode(0),
              "the source gave up: injected fault at source-sending");
  EXPECT_EXIT(run("destination-receiving=fail"), ::testing::ExitedWithCode(0),
              "image transfer to destination.test .*: injected fault at destination-receiving");
  EXPECT_EXIT(run("destination-receiving=kill"), ::testing::KilledBySignal(SIGKILL), "");
  ::unsetenv("TMPDIR");
}

}  // namespace
}  // namespace waft::transfer
