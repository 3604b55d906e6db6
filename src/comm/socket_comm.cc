#include "comm/socket_comm.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <numeric>
#include <thread>

#include "base/random.h"
#include "comm/host_communicator.h"
#include "comm/socket_world.h"

namespace degu {
namespace {

using std::chrono::steady_clock;

// So long a rank asks again and again, giving others its core in between, before it sleeps: waking
// up takes longer than a short message.
constexpr std::chrono::microseconds kEager(100);

// Before the bytes of each piece. The receiver knows what it must be.
struct Frame {
  uint64_t group = 0;
  uint64_t number = 0;  // of the group's exchanges
  uint64_t bytes = 0;

  bool operator==(const Frame&) const = default;
};

// The ranks of a group within the job, and its number there, equal on all of them.
struct Members {
  uint64_t id = 0;
  std::vector<int> ranks;
};

// A piece under way, with its frame; `done` counts the bytes of both.
struct Transfer {
  int member = 0;
  int fd = -1;
  Frame frame;  // what is sent, or what is expected
  Frame got;
  Piece piece;
  size_t done = 0;
  bool sends = false;

  size_t total() const { return sizeof(Frame) + piece.bytes; }
  bool complete() const { return done == total(); }
};

// The bytes that are left, of frame and piece.
int remaining(Transfer& transfer, std::array<iovec, 2>& parts) {
  int count = 0;
  size_t in_piece = 0;
  if (transfer.done < sizeof(Frame)) {
    Frame& frame = transfer.sends ? transfer.frame : transfer.got;
    parts[0] = {reinterpret_cast<std::byte*>(&frame) + transfer.done,
                sizeof(Frame) - transfer.done};
    count = 1;
  } else {
    in_piece = transfer.done - sizeof(Frame);
  }
  if (in_piece < transfer.piece.bytes) {
    parts[static_cast<size_t>(count++)] = {transfer.piece.data + in_piece,
                                           transfer.piece.bytes - in_piece};
  }
  return count;
}

class SocketCounter final : public SharedCounter {
 public:
  SocketCounter(std::shared_ptr<SocketWorld> world, uint64_t id)
      : world_(std::move(world)), id_(id) {}
  ~SocketCounter() override { world_->drop_counter(id_); }
  int64_t fetch_add(int64_t n) override { return world_->fetch_add(id_, n); }

 private:
  std::shared_ptr<SocketWorld> world_;
  uint64_t id_;
};

class SocketCommunicator final : public HostCommunicator {
 public:
  SocketCommunicator(std::shared_ptr<SocketWorld> world, Members members, int rank,
                     const CommOptions& options)
      : HostCommunicator(rank, static_cast<int>(members.ranks.size()), options),
        world_(std::move(world)),
        members_(std::move(members)) {
    transfers_.reserve(members_.ranks.size() * 2);
    entries_.reserve(members_.ranks.size() * 2);
  }

  std::unique_ptr<Communicator> split(int color, int key) override;
  std::unique_ptr<SharedCounter> make_counter(int64_t initial) override;
  void abort(std::string_view reason, ExitCode code) override { world_->abort(reason, code); }

 protected:
  void exchange(const char* what, std::span<const Piece> send,
                std::span<const Piece> recv) override;
  void gather(const char* what, Piece mine, std::span<const Piece> all) override {
    to_all_.assign(members_.ranks.size(), mine);
    exchange(what, to_all_, all);
  }
  void send_from(const char* what, Piece data, int root) override;
  void wait_for_all(const char* what) override;

 private:
  void post(bool sends, int member, Piece piece);
  void finish(const char* what);
  bool advance(const char* what, Transfer& transfer);
  void verify_frame(const char* what, const Transfer& transfer) const;
  uint64_t next_id(std::string_view kind, int64_t color);

  std::shared_ptr<SocketWorld> world_;
  Members members_;
  uint64_t exchanges_ = 0;
  uint64_t made_ = 0;  // groups and counters made of this group
  std::vector<Transfer> transfers_;
  std::vector<pollfd> entries_;
  std::vector<Piece> to_all_;  // one per rank
};

void SocketCommunicator::post(bool sends, int member, Piece piece) {
  const Frame frame{members_.id, exchanges_, piece.bytes};
  const int peer = members_.ranks[static_cast<size_t>(member)];
  transfers_.push_back(
      {.member = member, .fd = world_->data(peer), .frame = frame, .piece = piece, .sends = sends});
}

void SocketCommunicator::verify_frame(const char* what, const Transfer& transfer) const {
  const Frame& got = transfer.got;
  if (got == transfer.frame) return;
  if (got.group == transfer.frame.group && got.number == transfer.frame.number) {
    throw CommError("{}: rank {} of {} expects {} bytes from rank {} and got {}", what, rank(),
                    size(), transfer.frame.bytes, transfer.member, got.bytes);
  }
  throw CommError(
      "{}: rank {} of {} expects exchange {} of group {:08x} from rank {} and got exchange {} of "
      "group {:08x}: the ranks do not make the same calls in the same order",
      what, rank(), size(), transfer.frame.number, transfer.frame.group & 0xffffffffu,
      transfer.member, got.number, got.group & 0xffffffffu);
}

// Moves what can be moved now. False when it has to wait.
bool SocketCommunicator::advance(const char* what, Transfer& transfer) {
  while (!transfer.complete()) {
    std::array<iovec, 2> parts{};
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = static_cast<size_t>(remaining(transfer, parts));
    const ssize_t moved = transfer.sends ? ::sendmsg(transfer.fd, &message, MSG_NOSIGNAL)
                                         : ::recvmsg(transfer.fd, &message, 0);
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return false;
    if (moved <= 0) {
      world_->lost(what, members_.ranks[static_cast<size_t>(transfer.member)],
                   moved == 0 || errno == EPIPE || errno == ECONNRESET ? 0 : errno);
    }
    const bool had_frame = transfer.done >= sizeof(Frame);
    transfer.done += static_cast<size_t>(moved);
    if (!transfer.sends && !had_frame && transfer.done >= sizeof(Frame)) {
      verify_frame(what, transfer);
    }
  }
  return true;
}

// Sends and receives side by side, so that ranks that all send at once do not wait for each other.
void SocketCommunicator::finish(const char* what) {
  entries_.clear();
  for (Transfer& transfer : transfers_) {
    const bool moved = advance(what, transfer);
    // poll passes over negative ones.
    entries_.push_back(
        {moved ? -1 : transfer.fd, transfer.sends ? short{POLLOUT} : short{POLLIN}, 0});
  }
  const auto waits = [](const pollfd& entry) { return entry.fd >= 0; };
  const auto begin = steady_clock::now();
  while (std::any_of(entries_.begin(), entries_.end(), waits)) {
    // Then without a limit: a rank that is gone ends the process by way of the world's thread.
    const bool eager = steady_clock::now() - begin < kEager;
    const int ready = ::poll(entries_.data(), entries_.size(), eager ? 0 : -1);
    if (ready == 0) std::this_thread::yield();
    if (ready < 0) {
      if (errno == EINTR) continue;
      throw CommError("{}: poll on rank {} of {}: {}", what, rank(), size(), error_text(errno));
    }
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (entries_[i].revents != 0 && advance(what, transfers_[i])) entries_[i].fd = -1;
    }
  }
  transfers_.clear();
}

void SocketCommunicator::exchange(const char* what, std::span<const Piece> send,
                                  std::span<const Piece> recv) {
  transfers_.clear();
  // Start with the next rank, so that not all send to rank 0 first. A piece of no bytes travels
  // too, as a frame: a rank that expects something else is told instead of left waiting.
  for (int step = 1; step < size(); ++step) {
    const int to = (rank() + step) % size();
    post(/*sends=*/true, to, send[static_cast<size_t>(to)]);
  }
  for (int step = 1; step < size(); ++step) {
    const int from = (rank() - step + size()) % size();
    post(/*sends=*/false, from, recv[static_cast<size_t>(from)]);
  }
  const Piece& mine = send[static_cast<size_t>(rank())];
  const Piece& own = recv[static_cast<size_t>(rank())];
  if (mine.bytes > 0 && mine.data != own.data) std::memcpy(own.data, mine.data, mine.bytes);
  finish(what);
  ++exchanges_;
}

// Along a binomial tree whose top is the root.
void SocketCommunicator::send_from(const char* what, Piece data, int root) {
  const int place = (rank() - root + size()) % size();  // the root's is 0
  const auto rank_at = [&](int p) { return (p + root) % size(); };
  transfers_.clear();
  int distance = 1;
  while (distance < size() && (place & distance) == 0) distance *= 2;
  if (place != 0) {
    post(/*sends=*/false, rank_at(place - distance), data);
    finish(what);
  }
  for (distance /= 2; distance > 0; distance /= 2) {
    if (place + distance < size()) post(/*sends=*/true, rank_at(place + distance), data);
  }
  finish(what);
  ++exchanges_;
}

// Each round doubles the number of ranks that a rank has heard of.
void SocketCommunicator::wait_for_all(const char* what) {
  for (int distance = 1; distance < size(); distance *= 2) {
    transfers_.clear();
    post(/*sends=*/true, (rank() + distance) % size(), {});
    post(/*sends=*/false, (rank() - distance + size()) % size(), {});
    finish(what);
    ++exchanges_;
  }
}

// A number for what is made of this group: the same on all its ranks without asking, and no
// other's.
uint64_t SocketCommunicator::next_id(std::string_view kind, int64_t color) {
  return hash_name(fmt::format("{}/{}/{}", kind, made_++, color), members_.id);
}

std::unique_ptr<Communicator> SocketCommunicator::split(int color, int key) {
  verify_call(Kind::kSplit);
  using Wish = std::array<int32_t, 2>;  // color, key
  const auto n = static_cast<size_t>(size());
  Wish mine = {color, key};
  std::vector<Wish> wishes(n);
  std::vector<Piece> pieces(n);
  for (size_t r = 0; r < n; ++r) {
    pieces[r] = {reinterpret_cast<std::byte*>(&wishes[r]), sizeof(Wish)};
  }
  gather("split", {reinterpret_cast<std::byte*>(&mine), sizeof(Wish)}, pieces);
  const uint64_t id = next_id("split", color);
  if (color < 0) return nullptr;
  std::vector<int> chosen;  // ranks of this group
  for (int r = 0; r < size(); ++r) {
    if (wishes[static_cast<size_t>(r)][0] == color) chosen.push_back(r);
  }
  std::stable_sort(chosen.begin(), chosen.end(), [&](int a, int b) {
    return wishes[static_cast<size_t>(a)][1] < wishes[static_cast<size_t>(b)][1];
  });
  Members members{.id = id, .ranks = {}};
  for (int r : chosen) members.ranks.push_back(members_.ranks[static_cast<size_t>(r)]);
  const auto place = std::find(chosen.begin(), chosen.end(), rank()) - chosen.begin();
  return std::make_unique<SocketCommunicator>(world_, std::move(members), static_cast<int>(place),
                                              options());
}

std::unique_ptr<SharedCounter> SocketCommunicator::make_counter(int64_t initial) {
  verify_call(Kind::kMakeCounter);
  const uint64_t id = next_id("counter", 0);
  if (rank() == 0) world_->make_counter(id, initial, size());
  wait_for_all("make_counter");
  return std::make_unique<SocketCounter>(world_, id);
}

}  // namespace

std::unique_ptr<Communicator> make_socket_communicator(const SocketJob& job,
                                                       const CommOptions& options) {
  if (job.size < 1 || job.rank < 0 || job.rank >= job.size) {
    throw ConfigError("rank {} of {} ranks: ranks are numbered from 0", job.rank, job.size);
  }
  if (job.size == 1) return make_self_communicator(options);
  auto world = std::make_shared<SocketWorld>(job.rank, job.size, meet(job));
  Members members{.id = hash_name(job.name),
                  .ranks = std::vector<int>(static_cast<size_t>(job.size))};
  std::iota(members.ranks.begin(), members.ranks.end(), 0);
  return std::make_unique<SocketCommunicator>(std::move(world), std::move(members), job.rank,
                                              options);
}

}  // namespace degu
