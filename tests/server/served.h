// A server over a small random model on a free port of this machine, and raw sockets to ask it
// with.
#pragma once

#include <arpa/inet.h>
#include <httplib.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "infer/engine.h"
#include "server/server.h"
#include "tests/infer/small_bench.h"
#include "tests/infer/small_tokenizer.h"

namespace degu::testing {

inline ServerOptions small_options() {
  ServerOptions options;
  options.port = 0;
  options.model = "small";
  options.limits.idle_seconds = 2;
  return options;
}

class Served {
 public:
  explicit Served(const ServerOptions& options = small_options(),
                  const EngineOptions& engine_options = {.context = 256, .max_running = 24})
      : bench(120),
        engine(small_tokenizer(), bench.lane, engine_options),
        server(engine, small_tokenizer(), 300, 2, options),
        port(server.start()) {
    engine.start();
  }

  // Ends as `degu serve` does; the number of requests that were cut short.
  int end(double drain_seconds) {
    server.drain(drain_seconds);
    const int cut = server.in_flight();
    engine.stop();
    server.finish(10);
    server.stop();
    return cut;
  }

  httplib::Client client() const {
    httplib::Client c("127.0.0.1", port);
    c.set_read_timeout(120);
    return c;
  }
  httplib::Result post(const std::string& path, const nlohmann::json& body) const {
    return client().Post(path, body.dump(), "application/json");
  }
  // True when `condition` holds within some seconds.
  static bool soon(const std::function<bool()>& condition) {
    for (int i = 0; i < 1500; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }

  Bench bench;
  Engine engine;
  Server server;
  int port;
};

class RawClient {
 public:
  explicit RawClient(int port, int receive_buffer = 0)
      : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    if (receive_buffer > 0) {
      setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  }
  ~RawClient() { close(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connected() const { return connected_; }
  void close() {
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
  }
  void reset() {
    const linger now{.l_onoff = 1, .l_linger = 0};
    setsockopt(socket_, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    close();
  }
  bool send(const std::string& text) {
    size_t sent = 0;
    while (sent < text.size()) {
      const ssize_t n = ::send(socket_, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return false;
      sent += static_cast<size_t>(n);
    }
    return true;
  }
  void post(const std::string& path, const nlohmann::json& body) {
    const std::string text = body.dump();
    send("POST " + path + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
         "Content-Length: " + std::to_string(text.size()) + "\r\n\r\n" + text);
  }
  // What comes until `end` is there, the server closes, or the time is over.
  std::string read_until(const std::string& end, int milliseconds = 20000) {
    std::string all;
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(milliseconds);
    while (end.empty() || all.find(end) == std::string::npos) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          until - std::chrono::steady_clock::now());
      pollfd poll_one{.fd = socket_, .events = POLLIN, .revents = 0};
      if (left.count() <= 0 || ::poll(&poll_one, 1, static_cast<int>(left.count())) <= 0) break;
      char buffer[4096];
      const ssize_t n = ::recv(socket_, buffer, sizeof(buffer), 0);
      closed_ = n <= 0;
      if (closed_) break;
      all.append(buffer, static_cast<size_t>(n));
    }
    return all;
  }
  bool closed() const { return closed_; }  // by the server, as far as has been read

 private:
  int socket_;
  bool connected_ = false;
  bool closed_ = false;
};

// The values of one metric, by its labels.
inline double metric(const std::string& text, const std::string& name) {
  const size_t at = text.find("\n" + name);
  if (at == std::string::npos) return -1;
  const size_t space = text.find(' ', text.find_first_of("} ", at + 1));
  return std::stod(text.substr(space));
}

}  // namespace degu::testing
