#include "comm/socket.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <string_view>
#include <system_error>

#include "base/error.h"

namespace degu {
namespace {

// A machine that is gone sends nothing, not even an end. After kIdle seconds without traffic the
// kernel asks, and gives up after kProbes unanswered questions: a minute in all.
constexpr int kIdle = 30;
constexpr int kInterval = 10;
constexpr int kProbes = 3;
// TCP_USER_TIMEOUT is not for this: it would also end a connection whose other end is alive and
// computes for so long that it reads nothing.

template <class T>
void set_option(const Socket& socket, int level, int name, T value) {
  ::setsockopt(socket.fd(), level, name, &value, sizeof(value));
}

// Messages go out at once, and a machine that is gone is found out. A kernel that knows one of
// these options not carries messages all the same.
void tune(const Socket& socket) {
  set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(socket, IPPROTO_TCP, TCP_KEEPIDLE, kIdle);
  set_option(socket, IPPROTO_TCP, TCP_KEEPINTVL, kInterval);
  set_option(socket, IPPROTO_TCP, TCP_KEEPCNT, kProbes);
}

Socket open_socket(int family) {
  return Socket(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

bool wait_for(int fd, short events, Deadline until) {
  while (true) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
    pollfd entry{fd, events, 0};
    const auto limit = std::clamp<int64_t>(left.count(), 0, 1'000'000);
    const int ready = ::poll(&entry, 1, static_cast<int>(limit));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
    if (std::chrono::steady_clock::now() >= until) return false;
  }
}

// Of a call that would have had to wait, or was interrupted.
bool passing(int error) {
  return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

// "10.1.2.3", also of an IPv4 address in IPv6's clothes.
std::string numeric(const sockaddr* address, socklen_t bytes) {
  std::array<char, NI_MAXHOST> text{};
  if (::getnameinfo(address, bytes, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST) != 0) {
    return {};
  }
  std::string name = text.data();
  constexpr std::string_view kMapped = "::ffff:";
  if (name.starts_with(kMapped) && name.find('.') != std::string::npos)
    name.erase(0, kMapped.size());
  return name;
}

}  // namespace

Socket::~Socket() {
  if (fd_ >= 0) ::close(fd_);
}

std::string error_text(int error) {
  return std::generic_category().message(error);  // std::strerror is not for several threads
}

Socket listen_on_free_port(int& port) {
  // One listener of IPv6 takes IPv4's connections too; a kernel without IPv6 has the other.
  for (const int family : {AF_INET6, AF_INET}) {
    Socket socket = open_socket(family);
    if (!socket) continue;
    sockaddr_storage address{};
    socklen_t bytes = sizeof(sockaddr_in);
    address.ss_family = static_cast<sa_family_t>(family);
    if (family == AF_INET6) {
      set_option(socket, IPPROTO_IPV6, IPV6_V6ONLY, 0);
      bytes = sizeof(sockaddr_in6);
    }
    auto* plain = reinterpret_cast<sockaddr*>(&address);
    if (::bind(socket.fd(), plain, bytes) != 0 || ::listen(socket.fd(), SOMAXCONN) != 0 ||
        ::getsockname(socket.fd(), plain, &bytes) != 0) {
      continue;
    }
    port = ntohs(family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&address)->sin6_port
                                    : reinterpret_cast<sockaddr_in*>(&address)->sin_port);
    return socket;
  }
  throw CommError("cannot listen for the other ranks: {}", error_text(errno));
}

Socket accept_one(const Socket& listener) {
  Socket socket(::accept4(listener.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (socket) tune(socket);
  return socket;
}

Socket connect_to(const std::string& address, int port, Deadline until, std::string& problem) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  addrinfo* raw = nullptr;
  if (::getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &raw) != 0) {
    problem = "not an address";
    return {};
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> found(raw, ::freeaddrinfo);
  Socket socket = open_socket(found->ai_family);
  int error = socket ? 0 : errno;
  if (socket && ::connect(socket.fd(), found->ai_addr, found->ai_addrlen) != 0) {
    error = errno;
    if (error == EINPROGRESS) {
      error = ETIMEDOUT;
      socklen_t bytes = sizeof(error);
      if (wait_writable(socket.fd(), until)) {
        ::getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &bytes);
      }
    }
  }
  if (error != 0) {
    problem = error_text(error);
    return {};
  }
  tune(socket);
  return socket;
}

bool is_loopback_address(const std::string& address) {
  return address == "::1" || address.starts_with("127.");
}

std::vector<std::string> interface_addresses() {
  ifaddrs* raw = nullptr;
  if (::getifaddrs(&raw) != 0) return {"127.0.0.1"};
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> list(raw, ::freeifaddrs);
  std::vector<std::string> addresses;
  for (const ifaddrs* each = list.get(); each != nullptr; each = each->ifa_next) {
    if (each->ifa_addr == nullptr || (each->ifa_flags & IFF_UP) == 0) continue;
    const int family = each->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    if (family == AF_INET6) {
      // An address of one link means nothing to a machine that does not know the link's name.
      const auto* long_one = reinterpret_cast<const sockaddr_in6*>(each->ifa_addr);
      if (IN6_IS_ADDR_LINKLOCAL(&long_one->sin6_addr)) continue;
    }
    const std::string text =
        numeric(each->ifa_addr, family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
    if (!text.empty()) addresses.push_back(text);
  }
  std::stable_partition(addresses.begin(), addresses.end(),
                        [](const std::string& address) { return !is_loopback_address(address); });
  return addresses;
}

std::string peer_address(const Socket& socket) {
  sockaddr_storage address{};
  socklen_t bytes = sizeof(address);
  auto* plain = reinterpret_cast<sockaddr*>(&address);
  if (::getpeername(socket.fd(), plain, &bytes) != 0) return {};
  return numeric(plain, bytes);
}

bool wait_readable(int fd, Deadline until) {
  return wait_for(fd, POLLIN, until);
}

bool wait_writable(int fd, Deadline until) {
  return wait_for(fd, POLLOUT, until);
}

bool send_all(const Socket& socket, std::span<const std::byte> data, Deadline until) {
  while (!data.empty()) {
    const ssize_t sent = ::send(socket.fd(), data.data(), data.size(), MSG_NOSIGNAL);
    if (sent > 0) {
      data = data.subspan(static_cast<size_t>(sent));
      continue;
    }
    if (!passing(errno) || !wait_writable(socket.fd(), until)) return false;
  }
  return true;
}

bool receive_all(const Socket& socket, std::span<std::byte> data, Deadline until) {
  while (!data.empty()) {
    const ssize_t got = ::recv(socket.fd(), data.data(), data.size(), 0);
    if (got > 0) {
      data = data.subspan(static_cast<size_t>(got));
      continue;
    }
    if (got == 0 || !passing(errno) || !wait_readable(socket.fd(), until)) return false;
  }
  return true;
}

}  // namespace degu
