// What the communicators of one process share when ranks are connected by sockets: the connections,
// and beside them a thread that answers for this rank whatever its program is doing.
//
// Messages about the job (its counters, its end) travel on connections of their own between rank 0
// and every other rank. Rank 0's thread keeps the counters and decides whose failure ends the job,
// so that one line says why. A control connection that ends without a goodbye is a rank that died.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string_view>
#include <thread>
#include <vector>

#include "base/error.h"
#include "comm/rendezvous.h"

namespace degu {

class SocketWorld {
 public:
  SocketWorld(int rank, int size, Links links);  // collective, like its end
  // Says goodbye and waits until all have; on the way out of an error it does neither, and the
  // others take it for a death.
  ~SocketWorld();
  SocketWorld(const SocketWorld&) = delete;
  SocketWorld& operator=(const SocketWorld&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  int data(int r) const {
    return data_[static_cast<size_t>(r)].fd();
  }  // the connection with rank r

  // Counters, by a number that all their users know. One user makes it before the others come;
  // when all `users` have dropped it, it is gone.
  void make_counter(uint64_t id, int64_t initial, int users);
  int64_t fetch_add(uint64_t id, int64_t n);
  void drop_counter(uint64_t id) noexcept;

  // Ends the job. When several ranks fail at once, the first that rank 0 hears of prints its line.
  [[noreturn]] void abort(std::string_view reason, ExitCode code);

  // The data connection with rank r has ended, for `error` (an errno; 0: the other end closed it).
  // Most often the job is ending and a better reason on its way: this waits for that for a few
  // seconds. Otherwise CommError.
  [[noreturn]] void lost(const char* what, int r, int error);

 private:
  // Plain old data: it travels as bytes.
  enum class Kind : uint32_t { kAbort, kGoodbye, kMakeCounter, kFetchAdd, kDropCounter, kReply };
  struct Control {
    Kind kind = Kind::kGoodbye;
    int32_t code = 0;   // of kAbort; users of kMakeCounter
    uint64_t id = 0;    // of a counter; of kAbort the rank that failed
    int64_t value = 0;  // what is added, or the value before
  };
  struct Link {
    int rank = 0;
    Socket socket;
    std::array<std::byte, sizeof(Control)> bytes{};  // of a message that has not come whole
    size_t heard = 0;
    bool goodbye = false;
    bool ended = false;
  };
  struct Counter {
    int64_t value = 0;
    int users = 0;
  };

  void serve();
  void hear(Link& link);
  void handle(Link& link, const Control& message);
  void handle_end(Link& link);
  Link* link_to(int r);
  bool send(Link& link, const Control& message);
  void send_to_all(const Control& message);
  Control ask(const Control& question);
  std::optional<int64_t> act_on_counter(const Control& message);
  bool take_blame();
  [[noreturn]] void end_process(int code);
  [[noreturn]] void end_all(int culprit, int code);
  void stop_serving();

  const int rank_;
  const int size_;
  std::vector<Socket> data_;
  std::vector<Link> links_;  // rank 0: to all others; the others: to rank 0 alone
  Socket wake_;              // readable when the thread is to stop

  std::mutex send_mutex_;  // one message at a time
  std::mutex mutex_;       // what follows
  std::condition_variable changed_;
  std::map<uint64_t, Counter> counters_;  // rank 0
  std::optional<Control> reply_;
  int goodbyes_ = 0;
  bool ending_ = false;     // the job's end is decided (rank 0), or this rank has asked for it
  bool may_speak_ = false;  // it is this rank's line that says why
  std::thread thread_;
};

}  // namespace degu
