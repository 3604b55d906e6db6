// A communicator that postpones: each call is made when its Work is waited for, which all ranks do
// in one order. Until then what is received holds a pattern that is NaN in every floating type and
// -1 in every integer. So a sum of what was read too early is wrong, what is sent has to last until
// the wait, and what was written into memory under way is an error. On host memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "comm/relay_communicator.h"

namespace degu::test {

class LateCommunicator final : public RelayCommunicator {
 public:
  explicit LateCommunicator(Communicator& ranks) : RelayCommunicator(ranks) {}
  explicit LateCommunicator(std::unique_ptr<Communicator> ranks)
      : RelayCommunicator(std::move(ranks)) {}

  using Communicator::all_gather;
  using Communicator::reduce_scatter;

  Work all_reduce(Context& context, AnyView x, Reduce reduce, Order order) override {
    return postpone(x, [this, &context, x, reduce, order] {
      return host().all_reduce(context, x, reduce, order);
    });
  }
  Work reduce_scatter(Context& context, AnyView in, Counts counts, AnyView out, Reduce reduce,
                      Order order) override {
    return postpone(out, [this, &context, in, counts = kept(counts), out, reduce, order] {
      return host().reduce_scatter(context, in, counts, out, reduce, order);
    });
  }
  Work all_gather(Context& context, AnyView in, AnyView out, Counts counts) override {
    // Where `in` is a part of `out`, its place there keeps what is sent.
    return postpone(out, [this, &context, in, out, counts = kept(counts)] {
      return host().all_gather(context, in, out, counts);
    });
  }
  Work all_to_all_rows(Context& context, AnyView send, Counts send_rows, AnyView recv,
                       Counts recv_rows) override {
    const int64_t rows = std::accumulate(recv_rows.begin(), recv_rows.end(), int64_t{0});
    return postpone(
        recv.rows(0, std::clamp<int64_t>(rows, 0, recv.dim(0))),
        [this, &context, send, send_rows = kept(send_rows), recv, recv_rows = kept(recv_rows)] {
          return host().all_to_all_rows(context, send, send_rows, recv, recv_rows);
        });
  }
  Work broadcast(Context& context, AnyView x, int root) override {
    return postpone(x, [this, &context, x, root] { return host().broadcast(context, x, root); });
  }

 private:
  static constexpr std::byte kPattern{0xff};

  std::unique_ptr<Communicator> over(std::unique_ptr<Communicator> group) override {
    return std::make_unique<LateCommunicator>(std::move(group));
  }
  static std::vector<int64_t> kept(Counts counts) { return {counts.begin(), counts.end()}; }

  // `received` may hold what is sent too, so the call finds it as it was.
  template <class Call>
  Work postpone(AnyView received, Call call) {
    auto* first = static_cast<std::byte*>(received.data);
    const size_t bytes = received.elements() > 0 ? received.bytes() : 0;
    std::vector<std::byte> before(first, first + bytes);
    std::fill_n(first, bytes, kPattern);
    return Work([first, before = std::move(before), call = std::move(call)] {
      const bool untouched =
          std::all_of(first, first + before.size(), [](std::byte b) { return b == kPattern; });
      if (!untouched) throw CommError("memory under way was written before the wait");
      std::copy(before.begin(), before.end(), first);
      call().wait();
    });
  }
};

}  // namespace degu::test
