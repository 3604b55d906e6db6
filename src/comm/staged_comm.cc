#include "comm/staged_comm.h"

#include <numeric>
#include <utility>

#include "comm/relay_communicator.h"
#include "tensor/device.h"

namespace degu {
namespace {

int64_t total(Counts counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

class StagedCommunicator final : public RelayCommunicator {
 public:
  // `sums`: what the host's sums run on; one for all groups of a job.
  template <class Host>
  StagedCommunicator(Host&& ranks, std::shared_ptr<Context> sums)
      : RelayCommunicator(std::forward<Host>(ranks)), sums_(std::move(sums)) {}

  Work all_reduce(Context& context, AnyView x, Reduce reduce, Order order) override {
    if (x.device != DeviceType::kCpu && size() == 1) return {};
    const OnHost x_host(context, x);
    host().all_reduce(*sums_, x_host, reduce, order).wait();
    x_host.put_back();
    return {};
  }

  Work reduce_scatter(Context& context, AnyView in, Counts counts, AnyView out, Reduce reduce,
                      Order order) override {
    if (out.device == DeviceType::kCpu) {
      return host().reduce_scatter(*sums_, in, counts, out, reduce, order);
    }
    if (size() == 1) {
      copy(context, in, out);
      return {};
    }
    const OnHost in_host(context, in);
    const OnHost out_host = OnHost::unfilled(context, out);
    host().reduce_scatter(*sums_, in_host, counts, out_host, reduce, order).wait();
    out_host.put_back();
    return {};
  }

  Work all_gather(Context& context, AnyView in, AnyView out, Counts counts) override {
    if (out.device == DeviceType::kCpu) return host().all_gather(*sums_, in, out, counts);
    if (size() == 1) {
      copy(context, in, out);
      return {};
    }
    const OnHost in_host(context, in);
    const OnHost out_host = OnHost::unfilled(context, out);
    host().all_gather(*sums_, in_host, out_host, counts).wait();
    out_host.put_back();
    return {};
  }

  Work all_to_all_rows(Context& context, AnyView send, Counts send_rows, AnyView recv,
                       Counts recv_rows) override {
    if (recv.device == DeviceType::kCpu) {
      return host().all_to_all_rows(*sums_, send, send_rows, recv, recv_rows);
    }
    // Both views may be larger than what travels.
    const OnHost send_host(context, send.rows(0, total(send_rows)));
    const OnHost recv_host = OnHost::unfilled(context, recv.rows(0, total(recv_rows)));
    host().all_to_all_rows(*sums_, send_host, send_rows, recv_host, recv_rows).wait();
    recv_host.put_back();
    return {};
  }

  Work broadcast(Context& context, AnyView x, int root) override {
    if (x.device != DeviceType::kCpu && size() == 1) return {};
    const OnHost x_host(context, x);
    host().broadcast(*sums_, x_host, root).wait();
    x_host.put_back();
    return {};
  }

 private:
  std::unique_ptr<Communicator> over(std::unique_ptr<Communicator> group) override {
    return std::make_unique<StagedCommunicator>(std::move(group), sums_);
  }

  std::shared_ptr<Context> sums_;
};

}  // namespace

std::unique_ptr<Communicator> make_staged_communicator(Communicator& inner) {
  // The ranks' own threads are idle meanwhile, but not all ranks' at once: one is enough.
  auto sums =
      std::make_shared<Context>(ContextOptions{.threads = 1, .scratch_bytes = size_t{1} << 20});
  return std::make_unique<StagedCommunicator>(inner, std::move(sums));
}

}  // namespace degu
