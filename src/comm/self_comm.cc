// A group of one rank: every exchange is a copy, and nothing outside the process is touched.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "comm/host_communicator.h"

namespace degu {
namespace {

class SelfCounter final : public SharedCounter {
 public:
  explicit SelfCounter(int64_t initial) : value_(initial) {}
  int64_t fetch_add(int64_t n) override { return std::exchange(value_, value_ + n); }

 private:
  int64_t value_;
};

class SelfCommunicator final : public HostCommunicator {
 public:
  explicit SelfCommunicator(const CommOptions& options) : HostCommunicator(0, 1, options) {}

  std::unique_ptr<Communicator> split(int color, int) override {
    return color < 0 ? nullptr : std::make_unique<SelfCommunicator>(options());
  }
  std::unique_ptr<SharedCounter> make_counter(int64_t initial) override {
    return std::make_unique<SelfCounter>(initial);
  }
  void abort(std::string_view reason, ExitCode code) override {
    std::fprintf(stderr, "degu: %.*s\n", static_cast<int>(reason.size()), reason.data());
    std::fflush(nullptr);
    std::_Exit(static_cast<int>(code));
  }

 protected:
  void exchange(const char*, std::span<const Piece> send, std::span<const Piece> recv) override {
    if (send[0].bytes > 0) std::memcpy(recv[0].data, send[0].data, send[0].bytes);
  }
  void gather(const char*, Piece mine, std::span<const Piece> all) override {
    if (mine.bytes > 0 && mine.data != all[0].data) std::memcpy(all[0].data, mine.data, mine.bytes);
  }
  void send_from(const char*, Piece, int) override {}
  void wait_for_all(const char*) override {}
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator(const CommOptions& options) {
  return std::make_unique<SelfCommunicator>(options);
}

}  // namespace degu
