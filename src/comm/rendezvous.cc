#include "comm/rendezvous.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

#include "base/error.h"
#include "comm/handshake.h"
#include "comm/nodes.h"

namespace degu {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

// One address that leads nowhere may hold a rank up for so long.
constexpr seconds kConnect(5);
// Whoever listens at the address of an old file has so long to answer.
constexpr milliseconds kAnswerOfOld(1000);
constexpr seconds kAnswer(30);
// What else may have happened is looked at so often.
constexpr milliseconds kSlice(200);
constexpr milliseconds kShortestRest(20);
constexpr milliseconds kLongestRest(500);
constexpr size_t kMostNamed = 16;
constexpr size_t kMaxTable = size_t{64} << 20;

Deadline soon(milliseconds wait, Deadline until) {
  return std::min(until, steady_clock::now() + wait);
}

// Each rank holds a connection per other rank, rank 0 two; shells allow 1024 files unless told.
void allow_files(int count) {
  rlimit limit{};
  const auto wanted = static_cast<rlim_t>(count);
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted) return;
  limit.rlim_cur = limit.rlim_max == RLIM_INFINITY ? wanted : std::min(wanted, limit.rlim_max);
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

std::string draw_token() {
  std::random_device device;
  std::string token;
  for (int i = 0; i < 4; ++i) token += fmt::format("{:08x}", device());
  return token;
}

std::string seconds_text(milliseconds time) {
  return fmt::format("{:g} s", static_cast<double>(time.count()) / 1000);
}

std::optional<Card> read_card(const std::string& file, std::string& problem) {
  std::ifstream in(file);
  if (!in) {
    problem = ::access(file.c_str(), R_OK) == 0 ? "it cannot be read" : error_text(errno);
    return std::nullopt;
  }
  std::ostringstream text;
  text << in.rdbuf();
  std::optional<Card> card = parse_card(text.str());
  if (!card) problem = "the file is none of ours";
  return card;
}

// Loopback leads to another rank on its own machine alone.
std::vector<std::string> addresses_from(const std::string& node, const Card& card) {
  std::vector<std::string> usable;
  for (const std::string& address : card.addresses) {
    if (!is_loopback_address(address) || card.node == node) usable.push_back(address);
  }
  return usable;
}

// The file as long as it is to be found; gone afterwards, unless somebody else's is in its place.
class AddressFile {
 public:
  AddressFile(std::string path, const Card& card) : path_(std::move(path)), token_(card.token) {
    const std::string draft = fmt::format("{}.{}", path_, token_.substr(0, 8));
    const int fd = ::open(draft.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
    if (fd < 0) fail(errno);
    const std::string text = to_text(card);
    const bool written = ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
    const int error = written && ::fsync(fd) == 0 ? 0 : errno;
    ::close(fd);
    if (error != 0 || std::rename(draft.c_str(), path_.c_str()) != 0) {
      const int reason = error != 0 ? error : errno;
      ::unlink(draft.c_str());
      fail(reason);
    }
  }
  ~AddressFile() {
    if (mine()) ::unlink(path_.c_str());
  }
  AddressFile(const AddressFile&) = delete;
  AddressFile& operator=(const AddressFile&) = delete;

  bool mine() const {
    std::string ignored;
    const std::optional<Card> card = read_card(path_, ignored);
    return card && card->token == token_;
  }
  // Somebody else's; a file that cannot be read just now is nobody's.
  bool replaced() const {
    std::string ignored;
    const std::optional<Card> card = read_card(path_, ignored);
    return card && card->token != token_;
  }

 private:
  [[noreturn]] void fail(int error) const {
    throw IoError(
        "rank 0 cannot write {}: {}; DEGU_RENDEZVOUS must be a folder that it may write to", path_,
        error_text(error));
  }
  std::string path_;
  std::string token_;
};

class Meeting {
 public:
  explicit Meeting(const SocketJob& job)
      : job_(job),
        until_(steady_clock::now() + job.timeout),
        ready_(static_cast<size_t>(job.size)) {
    links_.control.resize(ready_.size());
    links_.data.resize(ready_.size());
    mine_ = {.node = node_name(),
             .rank = job.rank,
             .size = job.size,
             .port = door_.port(),
             .addresses = interface_addresses()};
  }

  Links run() {
    if (job_.rank == 0) {
      gather_ranks();
    } else {
      join();
      wait_for_table();
    }
    until_ = steady_clock::now() + job_.timeout;  // all are here; connecting has a time of its own
    for (int r = 0; r < job_.rank; ++r) connect(r);
    while (std::any_of(links_.data.begin() + job_.rank + 1, links_.data.end(),
                       [](const Socket& link) { return !link; })) {
      take_link();
    }
    finish();
    return std::move(links_);
  }

 private:
  // Rank 0.
  void gather_ranks();
  void refuse_namesake();
  void admit(Door::Visitor visitor);
  void listen_to_ranks();
  std::string missing() const;
  // The others.
  void join();
  bool join_at(const Card& first, std::string& problem);
  void wait_for_table();
  void listen_to_first();
  // All.
  void connect(int r);
  bool connect_at(const std::string& address, int r, std::string& problem);
  void take_link();
  void finish();
  void listen() { job_.rank == 0 ? listen_to_ranks() : listen_to_first(); }
  [[noreturn]] void fail(const std::string& reason);

  Socket& control(int r) { return links_.control[static_cast<size_t>(r)]; }
  Socket& data(int r) { return links_.data[static_cast<size_t>(r)]; }

  const SocketJob& job_;
  Deadline until_;
  Door door_;
  Card mine_;
  std::vector<Card> cards_;  // of all ranks
  Links links_;
  std::vector<char> ready_;  // ranks that have all their connections
};

// Tells those who can be told: rank 0 all others, the others rank 0.
void Meeting::fail(const std::string& reason) {
  for (const Socket& link : links_.control) {
    if (link)
      send_message(link, Greeting::kRefused, reason.substr(0, kMaxGreeting), soon(kSlice, until_));
  }
  throw CommError("{}", reason);
}

std::string Meeting::missing() const {
  std::string names;
  size_t count = 0;
  for (size_t r = 1; r < links_.control.size(); ++r) {
    if (links_.control[r]) continue;
    if (++count <= kMostNamed) names += fmt::format("{}{}", names.empty() ? "" : ", ", r);
  }
  if (count > kMostNamed) names += fmt::format(" and {} more", count - kMostNamed);
  return fmt::format("rank{} {} of {} {} not come to {} within {}", count == 1 ? "" : "s", names,
                     job_.size, count == 1 ? "has" : "have", address_file(job_),
                     seconds_text(job_.timeout));
}

// A file that is there already is an earlier job's, unless its rank 0 answers.
void Meeting::refuse_namesake() {
  std::string problem;
  std::optional<Card> other = read_card(address_file(job_), problem);
  if (!other) return;
  mine_.token = other->token;
  const Deadline until = soon(3 * kAnswerOfOld, until_);
  for (const std::string& address : addresses_from(mine_.node, *other)) {
    const Socket socket = connect_to(address, other->port, soon(kAnswerOfOld, until), problem);
    if (!socket || !send_message(socket, Greeting::kJoin, to_text(mine_), until)) continue;
    const auto answer = receive_message(socket, kMaxGreeting, soon(kAnswerOfOld, until));
    if (answer && answer->kind == Greeting::kRefused) throw CommError("{}", answer->text);
  }
}

void Meeting::gather_ranks() {
  refuse_namesake();
  mine_.token = draw_token();
  cards_.assign(ready_.size(), {});
  cards_[0] = mine_;
  const AddressFile file(address_file(job_), mine_);
  const auto here = [this] {
    return std::count_if(links_.control.begin(), links_.control.end(),
                         [](const Socket& link) { return static_cast<bool>(link); });
  };
  while (here() < job_.size - 1) {
    if (auto visitor = door_.next(mine_.token, soon(kSlice, until_))) {
      admit(std::move(*visitor));
      continue;
    }
    listen_to_ranks();
    if (file.replaced()) {
      fail(
          fmt::format("two processes claim rank 0 of the job at {}: give each its own DEGU_RANK, "
                      "and jobs that share the folder different DEGU_JOB",
                      address_file(job_)));
    }
    if (steady_clock::now() >= until_) {
      fail(
          fmt::format("{}: start them with the same DEGU_RENDEZVOUS, DEGU_JOB and DEGU_RANKS as "
                      "rank 0, or raise DEGU_RENDEZVOUS_TIMEOUT (seconds)",
                      missing()));
    }
  }
  std::string table;
  for (const Card& card : cards_) table += to_text(card);
  for (const Socket& link : links_.control) {
    // A rank that is gone again is found out when it does not get ready.
    if (link) send_message(link, Greeting::kTable, table, soon(kAnswer, until_));
  }
}

void Meeting::admit(Door::Visitor visitor) {
  const int r = visitor.card.rank;
  std::string problem;
  if (visitor.kind != Greeting::kJoin) return;
  if (visitor.card.size != job_.size) {
    problem = fmt::format(
        "rank {} says that the job has {} ranks, rank 0 says {}: start all with "
        "the same DEGU_RANKS",
        r, visitor.card.size, job_.size);
  } else if (r == 0 || control(r)) {
    problem = fmt::format(
        "two processes claim rank {} of the job at {}: give each its own "
        "DEGU_RANK, and jobs that share the folder different DEGU_JOB",
        r, address_file(job_));
  }
  if (!problem.empty()) {
    send_message(visitor.socket, Greeting::kRefused, problem, soon(kSlice, until_));
    fail(problem);
  }
  // Where it came from leads to it, at least from here: the first to try.
  const std::string source = peer_address(visitor.socket);
  std::vector<std::string>& addresses = visitor.card.addresses;
  if (!source.empty() && !is_loopback_address(source)) {
    addresses.erase(std::remove(addresses.begin(), addresses.end(), source), addresses.end());
    addresses.insert(addresses.begin(), source);
  }
  // Should this not arrive, the connection has ended and listen_to_ranks says so.
  send_message(visitor.socket, Greeting::kAccepted, "0", soon(kAnswer, until_));
  cards_[static_cast<size_t>(r)] = std::move(visitor.card);
  control(r) = std::move(visitor.socket);
}

void Meeting::listen_to_ranks() {
  for (int r = 1; r < job_.size; ++r) {
    if (!control(r) || !wait_readable(control(r).fd(), steady_clock::now())) continue;
    const auto message = receive_message(control(r), kMaxGreeting, soon(kAnswer, until_));
    if (message && message->kind == Greeting::kReady) {
      ready_[static_cast<size_t>(r)] = 1;
      continue;
    }
    control(r) = Socket();
    fail(message && message->kind == Greeting::kRefused
             ? message->text
             : fmt::format("rank {} of {} has ended before the ranks were connected; see what it "
                           "said",
                           r, job_.size));
  }
}

// Whether rank 0 was met there.
bool Meeting::join_at(const Card& first, std::string& problem) {
  mine_.token = first.token;
  for (const std::string& address : addresses_from(mine_.node, first)) {
    std::string reason;
    const Socket& link = control(0) =
        connect_to(address, first.port, soon(kConnect, until_), reason);
    std::optional<Message> answer;
    if (link && send_message(link, Greeting::kJoin, to_text(mine_), soon(kAnswer, until_))) {
      answer = receive_message(link, kMaxGreeting, soon(kAnswer, until_));
      reason = "nobody of this job answers";
    }
    if (answer && answer->kind == Greeting::kAccepted) return true;
    control(0) = Socket();
    if (answer && answer->kind == Greeting::kRefused) throw CommError("{}", answer->text);
    problem = fmt::format("{} port {}: {}", address, first.port, reason);
  }
  return false;
}

void Meeting::join() {
  const std::string file = address_file(job_);
  milliseconds rest = kShortestRest;
  while (true) {
    std::string problem = "it names no address that this machine can use";
    const std::optional<Card> first = read_card(file, problem);
    if (first && join_at(*first, problem)) return;
    if (steady_clock::now() >= until_) {
      throw CommError(
          "rank {} of {} has not met rank 0 by {} within {} ({}): is rank 0 started, does "
          "DEGU_RENDEZVOUS name a folder that all ranks see, and may machines connect to each "
          "other? DEGU_RENDEZVOUS_TIMEOUT=SECONDS waits longer",
          job_.rank, job_.size, file, seconds_text(job_.timeout), problem);
    }
    std::this_thread::sleep_for(rest);
    rest = std::min(2 * rest, kLongestRest);
  }
}

void Meeting::wait_for_table() {
  // Rank 0 has the same limit and says who is missing; it goes first.
  const auto message = receive_message(control(0), kMaxTable, until_ + kAnswer);
  if (message && message->kind == Greeting::kRefused) throw CommError("{}", message->text);
  if (message && message->kind == Greeting::kTable) {
    if (auto cards = parse_cards(message->text, ready_.size())) {
      cards_ = std::move(*cards);
      return;
    }
  }
  throw CommError("rank 0 of {} has ended before all ranks were there; see what it said",
                  job_.size);
}

// Throws when rank 0 says that the job cannot be.
void Meeting::listen_to_first() {
  if (!wait_readable(control(0).fd(), steady_clock::now())) return;
  const auto message = receive_message(control(0), kMaxGreeting, soon(kAnswer, until_));
  if (message && message->kind == Greeting::kReady) {
    ready_[0] = 1;
    return;
  }
  throw CommError("{}", message && message->kind == Greeting::kRefused
                            ? message->text
                            : "rank 0 has ended before the ranks were connected; see what it said");
}

bool Meeting::connect_at(const std::string& address, int r, std::string& problem) {
  const int port = cards_[static_cast<size_t>(r)].port;
  Socket link = connect_to(address, port, soon(kConnect, until_), problem);
  if (!link) return false;
  problem = "nobody of this job answers";
  if (!send_message(link, Greeting::kLink, to_text(mine_), soon(kAnswer, until_))) return false;
  // It answers once it has connected to the ranks below its own.
  while (!wait_readable(link.fd(), soon(kSlice, until_))) {
    listen();
    if (steady_clock::now() >= until_) return false;
  }
  const auto answer = receive_message(link, kMaxGreeting, soon(kAnswer, until_));
  // The same address and port may be another rank's, on a network that machines have each for
  // itself.
  if (!answer || answer->kind != Greeting::kAccepted || answer->text != std::to_string(r)) {
    return false;
  }
  data(r) = std::move(link);
  return true;
}

void Meeting::connect(int r) {
  std::string tried;
  for (const std::string& address : addresses_from(mine_.node, cards_[static_cast<size_t>(r)])) {
    std::string problem;
    if (connect_at(address, r, problem)) return;
    tried += fmt::format("{}{} ({})", tried.empty() ? "" : ", ", address, problem);
  }
  fail(
      fmt::format("rank {} cannot connect to rank {} at {}: ranks need TCP connections to each "
                  "other, on any port",
                  job_.rank, r, tried));
}

void Meeting::take_link() {
  auto visitor = door_.next(mine_.token, soon(kSlice, until_));
  if (!visitor) {
    listen();
    if (steady_clock::now() >= until_) {
      fail(
          fmt::format("some ranks have not connected to rank {} within {}: ranks need TCP "
                      "connections to each other, on any port",
                      job_.rank, seconds_text(job_.timeout)));
    }
    return;
  }
  const int r = visitor->card.rank;
  if (visitor->kind == Greeting::kJoin) {  // rank 0 alone is asked for that, and only by one more
    const std::string problem =
        fmt::format("two processes claim rank {} of the job at {}: give each its own DEGU_RANK", r,
                    address_file(job_));
    send_message(visitor->socket, Greeting::kRefused, problem, soon(kSlice, until_));
    fail(problem);
  }
  if (r <= job_.rank || r >= job_.size || data(r)) return;
  if (!send_message(visitor->socket, Greeting::kAccepted, std::to_string(job_.rank),
                    soon(kAnswer, until_))) {
    return;
  }
  data(r) = std::move(visitor->socket);
}

// Nobody leaves before all are connected.
void Meeting::finish() {
  ready_[static_cast<size_t>(job_.rank)] = 1;
  if (job_.rank != 0) send_message(control(0), Greeting::kReady, "", soon(kAnswer, until_));
  const auto waiting = [this] {
    return job_.rank != 0 ? ready_[0] == 0
                          : std::find(ready_.begin(), ready_.end(), 0) != ready_.end();
  };
  while (waiting()) {
    if (job_.rank != 0) {
      wait_readable(control(0).fd(), soon(kSlice, until_));
    } else {
      std::this_thread::sleep_for(milliseconds(1));
    }
    listen();
    if (waiting() && steady_clock::now() >= until_) {
      fail(fmt::format("the {} ranks of the job at {} are not all connected within {}", job_.size,
                       address_file(job_), seconds_text(job_.timeout)));
    }
  }
  if (job_.rank != 0) return;
  for (const Socket& link : links_.control) {
    if (link) send_message(link, Greeting::kReady, "", soon(kAnswer, until_));
  }
}

}  // namespace

std::string address_file(const SocketJob& job) {
  return fmt::format("{}/degu-{}.address", job.folder, job.name);
}

Links meet(const SocketJob& job) {
  allow_files(3 * job.size + 64);
  return Meeting(job).run();
}

}  // namespace degu
