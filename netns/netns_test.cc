// Real namespaces, bridges and packets. main() moves the whole program into a network and a mount
// namespace of its own, so nothing it makes outlives it; those stand for the host. In them two
// bridges joined by a veth are the two hosts' ends of one segment:
//
//   client --c0- waft0 -trunk0--trunk1- waft1 --- (where networks are prepared)
//   web ---web0-/
#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <optional>
#include <span>
#include <string>
#include <thread>

#include "base/clock.h"
#include "base/file.h"
#include "base/process.h"
#include "base/unique_fd.h"
#include "netns/frames.h"
#include "netns/gate.h"
#include "netns/identity.h"
#include "netns/namespace.h"
#include "netns/prepared_network.h"

namespace waft::netns {
namespace {

using base::UniqueFd;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr Mac kWebMac{0x02, 0, 0, 0, 0, 0x05};
constexpr const char* kWebPath = "/run/netns/web";
constexpr const char* kOtherPath = "/run/netns/elsewhere/web2";
constexpr uint16_t kPort = 7000;

// The output; a command that fails fails the test.
std::string Shell(const std::string& script) {
  const auto result = base::RunFor({.argv = {"sh", "-ec", script}}, milliseconds(20000));
  if (!result || !result->exit.Ok()) {
    ADD_FAILURE() << script << ": " << (result ? result->err : result.error().message());
    return "";
  }
  return result->out;
}

// The program, which has one thread, inside another network namespace.
class Inside {
 public:
  explicit Inside(const std::string& path) : home_(::open("/proc/self/ns/net", O_RDONLY)) {
    const UniqueFd there(::open(path.c_str(), O_RDONLY));
    EXPECT_EQ(::setns(there.get(), CLONE_NEWNET), 0) << path;
  }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
  ~Inside() { EXPECT_EQ(::setns(home_.get(), CLONE_NEWNET), 0); }

 private:
  UniqueFd home_;
};

double MsSince(steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(steady_clock::now() - start).count();
}

struct SocketAddress {
  SocketAddress(const std::string& text, uint16_t port) {
    if (text.find(':') == std::string::npos) {
      auto* v4 = reinterpret_cast<sockaddr_in*>(&storage);
      v4->sin_family = AF_INET;
      v4->sin_port = htons(port);
      EXPECT_EQ(::inet_pton(AF_INET, text.c_str(), &v4->sin_addr), 1);
      size = sizeof(*v4);
    } else {
      auto* v6 = reinterpret_cast<sockaddr_in6*>(&storage);
      v6->sin6_family = AF_INET6;
      v6->sin6_port = htons(port);
      EXPECT_EQ(::inet_pton(AF_INET6, text.c_str(), &v6->sin6_addr), 1);
      size = sizeof(*v6);
    }
  }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  sockaddr_storage storage{};
  socklen_t size = 0;
};

bool Readable(int fd, milliseconds timeout) {
  pollfd wait{fd, POLLIN, 0};
  return ::poll(&wait, 1, static_cast<int>(timeout.count())) == 1;
}

// A UDP socket in one namespace and one in another, each connected to the other.
struct UdpPair {
  UdpPair(const std::string& here, const std::string& here_ip, const std::string& there,
          const std::string& there_ip) {
    one = Make(here, here_ip, there_ip);
    other = Make(there, there_ip, here_ip);
  }
  static UniqueFd Make(const std::string& path, const std::string& own, const std::string& peer) {
    const Inside inside(path);
    const SocketAddress local(own, kPort);
    const SocketAddress remote(peer, kPort);
    UniqueFd fd(::socket(local.storage.ss_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    EXPECT_EQ(::bind(fd.get(), local.get(), local.size), 0) << own << ": " << std::strerror(errno);
    EXPECT_EQ(::connect(fd.get(), remote.get(), remote.size), 0) << std::strerror(errno);
    return fd;
  }
  static void Send(const UniqueFd& fd) { (void)!::send(fd.get(), "x", 1, 0); }
  static bool Receive(const UniqueFd& fd, milliseconds timeout) {
    char byte = 0;
    return Readable(fd.get(), timeout) && ::recv(fd.get(), &byte, 1, 0) == 1;
  }
  // One datagram there and one back; milliseconds, or nothing.
  std::optional<double> RoundTrip(milliseconds timeout) const {
    const auto start = steady_clock::now();
    Send(one);
    if (!Receive(other, timeout)) return std::nullopt;
    Send(other);
    if (!Receive(one, timeout)) return std::nullopt;
    return MsSince(start);
  }
  UniqueFd one;
  UniqueFd other;
};

// Sees, and can write, every frame on one interface.
class Tap {
 public:
  Tap(const std::string& path, const char* interface) {
    const Inside inside(path);
    fd_.reset(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, htons(ETH_P_ALL)));
    const sockaddr_ll place{.sll_family = AF_PACKET,
                            .sll_protocol = htons(ETH_P_ALL),
                            .sll_ifindex = static_cast<int>(::if_nametoindex(interface))};
    EXPECT_EQ(::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&place), sizeof(place)), 0);
    const int on = 1;
    ::setsockopt(fd_.get(), SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on));
  }
  void Send(const Frame& frame) const { (void)!::send(fd_.get(), frame.data(), frame.size(), 0); }
  // Frames that have come in by now or within `timeout`, from `mac`.
  int Count(const Mac& mac, milliseconds timeout) const {
    int count = 0;
    std::array<uint8_t, 2048> buffer;
    while (Readable(fd_.get(), timeout)) {
      if (::recv(fd_.get(), buffer.data(), buffer.size(), 0) < 12) continue;
      count += std::equal(mac.begin(), mac.end(), &buffer[6]) ? 1 : 0;
    }
    return count;
  }

 private:
  UniqueFd fd_;
};

class NetnsTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "makes network namespaces: needs root";
    SetHelperPath(WAFT_NETNS_HELPER);
    Shell(R"(
      ip link set lo up
      for bridge in waft0 waft1; do ip link add $bridge type bridge; ip link set $bridge up; done
      ip link add trunk0 type veth peer name trunk1
      ip link set trunk0 master waft0 up
      ip link set trunk1 master waft1 up
      ip netns add client
      ip link add c0 type veth peer name eth0 address 02:00:00:00:00:01 netns client
      ip link set c0 master waft0 up
      ip -n client link set eth0 up
      ip -n client addr add 10.0.0.1/24 dev eth0
      ip -n client addr add fd00::1/64 dev eth0 nodad
      ip netns add web)");
    MakeWeb("");
  }

  // `extra`: more words for the veth's `ip link add`.
  static void MakeWeb(const std::string& index) {
    Shell("ip link add web0 " + index + " type veth peer name eth0 " + index +
          " address 02:00:00:00:00:05 mtu 1400 netns web");
    Shell(R"(
      ip link set web0 master waft0 up mtu 1400
      ip -n web link set lo up
      ip -n web link set eth0 up
      ip -n web addr add 10.0.0.5/24 broadcast 10.0.0.255 dev eth0
      ip -n web addr add 10.0.0.6/32 dev eth0
      ip -n web addr add fd00::5/64 dev eth0 nodad
      ip -n web route add 172.16.0.1 dev eth0 metric 7
      ip -n web route add default via 172.16.0.1 dev eth0
      ip -n web route add 10.9.0.0/16 via 10.0.0.1 metric 50 src 10.0.0.5
      ip -n web route add 10.10.0.0/16 via 192.168.9.9 dev eth0 onlink
      ip -n web -6 route add default via fd00::1)");
  }

  void TearDown() override {
    if (::geteuid() != 0) return;
    v1::NetworkIdentity other;
    other.set_path(kOtherPath);
    EXPECT_TRUE(Destroy(other));
    Shell(R"(
      ip netns del web; ip netns del client
      for link in web0 c0 trunk0 waft0 waft1; do ip link del $link 2>/dev/null || true; done
      for i in $(seq 200); do ls /sys/class/net >/dev/null; ip -o link | grep -q veth || break
        sleep 0.01; done)");
    EXPECT_THAT(LinkNames(), ElementsAre("lo"));
  }

  static std::vector<std::string> LinkNames() {
    auto netlink = Netlink::Open();
    auto links = ReadLinks(*netlink);
    std::vector<std::string> names;
    for (const LinkInfo& link : *links) names.push_back(link.name);
    return names;
  }

  static v1::NetworkIdentity CaptureWeb() {
    auto captured = Capture(kWebPath);
    EXPECT_TRUE(captured) << captured.error().message();
    return captured.value_or(v1::NetworkIdentity());
  }

  // What the other host is asked to build.
  static v1::NetworkIdentity WebElsewhere() {
    v1::NetworkIdentity identity = CaptureWeb();
    identity.set_path(kOtherPath);
    for (auto& link : *identity.mutable_links()) link.set_host_bridge("waft1");
    return identity;
  }

  static PreparedNetwork MustPrepare(const v1::NetworkIdentity& identity) {
    auto prepared = PreparedNetwork::Prepare(identity);
    if (!prepared) ADD_FAILURE() << prepared.error().message();
    return std::move(prepared).value();  // or throws: the test ends, TearDown() cleans up
  }

  static Gate MustGate(const v1::NetworkIdentity& identity) {
    auto gate = Gate::ForWorkload(identity);
    if (!gate) ADD_FAILURE() << gate.error().message();
    return std::move(gate).value();  // or throws: the test ends, TearDown() cleans up
  }
};

void ExpectOk(const base::Status& status) {
  EXPECT_TRUE(status) << (status ? "" : status.error().message());
}

TEST_F(NetnsTest, CaptureSeesLinkAddressesAndRoutes) {
  const v1::NetworkIdentity identity = CaptureWeb();
  ASSERT_EQ(identity.links_size(), 1);
  const v1::NetworkLink& link = identity.links(0);
  EXPECT_EQ(link.name(), "eth0");
  EXPECT_EQ(MacFromBytes(link.mac()), kWebMac);
  EXPECT_EQ(link.mtu(), 1400);
  EXPECT_EQ(link.host_name(), "web0");
  EXPECT_EQ(link.host_bridge(), "waft0");
  ASSERT_EQ(link.addresses_size(), 3) << identity.DebugString();  // no fe80::
  EXPECT_EQ(link.addresses(0).address(), "10.0.0.5");
  EXPECT_EQ(link.addresses(0).prefix_length(), 24);
  EXPECT_EQ(link.addresses(0).broadcast(), "10.0.0.255");
  EXPECT_EQ(link.addresses(1).broadcast(), "");
  EXPECT_EQ(link.addresses(2).address(), "fd00::5");
  ASSERT_EQ(identity.routes_size(), 5) << identity.DebugString();
  EXPECT_EQ(identity.routes(0).destination(), "default");
  EXPECT_EQ(identity.routes(0).gateway(), "172.16.0.1");
  EXPECT_EQ(identity.routes(4).destination(), "default");
  EXPECT_EQ(identity.routes(4).family(), AF_INET6);
  EXPECT_TRUE(Validate(identity));
}

TEST_F(NetnsTest, CaptureRefusesByName) {
  struct Case {
    const char* make;
    const char* undo;
    const char* named;
  };
  const std::array cases{
      Case{"ip -n web link add br9 type bridge", "ip -n web link del br9", "link br9 is a bridge"},
      Case{"ip link set web0 nomaster", "ip link set web0 master waft0", "host end web0"},
      Case{"ip -n web addr add 10.7.7.7/32 dev lo", "ip -n web addr del 10.7.7.7/32 dev lo",
           "address 10.7.7.7 on lo"},
      Case{"ip -n web addr add 10.7.7.7 peer 10.7.7.8 dev eth0",
           "ip -n web addr del 10.7.7.7 peer 10.7.7.8 dev eth0", "10.7.7.7 is point-to-point"},
      Case{"ip -n web rule add from 10.0.0.5 table 100 priority 55",
           "ip -n web rule del priority 55", "policy rule 55"},
      Case{"ip -n web -6 rule add from fd00::5 table 100 priority 56",
           "ip -n web -6 rule del priority 56", "policy rule 56"},
      Case{"ip -n web route add 10.5.0.0/16 dev eth0 table 100", "ip -n web route flush table 100",
           "route 10.5.0.0/16 is in routing table 100"},
      Case{"ip -n web route add blackhole 10.5.0.0/16", "ip -n web route del blackhole 10.5.0.0/16",
           "route 10.5.0.0/16 is not a plain"},
      Case{"ip -n web route add 10.5.0.0/16 dev eth0 mtu 1200", "ip -n web route del 10.5.0.0/16",
           "route 10.5.0.0/16 is not a plain"},
      Case{"ip netns exec web nft add table inet filter",
           "ip netns exec web nft delete table inet filter", "nftables"},
      Case{"ip link set web0 netns client", "ip -n client link del web0",
           "eth0 has its other end in a third namespace"},
  };
  for (const Case& one : cases) {
    Shell(one.make);
    const auto captured = Capture(kWebPath);
    Shell(one.undo);
    ASSERT_FALSE(captured) << one.make;
    EXPECT_EQ(captured.error().code(), base::ErrorCode::kUnsupported);
    EXPECT_THAT(captured.error().message(), HasSubstr(one.named));
  }
}

TEST_F(NetnsTest, PreparedElsewhereIsTheSameIdentity) {
  const v1::NetworkIdentity wanted = WebElsewhere();
  const auto start = steady_clock::now();
  PreparedNetwork prepared = MustPrepare(wanted);
  std::cout << "Prepare " << MsSince(start) << " ms\n";
  EXPECT_THAT(Shell("ip -n elsewhere/web2 addr"), Not(HasSubstr("tentative")));
  ExpectOk(prepared.Open());
  auto built = Capture(kOtherPath);
  ASSERT_TRUE(built) << built.error().message();
  EXPECT_NE(built->links(0).host_name(), "web0") << "that name is taken here";
  built->mutable_links(0)->set_host_name("web0");
  EXPECT_EQ(built->SerializeAsString(), wanted.SerializeAsString())
      << built->DebugString() << wanted.DebugString();
}

TEST_F(NetnsTest, HostEndKeepsAFreeNameAndGetsNoAddress) {
  v1::NetworkIdentity wanted = WebElsewhere();
  wanted.mutable_links(0)->set_host_name("free0");
  const PreparedNetwork prepared = MustPrepare(wanted);
  EXPECT_THAT(LinkNames(), Contains("free0"));
  const std::string host_end = Shell("ip addr show free0");
  EXPECT_THAT(host_end, HasSubstr("UP"));
  EXPECT_THAT(host_end, Not(HasSubstr("inet"))) << "the host's own stack must stay off it";
}

TEST_F(NetnsTest, AnswersOnlyOnceOpenAndIsFoundAtOnce) {
  const v1::NetworkIdentity here = CaptureWeb();
  UdpPair before("/run/netns/client", "10.0.0.1", kWebPath, "10.0.0.5");
  ASSERT_TRUE(before.RoundTrip(milliseconds(1000)));
  UdpPair before6("/run/netns/client", "fd00::1", kWebPath, "fd00::5");
  ASSERT_TRUE(before6.RoundTrip(milliseconds(1000)));
  const std::string fdb = "bridge fdb show br waft0 | grep 02:00:00:00:00:05 | grep -v permanent";
  ASSERT_THAT(Shell(fdb), HasSubstr("dev web0"));

  PreparedNetwork prepared = MustPrepare(WebElsewhere());
  const UniqueFd server = UdpPair::Make(kOtherPath, "10.0.0.5", "10.0.0.1");
  const UniqueFd server6 = UdpPair::Make(kOtherPath, "fd00::5", "fd00::1");
  Gate gate = MustGate(here);
  ExpectOk(gate.Cut());
  // Asked for while nobody answers: the client's own retry would come a second later.
  Shell("ip -n client neigh flush all; ip -n client -6 neigh flush all");
  UdpPair::Send(before.one);
  UdpPair::Send(before6.one);
  EXPECT_FALSE(UdpPair::Receive(server, milliseconds(100)));
  EXPECT_FALSE(UdpPair::Receive(server6, milliseconds(0)));
  const Tap host_side("/proc/self/ns/net", "waft1");
  EXPECT_EQ(host_side.Count(kWebMac, milliseconds(0)), 0) << "the shut gate leaks";

  const auto start = steady_clock::now();
  ExpectOk(prepared.Open());
  const double open_ms = MsSince(start);
  EXPECT_TRUE(UdpPair::Receive(server, milliseconds(100)));
  EXPECT_TRUE(UdpPair::Receive(server6, milliseconds(100)));
  UdpPair::Send(server);
  EXPECT_TRUE(UdpPair::Receive(before.one, milliseconds(100)));
  UdpPair::Send(server6);
  EXPECT_TRUE(UdpPair::Receive(before6.one, milliseconds(100)));
  const double reached_ms = MsSince(start);
  std::cout << "Open " << open_ms << " ms, reached both ways v4 and v6 " << reached_ms << " ms\n";
  EXPECT_LT(reached_ms, 200);
  EXPECT_THAT(Shell(fdb), HasSubstr("dev trunk0"));
}

TEST_F(NetnsTest, AnnounceTurnsTheBridgesWithoutAnyTraffic) {
  const std::string fdb = "bridge fdb show br waft0 | grep 02:00:00:00:00:05 | grep -v permanent";
  const Tap web(kWebPath, "eth0");
  web.Send(ArpRequest(kWebMac, *ParseIp("10.0.0.5"), *ParseIp("10.0.0.5")));
  ASSERT_THAT(Shell(fdb), HasSubstr("dev web0"));
  PreparedNetwork prepared = MustPrepare(WebElsewhere());
  const Tap client("/run/netns/client", "eth0");
  ExpectOk(prepared.Open());
  EXPECT_GE(client.Count(kWebMac, milliseconds(300)), 3);  // one per address
  EXPECT_THAT(Shell(fdb), HasSubstr("dev trunk0"));
  ExpectOk(prepared.Announce());
  EXPECT_GE(client.Count(kWebMac, milliseconds(300)), 3);
}

// The host has an address in the same subnet; its stack must not answer what leaks out of a shut
// gate, or the workload learns a wrong neighbour. And what the workload asked in vain then must not
// keep it waiting for a second.
TEST_F(NetnsTest, NeighboursAskedForBehindTheShutGateAreAskedAgain) {
  Shell("ip addr add 10.0.0.254/24 dev waft1; ip addr add fd00::fe/64 dev waft1 nodad");
  PreparedNetwork prepared = MustPrepare(WebElsewhere());
  UdpPair pair(kOtherPath, "10.0.0.5", "/run/netns/client", "10.0.0.1");
  UdpPair pair6(kOtherPath, "fd00::5", "/run/netns/client", "fd00::1");
  UniqueFd to_host;
  {
    const Inside inside(kOtherPath);
    to_host.reset(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    const SocketAddress host("10.0.0.254", kPort);
    ASSERT_EQ(::connect(to_host.get(), host.get(), host.size), 0);
  }
  UdpPair::Send(to_host);
  UdpPair::Send(pair.one);
  UdpPair::Send(pair6.one);
  EXPECT_FALSE(UdpPair::Receive(pair.other, milliseconds(50)));
  EXPECT_THAT(Shell("ip -n elsewhere/web2 neigh show 10.0.0.254"), HasSubstr("INCOMPLETE"));
  EXPECT_THAT(Shell("ip -n elsewhere/web2 neigh show fd00::1"), HasSubstr("INCOMPLETE"));

  ExpectOk(prepared.Open());
  EXPECT_TRUE(UdpPair::Receive(pair.other, milliseconds(100)));
  EXPECT_TRUE(UdpPair::Receive(pair6.other, milliseconds(100)));
}

TEST_F(NetnsTest, CutStopsBothDirectionsAndRestoreUndoesIt) {
  const Tap web(kWebPath, "eth0");
  const Tap client("/run/netns/client", "eth0");
  const Mac client_mac{0x02, 0, 0, 0, 0, 0x01};
  const Frame from_web = ArpRequest(kWebMac, *ParseIp("10.0.0.5"), *ParseIp("10.0.0.77"));
  const Frame from_client = ArpRequest(client_mac, *ParseIp("10.0.0.1"), *ParseIp("10.0.0.77"));
  const auto count = [&] {
    for (int i = 0; i < 20; ++i) {
      web.Send(from_web);
      client.Send(from_client);
    }
    return std::pair(client.Count(kWebMac, milliseconds(30)),
                     web.Count(client_mac, milliseconds(30)));
  };
  const v1::NetworkIdentity identity = CaptureWeb();
  Gate gate = MustGate(identity);
  EXPECT_FALSE(gate.IsCut());
  auto [out, in] = count();
  EXPECT_GE(out, 20);
  EXPECT_GE(in, 20);

  const auto start = steady_clock::now();
  ExpectOk(gate.Cut());
  std::cout << "Cut " << MsSince(start) << " ms\n";
  EXPECT_TRUE(gate.IsCut());
  EXPECT_TRUE(MustGate(identity).IsCut()) << "found out by another";
  client.Count(kWebMac, milliseconds(0));  // what was under way before
  web.Count(client_mac, milliseconds(0));
  EXPECT_EQ(count(), std::pair(0, 0));

  ExpectOk(gate.Restore());
  EXPECT_FALSE(gate.IsCut());
  std::tie(out, in) = count();
  EXPECT_GE(out, 20);
  EXPECT_GE(in, 20);
}

// `settle`: until the kernel has told the link inside that its carrier is gone.
void ExpectRestoreIsImmediate(milliseconds settle) {
  UdpPair pair(kWebPath, "10.0.0.5", "/run/netns/client", "10.0.0.1");
  UdpPair pair6(kWebPath, "fd00::5", "/run/netns/client", "fd00::1");
  ASSERT_TRUE(pair.RoundTrip(milliseconds(1000)));
  ASSERT_TRUE(pair6.RoundTrip(milliseconds(1000)));
  const auto before = Capture(kWebPath);
  ASSERT_TRUE(before) << before.error().message();
  auto gate = Gate::ForWorkload(*before);
  ASSERT_TRUE(gate) << gate.error().message();
  ExpectOk(gate->Cut());
  std::this_thread::sleep_for(settle);
  // Lost, and so are the requests for the neighbours that they cause.
  UdpPair::Send(pair.one);
  UdpPair::Send(pair6.one);
  EXPECT_FALSE(UdpPair::Receive(pair.other, milliseconds(20)));
  EXPECT_THAT(Shell("ip -n web neigh show 10.0.0.1"), HasSubstr("INCOMPLETE"));
  EXPECT_THAT(Shell("ip -n web neigh show fd00::1"), HasSubstr("INCOMPLETE"));
  const auto start = steady_clock::now();
  ExpectOk(gate->Restore());
  const double restore_ms = MsSince(start);
  EXPECT_TRUE(pair.RoundTrip(milliseconds(100)));
  EXPECT_TRUE(pair6.RoundTrip(milliseconds(100)));
  std::cout << "Restore " << restore_ms << " ms, round trips done at " << MsSince(start) << " ms\n";
  const auto after = Capture(kWebPath);
  ASSERT_TRUE(after);
  EXPECT_EQ(after->SerializeAsString(), before->SerializeAsString());
}

TEST_F(NetnsTest, RestoreIsImmediateAndKeepsAddressesAndRoutes) {
  ExpectRestoreIsImmediate(milliseconds(50));
}

// The case in which the kernel's link watch takes its time.
TEST_F(NetnsTest, RestoreIsImmediateWhenBothEndsHaveTheSameIndex) {
  Shell("ip link del web0");
  MakeWeb("index 777");
  ExpectRestoreIsImmediate(milliseconds(1200));
}

TEST_F(NetnsTest, TcpSurvivesACut) {
  UniqueFd listener;
  const SocketAddress address("10.0.0.5", kPort);
  {
    const Inside inside(kWebPath);
    listener.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(::bind(listener.get(), address.get(), address.size), 0);
    ASSERT_EQ(::listen(listener.get(), 1), 0);
  }
  UniqueFd client;
  {
    const Inside inside("/run/netns/client");
    client.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(::connect(client.get(), address.get(), address.size), 0);
  }
  const UniqueFd server(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  ASSERT_TRUE(server);
  Gate gate = MustGate(CaptureWeb());
  ExpectOk(gate.Cut());
  ASSERT_EQ(::send(client.get(), "ping", 4, 0), 4);
  ASSERT_EQ(::send(server.get(), "pong", 4, 0), 4);
  EXPECT_FALSE(Readable(server.get(), milliseconds(300)));
  ExpectOk(gate.Restore());
  std::array<char, 8> buffer{};
  ASSERT_TRUE(Readable(server.get(), milliseconds(2000)));  // TCP's own timers by now
  EXPECT_EQ(::recv(server.get(), buffer.data(), buffer.size(), 0), 4);
  ASSERT_TRUE(Readable(client.get(), milliseconds(2000)));
  EXPECT_EQ(::recv(client.get(), buffer.data(), buffer.size(), 0), 4);
}

TEST_F(NetnsTest, DestroyLeavesNothingAndMayBeRepeated) {
  const v1::NetworkIdentity identity = CaptureWeb();
  const UniqueFd held(::open(kWebPath, O_RDONLY));  // as a dying process would
  ExpectOk(Destroy(identity));
  EXPECT_FALSE(std::filesystem::exists(kWebPath));
  EXPECT_THAT(LinkNames(), Not(Contains("web0")));
  ExpectOk(Destroy(identity));
  Shell("ip netns add web");  // for TearDown

  v1::NetworkIdentity file;
  file.set_path("/run/precious");
  std::ofstream(file.path()) << "text";
  EXPECT_FALSE(Destroy(file));
  EXPECT_TRUE(std::filesystem::exists(file.path()));
  std::filesystem::remove(file.path());
}

TEST_F(NetnsTest, AnEmptyIdentityIsANoOp) {
  const auto none = Capture("");
  ASSERT_TRUE(none);
  EXPECT_EQ(none->ByteSizeLong(), 0);
  EXPECT_THAT(Objections(*none), IsEmpty());
  ExpectOk(Destroy(*none));
  Gate gate = MustGate(*none);
  ExpectOk(gate.Cut());
  ExpectOk(gate.Restore());
  PreparedNetwork prepared = MustPrepare(*none);
  ExpectOk(prepared.Open());
  ExpectOk(prepared.Announce());
  EXPECT_TRUE(PreparedNetwork::Adopt(*none));
}

TEST_F(NetnsTest, ObjectionsNameWhatIsInTheWay) {
  v1::NetworkIdentity identity = WebElsewhere();
  EXPECT_THAT(Objections(identity), IsEmpty()) << "the source's own answers are fine";

  identity.set_path(kWebPath);
  EXPECT_THAT(Objections(identity), ElementsAre(HasSubstr("/run/netns/web is already there")));
  identity.set_path(kOtherPath);

  identity.mutable_links(0)->set_host_bridge("waft7");
  EXPECT_THAT(Objections(identity), ElementsAre(HasSubstr("no bridge waft7")));
  identity.mutable_links(0)->set_host_bridge("waft1");

  Shell("ip link set waft1 type bridge stp_state 1");
  EXPECT_THAT(Objections(identity), ElementsAre(HasSubstr("runs spanning tree")));
  Shell("ip link set waft1 type bridge stp_state 0");

  Shell("ip link set waft1 down");
  EXPECT_THAT(Objections(identity), ElementsAre("bridge waft1 is down"));
  Shell("ip link set waft1 up");

  Shell("ip addr add 10.0.0.5/24 dev waft1");
  EXPECT_THAT(Objections(identity), Contains("address 10.0.0.5 is this host's own, on waft1"));
  Shell("ip addr del 10.0.0.5/24 dev waft1");

  const auto start = steady_clock::now();
  Shell("ip -n client addr add 10.0.0.6/24 dev eth0");
  EXPECT_THAT(Objections(identity),
              ElementsAre("address 10.0.0.6 is in use by 02:00:00:00:00:01 on the segment of "
                          "bridge waft1"));
  EXPECT_LT(MsSince(start), 2000);

  identity.mutable_links(0)->set_mac("short");
  EXPECT_THAT(Objections(identity), ElementsAre(HasSubstr("no MAC")));
}

TEST_F(NetnsTest, ABridgeThatFiltersVlansIsRefused) {
  const v1::NetworkIdentity identity = WebElsewhere();
  if (std::system("ip link set waft0 type bridge vlan_filtering 1 2>/dev/null") != 0) {
    GTEST_SKIP() << "this kernel's bridge has no VLAN filter";
  }
  Shell("ip link set waft1 type bridge vlan_filtering 1");
  EXPECT_THAT(Capture(kWebPath).error().message(), HasSubstr("bridge waft0 filters VLANs"));
  EXPECT_THAT(Objections(identity), ElementsAre(HasSubstr("bridge waft1 filters VLANs")));
}

TEST_F(NetnsTest, AdoptGoesOnWhereThePreparingProcessDied) {
  const v1::NetworkIdentity identity = WebElsewhere();
  MustPrepare(identity).Commit();
  Gate source = MustGate(CaptureWeb());
  ExpectOk(source.Cut());
  UdpPair pair("/run/netns/client", "10.0.0.1", kOtherPath, "10.0.0.5");
  EXPECT_FALSE(pair.RoundTrip(milliseconds(50)));
  {
    auto adopted = PreparedNetwork::Adopt(identity);
    ASSERT_TRUE(adopted) << adopted.error().message();
    ExpectOk(adopted->Open());
    ExpectOk(adopted->Open());
  }
  EXPECT_TRUE(pair.RoundTrip(milliseconds(100))) << "or adopting undid it at its end";
}

TEST_F(NetnsTest, WhatIsNotCommittedIsUndone) {
  const v1::NetworkIdentity identity = WebElsewhere();
  const std::vector<std::string> before = LinkNames();
  {
    PreparedNetwork prepared = MustPrepare(identity);
    EXPECT_NE(LinkNames(), before);
    ExpectOk(prepared.Open());
    PreparedNetwork moved = std::move(prepared);
  }
  EXPECT_EQ(LinkNames(), before);
  EXPECT_FALSE(std::filesystem::exists(kOtherPath));

  v1::NetworkIdentity no_bridge = identity;
  no_bridge.mutable_links(0)->set_host_bridge("waft7");
  const auto failed = PreparedNetwork::Prepare(no_bridge);
  ASSERT_FALSE(failed);
  EXPECT_THAT(failed.error().message(), HasSubstr("no bridge waft7"));
  EXPECT_EQ(LinkNames(), before);
  EXPECT_FALSE(std::filesystem::exists(kOtherPath));

  v1::NetworkIdentity taken = identity;
  taken.set_path(kWebPath);
  const auto refused = PreparedNetwork::Prepare(taken);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().error_number(), EEXIST) << refused.error().message();
  EXPECT_TRUE(Capture(kWebPath)) << "not ours to remove";
}

TEST_F(NetnsTest, HelperFailuresSayWhat) {
  EXPECT_THAT(Capture("/run/netns/none").error().message(),
              HasSubstr("enter network namespace /run/netns/none: open /run/netns/none"));
  std::ofstream("/run/file") << "";
  EXPECT_THAT(Capture("/run/file").error().message(), HasSubstr("setns"));
  std::filesystem::remove("/run/file");
  SetHelperPath("/nonexistent/helper");
  EXPECT_FALSE(Capture(kWebPath));
}

TEST(IdentityTest, ValidateRefusesWhatAPeerMustNotSend) {
  v1::NetworkIdentity good;
  good.set_path("/run/netns/web");
  v1::NetworkLink* link = good.add_links();
  link->set_name("eth0");
  link->set_mac("\x02\0\0\0\0\x05", 6);
  link->set_mtu(1500);
  link->set_host_bridge("waft0");
  v1::NetworkAddress* address = link->add_addresses();
  address->set_address("10.0.0.5");
  address->set_prefix_length(24);
  v1::NetworkRoute* route = good.add_routes();
  route->set_destination("default");
  route->set_gateway("10.0.0.1");
  route->set_interface("eth0");
  route->set_family(AF_INET);
  ASSERT_TRUE(Validate(good));

  const auto refused = [&](auto&& spoil) {
    v1::NetworkIdentity bad = good;
    spoil(bad);
    const base::Status status = Validate(bad);
    return !status && status.error().code() == base::ErrorCode::kBadArgument;
  };
  using Identity = v1::NetworkIdentity;
  for (const char* path : {"netns/web", "/run/../etc/passwd", "/run/netns/", "/proc/1/ns/net"}) {
    EXPECT_TRUE(refused([&](Identity& bad) { bad.set_path(path); })) << path;
  }
  for (const char* name : {"", "lo", "..", "a/b", "sixteen-letters0", "waft%d"}) {
    EXPECT_TRUE(refused([&](Identity& bad) { bad.mutable_links(0)->set_name(name); })) << name;
  }
  EXPECT_TRUE(refused([](Identity& bad) { bad.mutable_links(0)->set_mac("\x01\0\0\0\0\0", 6); }));
  EXPECT_TRUE(refused([](Identity& bad) { bad.mutable_links(0)->set_mtu(1 << 20); }));
  EXPECT_TRUE(refused([](Identity& bad) { bad.mutable_links(0)->set_host_bridge(""); }));
  EXPECT_TRUE(refused([](Identity& bad) { *bad.add_links() = bad.links(0); }));
  EXPECT_TRUE(refused(
      [](Identity& bad) { bad.mutable_links(0)->mutable_addresses(0)->set_prefix_length(33); }));
  EXPECT_TRUE(refused([](Identity& bad) { bad.mutable_routes(0)->set_interface("eth1"); }));
  EXPECT_TRUE(refused([](Identity& bad) { bad.mutable_routes(0)->set_gateway("fd00::1"); }));
  EXPECT_TRUE(refused([](Identity& bad) { bad.mutable_routes(0)->set_table(100); }));
}

}  // namespace
}  // namespace waft::netns

int main(int argc, char** argv) {
  // Before anything can start a thread.
  if (::geteuid() == 0) {
    if (::unshare(CLONE_NEWNET | CLONE_NEWNS) != 0 ||
        ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("waft-test", "/run", "tmpfs", 0, nullptr) != 0) {
      std::perror("a namespace of the test's own");
      return 1;
    }
  }
  testing::InitGoogleMock(&argc, argv);
  return RUN_ALL_TESTS();
}
