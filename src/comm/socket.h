// TCP sockets: owned, non-blocking, and never waited for without a limit.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace degu {

using Deadline = std::chrono::steady_clock::time_point;

// Owns a file descriptor, or none. Processes that this one starts do not inherit it: a connection
// that a child held open would hide the end of its parent.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  ~Socket();

  explicit operator bool() const { return fd_ >= 0; }
  int fd() const { return fd_; }

 private:
  int fd_ = -1;
};

// Listens on a free port of every interface, IPv6 and IPv4 where the machine has both. CommError.
Socket listen_on_free_port(int& port);

// The next one in the listener's queue; empty when there is none.
Socket accept_one(const Socket& listener);

// Connects to a numeric address. Empty when that fails or takes longer than `until`; `problem` then
// says why.
Socket connect_to(const std::string& address, int port, Deadline until, std::string& problem);

// The numeric addresses of this machine's interfaces that are up: those that other machines may
// reach, then loopback.
std::vector<std::string> interface_addresses();
bool is_loopback_address(const std::string& address);
// Of the other end, numeric.
std::string peer_address(const Socket& socket);

// Waits until the socket can be read (or written); false when it cannot by `until`. The end of a
// connection counts as readable.
bool wait_readable(int fd, Deadline until);
bool wait_writable(int fd, Deadline until);

// All of it, or false: the connection has ended, failed, or did not take it by `until`.
bool send_all(const Socket& socket, std::span<const std::byte> data, Deadline until);
bool receive_all(const Socket& socket, std::span<std::byte> data, Deadline until);

// What the kernel says is wrong with `error`, an errno.
std::string error_text(int error);

}  // namespace degu
