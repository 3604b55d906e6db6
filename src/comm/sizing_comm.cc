#include "comm/sizing_comm.h"

namespace degu {
namespace {

class SizingCommunicator final : public Communicator {
 public:
  SizingCommunicator(int rank, int size) : rank_(rank), size_(size) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  Work all_reduce(Context&, AnyView, Reduce, Order) override { absent("all_reduce"); }
  Work reduce_scatter(Context&, AnyView, Counts, AnyView, Reduce, Order) override {
    absent("reduce_scatter");
  }
  Work all_gather(Context&, AnyView, AnyView, Counts) override { absent("all_gather"); }
  Work all_to_all_rows(Context&, AnyView, Counts, AnyView, Counts) override {
    absent("all_to_all_rows");
  }
  Work broadcast(Context&, AnyView, int) override { absent("broadcast"); }
  void barrier() override { absent("barrier"); }
  std::vector<std::string> gather_text(std::string_view) override { absent("gather_text"); }
  std::string broadcast_text(std::string_view, int) override { absent("broadcast_text"); }
  std::unique_ptr<Communicator> split(int, int) override { absent("split"); }
  std::unique_ptr<SharedCounter> make_counter(int64_t) override { absent("make_counter"); }
  void abort(std::string_view reason, ExitCode) override {
    throw CommError("rank {} of {}: {}", rank_, size_, reason);
  }

 private:
  [[noreturn]] void absent(const char* call) const {
    throw CommError("{}: rank {} of {} is here for its sizes only; there are no others", call,
                    rank_, size_);
  }
  int rank_;
  int size_;
};

}  // namespace

std::unique_ptr<Communicator> make_sizing_communicator(int rank, int size) {
  return std::make_unique<SizingCommunicator>(rank, size);
}

}  // namespace degu
