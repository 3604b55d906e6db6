// The transport below the endpoints: cpp-httplib's parsing and routing on connections of our own.
// Only this room's .cc files include it (the library's header is long).
//
// Why our own connections: the library's count no header bytes, have no limit for a whole request,
// wait for idle clients in a busy loop, and do not let a handler see that its client has left.
//
// Threads: one per open connection, up to `connections`. When all are taken, as many again (and
// some) may wait for one: the connection that has been idle longest is closed for each, and silent
// ones lose theirs after a moment. Beyond that a new connection gets 503.
#pragma once

#include <httplib.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "server/limits.h"

namespace degu {

// One client's connection, on the thread that serves it.
class HttpConnection final : public httplib::Stream {
 public:
  HttpConnection(int socket, const ServerLimits& limits);

  // Of the thread that runs a handler; null elsewhere.
  static HttpConnection* current();

  // False when the client left, or said nothing for `patience` seconds.
  bool wait_for_request(double patience);
  void begin_request();  // its bytes are counted and timed from now
  void begin_body();     // the headers are complete

  // The client has closed its end. A client that only stops sending counts as gone, as in most
  // servers.
  bool peer_gone() const;
  // No further request on this connection: the body of this one was not read, or it was malformed.
  void close_after_answer() { close_after_ = true; }
  bool closes() const { return close_after_; }
  // Kept until the answer has been written.
  void hold(std::shared_ptr<void> held) { held_ = std::move(held); }
  void end_request() { held_.reset(); }
  // Lets the last bytes reach the client, then closes.
  void finish();
  bool idle() const { return idle_; }
  void end_idle() { idle_ = false; }
  std::chrono::steady_clock::time_point idle_since() const { return idle_since_; }

  bool is_readable() const override;
  bool is_writable() const override;
  ssize_t read(char* data, size_t size) override;
  ssize_t write(const char* data, size_t size) override;
  void get_remote_ip_and_port(std::string& ip, int& port) const override;
  void get_local_ip_and_port(std::string& ip, int& port) const override;
  socket_t socket() const override { return socket_; }

 private:
  using Time = std::chrono::steady_clock::time_point;
  bool wait(short events, double seconds) const;

  int socket_;
  const ServerLimits& limits_;
  std::vector<char> buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
  size_t header_bytes_ = 0;
  bool in_header_ = false;
  bool close_after_ = false;
  bool broken_ = false;
  Time deadline_;
  std::atomic<bool> idle_{false};
  std::atomic<Time> idle_since_{};
  std::shared_ptr<void> held_;
};

// The library's server on such connections.
class HttpServer final : public httplib::Server {
 public:
  // `prepare`: sees every request once its headers are read, and may change them.
  HttpServer(const ServerLimits& limits, std::function<void(httplib::Request&)> prepare);

  // Binds; returns the port (the one asked for, or a free one for 0). IoError when it cannot.
  int bind(const std::string& host, int port);
  int connections() const { return open_; }
  // From now on every answer closes its connection, and idle connections are closed.
  void close_connections();

 private:
  class Pool;
  bool process_and_close_socket(socket_t socket) override;
  void close_longest_idle();

  const ServerLimits& limits_;
  std::function<void(httplib::Request&)> prepare_;
  int listening_ = -1;
  std::atomic<int> open_{0};
  std::atomic<int> waiting_{0};  // connections without a thread
  std::atomic<bool> closing_{false};
  std::mutex mutex_;
  std::set<HttpConnection*> connections_;  // guarded by mutex_
};

}  // namespace degu
