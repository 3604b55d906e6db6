#include "comm/sizing_comm.h"

namespace degu {
namespace {

class SizingCommunicator final : public Communicator {
 public:
  SizingCommunicator(int rank, int size) : rank_(rank), size_(size) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  Work all_reduce(Context&, AnyView x, Reduce, Order) override { return rehearse("all_reduce", x); }
  Work reduce_scatter(Context&, AnyView in, Counts, AnyView, Reduce, Order) override {
    return rehearse("reduce_scatter", in);
  }
  Work all_gather(Context&, AnyView, AnyView out, Counts) override {
    return rehearse("all_gather", out);
  }
  Work all_to_all_rows(Context&, AnyView send, Counts, AnyView, Counts) override {
    return rehearse("all_to_all_rows", send);
  }
  Work broadcast(Context&, AnyView x, int) override { return rehearse("broadcast", x); }
  void barrier() override { absent("barrier"); }
  std::vector<std::string> gather_text(std::string_view) override { absent("gather_text"); }
  std::string broadcast_text(std::string_view, int) override { absent("broadcast_text"); }
  std::unique_ptr<Communicator> split(int, int) override { absent("split"); }
  std::unique_ptr<SharedCounter> make_counter(int64_t) override { absent("make_counter"); }
  void abort(std::string_view reason, ExitCode) override {
    throw CommError("rank {} of {}: {}", rank_, size_, reason);
  }

 private:
  Work rehearse(const char* call, const AnyView& view) const {
    if (view.device != DeviceType::kPlan) absent(call);
    return {};
  }
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
