#include "tests/workloads/support.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace waft::workloads {
namespace {

struct Connection {
  int fd;
  std::string input;
};

// False when the peer has gone.
bool AnswerWhatCame(Connection& connection,
                    const std::function<std::string(const std::string&)>& answer) {
  std::array<char, 4096> buffer{};
  const ssize_t got = ::recv(connection.fd, buffer.data(), buffer.size(), 0);
  if (got < 0 && errno == EINTR) return true;
  if (got <= 0) return false;
  connection.input.append(buffer.data(), static_cast<size_t>(got));
  for (size_t end = 0; (end = connection.input.find('\n')) != std::string::npos;) {
    const std::string reply = answer(connection.input.substr(0, end)) + "\n";
    connection.input.erase(0, end + 1);
    if (::send(connection.fd, reply.data(), reply.size(), MSG_NOSIGNAL) !=
        static_cast<ssize_t>(reply.size())) {
      return false;
    }
  }
  return true;
}

}  // namespace

void Die(const std::string& what) {
  std::fprintf(stderr, "%s: %s\n", what.c_str(), std::strerror(errno));
  std::_Exit(1);
}

long Must(long result, const char* what) {
  if (result < 0) Die(what);
  return result;
}

std::string PatternBytes(uint64_t owner, uint64_t generation, size_t length) {
  std::string bytes(length, '\0');
  for (size_t i = 0; i < length; ++i) {
    bytes[i] = static_cast<char>(Pattern(owner, generation, i / 8) >> (i % 8 * 8));
  }
  return bytes;
}

void ServeLines(uint16_t port, const std::function<std::string(const std::string&)>& answer) {
  const int listener = static_cast<int>(Must(::socket(AF_INET, SOCK_STREAM, 0), "socket"));
  const int on = 1;
  Must(::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)), "SO_REUSEADDR");
  const sockaddr_in address{
      .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {INADDR_ANY}};
  Must(::bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), "bind");
  Must(::listen(listener, 16), "listen");

  uint64_t pings = 0;
  const auto answer_any = [&](const std::string& request) {
    return request == "PING" ? "OK " + std::to_string(++pings) : answer(request);
  };
  std::vector<Connection> connections;
  for (;;) {
    std::vector<pollfd> wait{{listener, POLLIN, 0}};
    for (const Connection& connection : connections) wait.push_back({connection.fd, POLLIN, 0});
    if (::poll(wait.data(), wait.size(), -1) < 0) {
      if (errno == EINTR) continue;
      Die("poll");
    }
    for (size_t i = connections.size(); i > 0; --i) {
      if (wait[i].revents == 0 || AnswerWhatCame(connections[i - 1], answer_any)) continue;
      ::close(connections[i - 1].fd);
      connections.erase(connections.begin() + static_cast<std::ptrdiff_t>(i) - 1);
    }
    if (wait[0].revents == 0) continue;
    const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) continue;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    connections.push_back({fd, {}});
  }
}

}  // namespace waft::workloads
