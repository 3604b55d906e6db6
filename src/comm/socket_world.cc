#include "comm/socket_world.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

namespace degu {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// A few bytes that the other end's thread reads at once.
constexpr std::chrono::seconds kSend(5);
// So long rank 0 has to say whose line explains the end, ...
constexpr std::chrono::seconds kVerdict(2);
// ... so long it waits for the others to be gone before it goes, ...
constexpr milliseconds kLinger(1000);
// ... and so long a broken connection waits for the reason. Longer than both.
constexpr std::chrono::seconds kReason(4);

}  // namespace

SocketWorld::SocketWorld(int rank, int size, Links links)
    : rank_(rank), size_(size), data_(std::move(links.data)), wake_(::eventfd(0, EFD_CLOEXEC)) {
  if (!wake_) throw CommError("eventfd: {}", error_text(errno));
  for (int r = 0; r < size; ++r) {
    Socket& socket = links.control[static_cast<size_t>(r)];
    if (!socket) continue;
    Link& link = links_.emplace_back();
    link.rank = r;
    link.socket = std::move(socket);
  }
  // Signals are for the program's own thread, whose waiting they interrupt.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { serve(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

SocketWorld::~SocketWorld() {
  if (std::uncaught_exceptions() == 0) {
    // Whoever still expects something from this rank learns that nothing will come.
    for (const Socket& link : data_) {
      if (link) ::shutdown(link.fd(), SHUT_WR);
    }
    if (rank_ != 0) send(links_[0], {.kind = Kind::kGoodbye});
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return goodbyes_ == static_cast<int>(links_.size()); });
    lock.unlock();
    if (rank_ == 0) send_to_all({.kind = Kind::kGoodbye});
  }
  stop_serving();
}

void SocketWorld::stop_serving() {
  const uint64_t one = 1;
  // An eventfd takes it whatever happens.
  static_cast<void>(::write(wake_.fd(), &one, sizeof(one)) == sizeof(one));
  thread_.join();
}

void SocketWorld::serve() {
  std::vector<pollfd> entries(links_.size() + 1);
  while (true) {
    for (size_t i = 0; i < links_.size(); ++i) {
      // poll passes over negative ones.
      entries[i] = {links_[i].ended ? -1 : links_[i].socket.fd(), POLLIN, 0};
    }
    entries.back() = {wake_.fd(), POLLIN, 0};
    if (::poll(entries.data(), entries.size(), -1) < 0) continue;
    for (size_t i = 0; i < links_.size(); ++i) {
      if (entries[i].revents != 0) hear(links_[i]);
    }
    if (entries.back().revents != 0) return;
  }
}

void SocketWorld::hear(Link& link) {
  while (!link.ended) {
    const ssize_t got =
        ::recv(link.socket.fd(), link.bytes.data() + link.heard, link.bytes.size() - link.heard, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (got <= 0) {
      link.ended = true;
      handle_end(link);
      return;
    }
    link.heard += static_cast<size_t>(got);
    if (link.heard < link.bytes.size()) continue;
    Control message;
    std::memcpy(&message, link.bytes.data(), sizeof(message));
    link.heard = 0;
    handle(link, message);
  }
}

void SocketWorld::handle(Link& link, const Control& message) {
  switch (message.kind) {
    case Kind::kAbort:
      if (rank_ == 0) {
        if (take_blame()) end_all(link.rank, message.code);
        return;
      }
      if (static_cast<int>(message.id) != rank_) end_process(message.code);
      break;
    case Kind::kGoodbye:
      link.goodbye = true;
      break;
    case Kind::kReply:
      break;
    case Kind::kMakeCounter:
    case Kind::kFetchAdd:
    case Kind::kDropCounter:
      if (const std::optional<int64_t> value = act_on_counter(message)) {
        send(link, {.kind = Kind::kReply, .id = message.id, .value = *value});
      }
      return;
  }
  const std::lock_guard lock(mutex_);
  if (message.kind == Kind::kAbort) may_speak_ = true;
  if (message.kind == Kind::kGoodbye) ++goodbyes_;
  if (message.kind == Kind::kReply) reply_ = message;
  changed_.notify_all();
}

void SocketWorld::handle_end(Link& link) {
  if (link.goodbye) return;
  {
    const std::lock_guard lock(mutex_);
    if (ending_ && rank_ == 0) return;  // as it was told to
    if (ending_) {                      // rank 0 cannot say who speaks
      may_speak_ = true;
      changed_.notify_all();
      return;
    }
    ending_ = true;
  }
  std::fprintf(stderr,
               "degu: rank %d of %d: rank %d has ended without a goodbye: it was killed or has "
               "crashed, or its machine is out of reach\n",
               rank_, size_, link.rank);
  end_all(link.rank, static_cast<int>(ExitCode::kComm));
}

// True for the first who wants to end the job.
bool SocketWorld::take_blame() {
  const std::lock_guard lock(mutex_);
  return !std::exchange(ending_, true);
}

void SocketWorld::end_process(int code) {
  // Not std::exit: the program's own thread is at work on what would be destroyed.
  std::_Exit(code);
}

// The culprit is told first: its line comes before the launcher, seeing a rank gone, ends it.
void SocketWorld::end_all(int culprit, int code) {
  const Control message{.kind = Kind::kAbort, .code = code, .id = static_cast<uint64_t>(culprit)};
  if (Link* link = rank_ == 0 ? link_to(culprit) : nullptr) send(*link, message);
  if (rank_ == 0) {
    for (Link& link : links_) {
      if (link.rank != culprit) send(link, message);
    }
    // Gone before the others have heard it, rank 0 would be the death that they report.
    const Deadline until = steady_clock::now() + kLinger;
    std::array<std::byte, 256> ignored;
    for (const Link& link : links_) {
      while (wait_readable(link.socket.fd(), until)) {
        const ssize_t got = ::recv(link.socket.fd(), ignored.data(), ignored.size(), 0);
        if (got == 0 || (got < 0 && errno != EINTR && errno != EAGAIN)) break;
      }
    }
  }
  end_process(code);
}

SocketWorld::Link* SocketWorld::link_to(int r) {
  const auto found =
      std::find_if(links_.begin(), links_.end(), [r](const Link& link) { return link.rank == r; });
  return found == links_.end() ? nullptr : &*found;
}

bool SocketWorld::send(Link& link, const Control& message) {
  static_assert(sizeof(Control) == 24 && std::has_unique_object_representations_v<Control>);
  const std::lock_guard lock(send_mutex_);
  return send_all(link.socket, std::as_bytes(std::span(&message, 1)), steady_clock::now() + kSend);
}

void SocketWorld::send_to_all(const Control& message) {
  for (Link& link : links_) send(link, message);
}

void SocketWorld::abort(std::string_view reason, ExitCode code) {
  // The launcher clears the job away with SIGTERM; a handler that waits for a good moment would
  // hold it up.
  std::signal(SIGTERM, SIG_DFL);
  const bool first = take_blame();
  if (rank_ == 0 && !first) {
    // This rank's thread is ending the job for another's reason, and the process with it.
    std::this_thread::sleep_for(kReason);
  }
  if (rank_ != 0 && first) {
    const Control message{.kind = Kind::kAbort,
                          .code = static_cast<int32_t>(code),
                          .id = static_cast<uint64_t>(rank_)};
    if (send(links_[0], message)) {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, kVerdict, [this] { return may_speak_; });
    }
  }
  std::fprintf(stderr, "degu: rank %d of %d: %.*s\n", rank_, size_, static_cast<int>(reason.size()),
               reason.data());
  std::fflush(nullptr);
  if (rank_ == 0) end_all(0, static_cast<int>(code));
  end_process(static_cast<int>(code));
}

void SocketWorld::lost(const char* what, int r, int error) {
  std::this_thread::sleep_for(kReason);
  throw CommError("{}: rank {} of {} does not take part: {}", what, r, size_,
                  error == 0 ? "it has finished, or failed on its own" : error_text(error));
}

// What is to be answered.
std::optional<int64_t> SocketWorld::act_on_counter(const Control& message) {
  const std::lock_guard lock(mutex_);
  if (message.kind == Kind::kMakeCounter) {
    counters_[message.id] = {message.value, message.code};
    return message.value;
  }
  const auto found = counters_.find(message.id);
  if (found == counters_.end())
    return message.kind == Kind::kFetchAdd ? std::optional(0) : std::nullopt;
  if (message.kind == Kind::kFetchAdd) {
    return std::exchange(found->second.value, found->second.value + message.value);
  }
  if (--found->second.users == 0) counters_.erase(found);
  return std::nullopt;
}

SocketWorld::Control SocketWorld::ask(const Control& question) {
  if (rank_ == 0) {
    const std::optional<int64_t> value = act_on_counter(question);
    return {.kind = Kind::kReply, .id = question.id, .value = value.value_or(0)};
  }
  if (!send(links_[0], question)) lost("fetch_add", 0, 0);
  std::unique_lock lock(mutex_);
  // Should rank 0 die, this rank's thread ends the process.
  changed_.wait(lock, [this] { return reply_.has_value(); });
  return *std::exchange(reply_, std::nullopt);
}

void SocketWorld::make_counter(uint64_t id, int64_t initial, int users) {
  ask({.kind = Kind::kMakeCounter, .code = users, .id = id, .value = initial});
}

int64_t SocketWorld::fetch_add(uint64_t id, int64_t n) {
  return ask({.kind = Kind::kFetchAdd, .id = id, .value = n}).value;
}

void SocketWorld::drop_counter(uint64_t id) noexcept {
  const Control message{.kind = Kind::kDropCounter, .id = id};
  if (rank_ == 0) {
    act_on_counter(message);
  } else {
    send(links_[0], message);  // a rank 0 that is gone keeps no counter
  }
}

}  // namespace degu
