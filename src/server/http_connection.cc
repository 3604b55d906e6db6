#include "server/http_connection.h"

#include <fmt/format.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/log.h"

namespace degu {
namespace {

using std::chrono::steady_clock;

thread_local HttpConnection* this_connection = nullptr;
// Set on the accepting thread while it turns a connection away.
thread_local bool turning_away = false;

constexpr size_t kBufferBytes = 16384;
// Waiting for room among incoming connections that nobody has accepted yet.
constexpr int kBacklog = 512;
// Connections that may wait for a thread, beside as many as there are threads: room for a burst.
constexpr size_t kMoreWaiting = 64;
// How long a silent connection may keep its thread while others wait for one.
constexpr double kHurriedSeconds = 0.1;

steady_clock::duration seconds(double s) {
  return std::chrono::duration_cast<steady_clock::duration>(std::chrono::duration<double>(s));
}

double seconds_until(steady_clock::time_point time) {
  return std::chrono::duration<double>(time - steady_clock::now()).count();
}

void address_of(const sockaddr_storage& address, socklen_t length, std::string& ip, int& port) {
  std::array<char, NI_MAXHOST> host{};
  std::array<char, NI_MAXSERV> service{};
  if (getnameinfo(reinterpret_cast<const sockaddr*>(&address), length, host.data(), host.size(),
                  service.data(), service.size(), NI_NUMERICHOST | NI_NUMERICSERV) == 0) {
    ip = host.data();
    port = std::atoi(service.data());
  }
}

void refuse(int socket) {
  static constexpr std::string_view kBody =
      R"({"error":{"message":"all connections are taken; try again later",)"
      R"("type":"service_unavailable_error","param":null,"code":"unavailable"}})";
  const std::string answer = fmt::format(
      "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
      "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
      kBody.size(), kBody);
  static_cast<void>(::send(socket, answer.data(), answer.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
  ::shutdown(socket, SHUT_WR);
  ::close(socket);
}

}  // namespace

// ---- one connection ----

HttpConnection::HttpConnection(int socket, const ServerLimits& limits)
    : socket_(socket), limits_(limits), buffer_(kBufferBytes) {
  const int on = 1;
  setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

HttpConnection* HttpConnection::current() {
  return this_connection;
}

bool HttpConnection::wait(short events, double wait_seconds) const {
  const steady_clock::time_point until = steady_clock::now() + seconds(wait_seconds);
  while (true) {
    pollfd poll_one{.fd = socket_, .events = events, .revents = 0};
    const double left = std::max(0.0, seconds_until(until));
    const int ready = ::poll(&poll_one, 1, static_cast<int>(left * 1000) + (left > 0 ? 1 : 0));
    if (ready > 0) return true;
    if (ready == 0 || errno != EINTR) return false;
  }
}

bool HttpConnection::wait_for_request(double patience) {
  if (begin_ < end_) return true;
  idle_since_ = steady_clock::now();
  idle_ = true;
  const bool ready = wait(POLLIN, patience);
  idle_ = false;
  if (!ready) return false;
  char next = 0;
  return ::recv(socket_, &next, 1, MSG_PEEK | MSG_DONTWAIT) == 1;
}

void HttpConnection::begin_request() {
  this_connection = this;
  in_header_ = true;
  header_bytes_ = 0;
  deadline_ = steady_clock::now() + seconds(limits_.receive_seconds);
}

void HttpConnection::begin_body() {
  in_header_ = false;
}

bool HttpConnection::peer_gone() const {
  if (broken_) return true;
  pollfd poll_one{.fd = socket_, .events = POLLRDHUP, .revents = 0};
  return ::poll(&poll_one, 1, 0) > 0 &&
         (poll_one.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0;
}

bool HttpConnection::is_readable() const {
  return begin_ < end_ || wait(POLLIN, 0);
}

bool HttpConnection::is_writable() const {
  return !peer_gone();
}

ssize_t HttpConnection::read(char* data, size_t size) {
  if (in_header_ && header_bytes_ >= limits_.header_bytes) return -1;
  if (begin_ == end_) {
    const double patience = std::min(limits_.read_seconds, seconds_until(deadline_));
    if (patience <= 0 || !wait(POLLIN, patience)) return -1;
    ssize_t got = 0;
    do {
      got = ::recv(socket_, buffer_.data(), buffer_.size(), 0);
    } while (got < 0 && errno == EINTR);
    if (got <= 0) return got;
    begin_ = 0;
    end_ = static_cast<size_t>(got);
  }
  const size_t taken = std::min(size, end_ - begin_);
  std::memcpy(data, buffer_.data() + begin_, taken);
  begin_ += taken;
  if (in_header_) header_bytes_ += taken;
  return static_cast<ssize_t>(taken);
}

// All of it, within write_seconds.
ssize_t HttpConnection::write(const char* data, size_t size) {
  const steady_clock::time_point until = steady_clock::now() + seconds(limits_.write_seconds);
  size_t sent = 0;
  while (!broken_ && sent < size) {
    const ssize_t step = ::send(socket_, data + sent, size - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (step > 0) {
      sent += static_cast<size_t>(step);
    } else if (step < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      const double left = seconds_until(until);
      broken_ = left <= 0 || !wait(POLLOUT, left);
    } else if (step == 0 || errno != EINTR) {
      broken_ = true;
    }
  }
  return broken_ ? -1 : static_cast<ssize_t>(sent);
}

void HttpConnection::get_remote_ip_and_port(std::string& ip, int& port) const {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  if (getpeername(socket_, reinterpret_cast<sockaddr*>(&address), &length) == 0) {
    address_of(address, length, ip, port);
  }
}

void HttpConnection::get_local_ip_and_port(std::string& ip, int& port) const {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  if (getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &length) == 0) {
    address_of(address, length, ip, port);
  }
}

// Closing with unread bytes makes the kernel reset the connection, which may take the answer from a
// client that is still sending; so what comes is read for a moment.
void HttpConnection::finish() {
  this_connection = nullptr;
  held_.reset();
  ::shutdown(socket_, SHUT_WR);
  if (close_after_ && !broken_) {
    const steady_clock::time_point until = steady_clock::now() + std::chrono::seconds(1);
    while (seconds_until(until) > 0 && wait(POLLIN, seconds_until(until)) &&
           ::recv(socket_, buffer_.data(), buffer_.size(), MSG_DONTWAIT) > 0) {
    }
  }
  ::close(socket_);
}

// ---- threads ----

class HttpServer::Pool : public httplib::TaskQueue {
 public:
  Pool(HttpServer& server, int most) : server_(server), most_(static_cast<size_t>(most)) {}

  // Called on the accepting thread.
  void enqueue(std::function<void()> serve) override {
    std::unique_lock lock(mutex_);
    if (waiting_.size() >= idle_) {
      if (threads_.size() < most_) {
        threads_.emplace_back([this] { work(); });
      } else if (waiting_.size() < most_ + kMoreWaiting) {
        server_.close_longest_idle();
      } else {
        lock.unlock();
        turning_away = true;
        serve();
        turning_away = false;
        return;
      }
    }
    waiting_.push_back(std::move(serve));
    server_.waiting_ = static_cast<int>(waiting_.size());
    wake_.notify_one();
  }

  void shutdown() override {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
      wake_.notify_all();
    }
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      ++idle_;
      wake_.wait(lock, [&] { return ended_ || !waiting_.empty(); });
      --idle_;
      if (waiting_.empty()) return;
      const std::function<void()> serve = std::move(waiting_.front());
      waiting_.pop_front();
      server_.waiting_ = static_cast<int>(waiting_.size());
      lock.unlock();
      serve();
      lock.lock();
    }
  }

  HttpServer& server_;
  size_t most_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> waiting_;
  std::vector<std::thread> threads_;
  size_t idle_ = 0;
  bool ended_ = false;
};

// ---- the server ----

HttpServer::HttpServer(const ServerLimits& limits, std::function<void(httplib::Request&)> prepare)
    : limits_(limits), prepare_(std::move(prepare)) {
  new_task_queue = [this] {
    return new Pool(*this, limits_.connections);
  };  // NOLINT: the library owns it
  set_payload_max_length(limits.body_bytes);
  set_keep_alive_timeout(static_cast<time_t>(limits.idle_seconds));
}

int HttpServer::bind(const std::string& host, int port) {
  set_socket_options([this](socket_t socket) {
    const int on = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    listening_ = socket;
  });
  const int bound = port == 0 ? bind_to_any_port(host) : bind_to_port(host, port) ? port : -1;
  if (bound < 0) {
    throw IoError("{}:{}: cannot be listened at ({}); choose another --host or --port", host, port,
                  std::strerror(errno));
  }
  // The library asks for a short queue of connections; asking again makes it longer.
  ::listen(listening_, kBacklog);
  return bound;
}

bool HttpServer::process_and_close_socket(socket_t socket) {
  if (turning_away) {
    refuse(socket);
    return false;
  }
  HttpConnection connection(socket, limits_);
  {
    const std::lock_guard lock(mutex_);
    connections_.insert(&connection);
  }
  ++open_;
  bool good = true;
  const auto patience = [&] { return waiting_ > 0 ? kHurriedSeconds : limits_.idle_seconds; };
  while (good && !closing_ && connection.wait_for_request(patience())) {
    connection.begin_request();
    bool closed = false;
    good = process_request(connection, closing_, closed, [&](httplib::Request& request) {
      connection.begin_body();
      prepare_(request);
    });
    connection.end_request();
    good = good && !closed && !connection.closes();
  }
  --open_;
  {
    const std::lock_guard lock(mutex_);
    connections_.erase(&connection);
  }
  connection.finish();
  return good;
}

void HttpServer::close_longest_idle() {
  const std::lock_guard lock(mutex_);
  HttpConnection* longest = nullptr;
  for (HttpConnection* each : connections_) {
    if (!each->idle()) continue;
    if (longest == nullptr || each->idle_since() < longest->idle_since()) longest = each;
  }
  if (longest == nullptr) return;
  longest->end_idle();
  ::shutdown(longest->socket(), SHUT_RDWR);
}

void HttpServer::close_connections() {
  closing_ = true;
  const std::lock_guard lock(mutex_);
  for (HttpConnection* each : connections_) {
    if (each->idle()) ::shutdown(each->socket(), SHUT_RD);
  }
}

}  // namespace degu
