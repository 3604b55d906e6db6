#include "comm/staged_comm.h"

#include <cstdlib>
#include <numeric>
#include <utility>

#include "tensor/device.h"

namespace degu {
namespace {

int64_t total(Counts counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

class StagedCommunicator final : public Communicator {
 public:
  // `host`: what sums run on there; one for all groups of a job.
  StagedCommunicator(Communicator& inner, std::unique_ptr<Communicator> owned,
                     std::shared_ptr<Context> host)
      : inner_(inner), owned_(std::move(owned)), host_(std::move(host)) {}

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }

  Work all_reduce(Context& context, AnyView x, Reduce reduce, Order order) override {
    if (x.device != DeviceType::kCpu && size() == 1) return {};
    const OnHost x_host(context, x);
    inner_.all_reduce(*host_, x_host, reduce, order).wait();
    x_host.put_back();
    return {};
  }

  Work reduce_scatter(Context& context, AnyView in, Counts counts, AnyView out, Reduce reduce,
                      Order order) override {
    if (out.device == DeviceType::kCpu) {
      return inner_.reduce_scatter(*host_, in, counts, out, reduce, order);
    }
    if (size() == 1) {
      copy(context, in, out);
      return {};
    }
    const OnHost in_host(context, in);
    const OnHost out_host = OnHost::unfilled(context, out);
    inner_.reduce_scatter(*host_, in_host, counts, out_host, reduce, order).wait();
    out_host.put_back();
    return {};
  }

  Work all_gather(Context& context, AnyView in, AnyView out, Counts counts) override {
    if (out.device == DeviceType::kCpu) return inner_.all_gather(*host_, in, out, counts);
    if (size() == 1) {
      copy(context, in, out);
      return {};
    }
    const OnHost in_host(context, in);
    const OnHost out_host = OnHost::unfilled(context, out);
    inner_.all_gather(*host_, in_host, out_host, counts).wait();
    out_host.put_back();
    return {};
  }

  Work all_to_all_rows(Context& context, AnyView send, Counts send_rows, AnyView recv,
                       Counts recv_rows) override {
    if (recv.device == DeviceType::kCpu) {
      return inner_.all_to_all_rows(*host_, send, send_rows, recv, recv_rows);
    }
    // Both views may be larger than what travels.
    const OnHost send_host(context, send.rows(0, total(send_rows)));
    const OnHost recv_host = OnHost::unfilled(context, recv.rows(0, total(recv_rows)));
    inner_.all_to_all_rows(*host_, send_host, send_rows, recv_host, recv_rows).wait();
    recv_host.put_back();
    return {};
  }

  Work broadcast(Context& context, AnyView x, int root) override {
    if (x.device != DeviceType::kCpu && size() == 1) return {};
    const OnHost x_host(context, x);
    inner_.broadcast(*host_, x_host, root).wait();
    x_host.put_back();
    return {};
  }

  void barrier() override { inner_.barrier(); }
  std::vector<std::string> gather_text(std::string_view mine) override {
    return inner_.gather_text(mine);
  }
  std::string broadcast_text(std::string_view text, int root) override {
    return inner_.broadcast_text(text, root);
  }

  std::unique_ptr<Communicator> split(int color, int key) override {
    std::unique_ptr<Communicator> part = inner_.split(color, key);
    if (part == nullptr) return nullptr;
    Communicator& group = *part;
    return std::make_unique<StagedCommunicator>(group, std::move(part), host_);
  }
  std::unique_ptr<SharedCounter> make_counter(int64_t initial) override {
    return inner_.make_counter(initial);
  }
  [[noreturn]] void abort(std::string_view reason, ExitCode code) override {
    inner_.abort(reason, code);
    std::abort();  // the call does not return; the compiler cannot know
  }

 private:
  Communicator& inner_;
  std::unique_ptr<Communicator> owned_;
  std::shared_ptr<Context> host_;
};

}  // namespace

std::unique_ptr<Communicator> make_staged_communicator(Communicator& inner) {
  // The ranks' own threads are idle meanwhile, but not all ranks' at once: one is enough.
  auto host =
      std::make_shared<Context>(ContextOptions{.threads = 1, .scratch_bytes = size_t{1} << 20});
  return std::make_unique<StagedCommunicator>(inner, nullptr, std::move(host));
}

}  // namespace degu
