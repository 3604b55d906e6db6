#include "comm/nccl_comm.h"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <optional>
#include <utility>

#include "comm/nccl_stream.h"
#include "comm/nccl_watchdog.h"
#include "comm/relay_communicator.h"
#include "comm/staged_comm.h"
#include "kernels/api/elementwise.h"
#include "tensor/device.h"

namespace degu {
namespace {

// Received parts of a tree sum pass through memory of this size, in rounds: from 64 ranks 1 MiB
// each.
constexpr size_t kRoundBytes = size_t{64} << 20;
// In bf16 they are half as large and are widened beside.
static_assert(kNcclSumBytes == 2 * kRoundBytes);

int64_t total(Counts counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

int64_t row_bytes(AnyView view) {
  int64_t elements = 1;
  for (int i = 1; i < view.shape.rank(); ++i) elements *= view.dim(i);
  return elements * static_cast<int64_t>(size_of(view.dtype));
}

std::byte* bytes_at(AnyView view, int64_t offset) {
  return static_cast<std::byte*>(view.data) + offset;
}

AnyView flat(AnyView view) {
  return view.reshaped({view.elements()});
}

class NcclCommunicator final : public RelayCommunicator {
 public:
  template <class Host>
  NcclCommunicator(Host&& ranks, std::shared_ptr<NcclStream> beside,
                   std::shared_ptr<NcclWatchdog> watchdog)
      : RelayCommunicator(std::forward<Host>(ranks)),
        beside_(std::move(beside)),
        watchdog_(std::move(watchdog)),
        staged_(make_staged_communicator(host())) {
    ncclUniqueId id{};
    if (rank() == 0) check(ncclGetUniqueId(&id), "ncclGetUniqueId", 0);
    const std::string text = broadcast_text({id.internal, sizeof(id.internal)}, 0);
    std::memcpy(id.internal, text.data(), sizeof(id.internal));
    check(ncclCommInitRank(&comm_, size(), id, rank()), "starting NCCL", 0);
  }
  ~NcclCommunicator() override {
    watchdog_->forget(comm_);
    // A job that ends in an error does not wait for ranks that may never come.
    std::uncaught_exceptions() > 0 ? ncclCommAbort(comm_) : ncclCommDestroy(comm_);
  }

  Work all_reduce(Context& context, AnyView x, Reduce reduce, Order order) override {
    const std::optional<ncclDataType_t> own =
        order == Order::kAny ? summed(x, reduce) : std::nullopt;
    if (!own && !carries(x, reduce)) return staged_->all_reduce(context, x, reduce, order);
    if (size() == 1 || x.elements() == 0) return {};
    beside_->begin();
    if (own) {
      run("all_reduce", x.bytes(), [&] {
        return ncclAllReduce(x.data, x.data, static_cast<size_t>(x.elements()), *own, ncclSum,
                             comm_, stream());
      });
      return beside_->end();
    }
    std::vector<int64_t> shards(static_cast<size_t>(size()));
    const int64_t even = (x.elements() + size() - 1) / size();
    for (size_t r = 0; r < shards.size(); ++r) {
      const int64_t begin = std::min(x.elements(), static_cast<int64_t>(r) * even);
      shards[r] = std::min(even, x.elements() - begin);
    }
    const int64_t first = std::accumulate(shards.begin(), shards.begin() + rank(), int64_t{0});
    const AnyView mine = flat(x).rows(first, shards[static_cast<size_t>(rank())]);
    tree_scatter("all_reduce", flat(x), shards, mine);
    gather("all_reduce", mine, flat(x), shards);
    return beside_->end();
  }

  Work reduce_scatter(Context& context, AnyView in, Counts counts, AnyView out, Reduce reduce,
                      Order order) override {
    if (!carries(in, reduce) || !carries(out, reduce)) {
      return staged_->reduce_scatter(context, in, counts, out, reduce, order);
    }
    check_sizes("reduce_scatter", in.elements(), counts, out.elements());
    const bool even = std::all_of(counts.begin(), counts.end(),
                                  [&](int64_t count) { return count == counts.front(); });
    beside_->begin();
    if (size() == 1) {
      copy(sums(), in, out);
    } else if (order == Order::kAny && even && in.dtype == DType::kF32) {
      run("reduce_scatter", in.bytes(), [&] {
        return ncclReduceScatter(in.data, out.data, static_cast<size_t>(out.elements()), ncclFloat,
                                 ncclSum, comm_, stream());
      });
    } else {
      tree_scatter("reduce_scatter", flat(in), counts, flat(out));
    }
    return beside_->end();
  }

  Work all_gather(Context& context, AnyView in, AnyView out, Counts counts) override {
    if (out.device == DeviceType::kCpu) return staged_->all_gather(context, in, out, counts);
    check_sizes("all_gather", out.elements(), counts, in.elements());
    beside_->begin();
    gather("all_gather", flat(in), flat(out), counts);
    return beside_->end();
  }

  Work all_to_all_rows(Context& context, AnyView send, Counts send_rows, AnyView recv,
                       Counts recv_rows) override {
    if (recv.device == DeviceType::kCpu) {
      return staged_->all_to_all_rows(context, send, send_rows, recv, recv_rows);
    }
    if (send.dtype != recv.dtype || row_bytes(send) != row_bytes(recv) ||
        total(send_rows) > send.dim(0) || total(recv_rows) > recv.dim(0)) {
      throw ShapeError("all_to_all_rows: {} rows of {} {} against {} rows of {} {}",
                       total(send_rows), dtype_name(send.dtype), send.shape.str(), total(recv_rows),
                       dtype_name(recv.dtype), recv.shape.str());
    }
    std::vector<int64_t> out(send_rows.begin(), send_rows.end());
    std::vector<int64_t> in(recv_rows.begin(), recv_rows.end());
    for (int64_t& n : out) n *= row_bytes(send);
    for (int64_t& n : in) n *= row_bytes(recv);
    beside_->begin();
    exchange("all_to_all_rows", bytes_at(send, 0), out, bytes_at(recv, 0), in);
    return beside_->end();
  }

  Work broadcast(Context& context, AnyView x, int root) override {
    if (x.device == DeviceType::kCpu) return staged_->broadcast(context, x, root);
    beside_->begin();
    run("broadcast", x.bytes(),
        [&] { return ncclBroadcast(x.data, x.data, x.bytes(), ncclInt8, root, comm_, stream()); });
    return beside_->end();
  }

 private:
  std::unique_ptr<Communicator> over(std::unique_ptr<Communicator> group) override {
    return std::make_unique<NcclCommunicator>(std::move(group), beside_, watchdog_);
  }
  cudaStream_t stream() const { return beside_->stream(); }
  // What copies and sums run on, in the order of the collectives.
  Context& sums() const { return beside_->context(); }
  // NCCL's name of the type when it sums such elements itself. Of bf16 it would round each sum.
  static std::optional<ncclDataType_t> summed(AnyView x, Reduce reduce) {
    if (x.device != DeviceType::kCuda || reduce != Reduce::kSum) return std::nullopt;
    switch (x.dtype) {
      case DType::kF32:
        return ncclFloat;
      case DType::kF64:
        return ncclDouble;
      case DType::kI32:
        return ncclInt32;
      case DType::kI64:
        return ncclInt64;
      default:
        return std::nullopt;
    }
  }
  // Whether the sums below carry this reduction.
  static bool carries(AnyView x, Reduce reduce) {
    return x.device == DeviceType::kCuda && reduce == Reduce::kSum &&
           (x.dtype == DType::kF32 || x.dtype == DType::kBF16);
  }

  void check(ncclResult_t result, const char* what, size_t bytes) const {
    if (result == ncclSuccess) return;
    throw CommError("{} of {} bytes on rank {} of {}: {}", what, bytes, rank(), size(),
                    ncclGetErrorString(result));
  }
  void check_sizes(const char* what, int64_t whole, Counts counts, int64_t mine) const {
    if (static_cast<int>(counts.size()) != size() || whole != total(counts) ||
        mine != counts[static_cast<size_t>(rank())]) {
      throw ShapeError("{}: {} elements in all and {} of this rank do not fit the counts", what,
                       whole, mine);
    }
  }
  template <class Call>
  void run(const char* what, size_t bytes, const Call& call) {
    if (bytes == 0) return;
    check(call(), what, bytes);
    watchdog_->watch(comm_, stream(),
                     fmt::format("{} of {} bytes on rank {} of {}", what, bytes, rank(), size()));
  }

  // Bytes out[r] of `send`, in rank order, go to rank r; in[r] come from there. Own ones are
  // copied.
  void exchange(const char* what, std::byte* send, Counts out, std::byte* recv, Counts in) {
    run(what, static_cast<size_t>(total(out) + total(in)), [&] {
      ncclGroupStart();
      ncclResult_t result = ncclSuccess;
      int64_t from = 0, to = 0;
      for (int r = 0; r < size(); ++r) {
        const auto i = static_cast<size_t>(r);
        if (r == rank()) {
          if (out[i] > 0 && send + from != recv + to) {
            sums().device_state()->move(recv + to, send + from, static_cast<size_t>(out[i]));
          }
        } else {
          if (out[i] > 0) {
            result = std::max(result, ncclSend(send + from, static_cast<size_t>(out[i]), ncclInt8,
                                               r, comm_, stream()));
          }
          if (in[i] > 0) {
            result = std::max(result, ncclRecv(recv + to, static_cast<size_t>(in[i]), ncclInt8, r,
                                               comm_, stream()));
          }
        }
        from += out[i];
        to += in[i];
      }
      return std::max(result, ncclGroupEnd());
    });
  }

  // Every rank's `in` to its place in `out`, on all.
  void gather(const char* what, AnyView in, AnyView out, Counts counts) {
    run(what, out.bytes(), [&] {
      ncclGroupStart();
      ncclResult_t result = ncclSuccess;
      int64_t first = 0;
      for (int r = 0; r < size(); ++r) {
        const int64_t count = counts[static_cast<size_t>(r)];
        const AnyView part = out.rows(first, count);
        first += count;
        if (count == 0) continue;
        result = std::max(result, ncclBroadcast(r == rank() ? in.data : part.data, part.data,
                                                part.bytes(), ncclInt8, r, comm_, stream()));
      }
      return std::max(result, ncclGroupEnd());
    });
  }

  // out = the tree sum over ranks of shard rank() of `in`, which is kept outside `out`.
  void tree_scatter(const char* what, AnyView in, Counts counts, AnyView out) {
    const ScratchScope scope(sums().scratch());
    const auto ranks = static_cast<int64_t>(counts.size());
    const int64_t largest = *std::max_element(counts.begin(), counts.end());
    const auto fits =
        static_cast<int64_t>(kRoundBytes / sizeof(float)) / ranks;  // widened, in the worst case
    const int64_t round = std::max<int64_t>(std::min(largest, fits), 1);
    const AnyView arrived = sums().scratch().take(in.dtype, {ranks, round});
    const AnyView wide =
        in.dtype == DType::kF32 ? arrived : sums().scratch().take(DType::kF32, {ranks, round});
    for (int64_t begin = 0; begin < largest; begin += round) {
      const int64_t mine = tree_round(what, in, counts, begin, round, arrived);
      if (mine == 0) continue;
      const auto piece = [&](AnyView from, int64_t r) {
        return from.rows(r, 1).reshaped({round}).rows(0, mine);
      };
      if (wide.data != arrived.data) {
        for (int64_t r = 0; r < ranks; ++r) cast(sums(), piece(arrived, r), piece(wide, r));
      }
      for (int64_t width = 1; width < ranks; width *= 2) {
        for (int64_t r = 0; r + width < ranks; r += 2 * width) {
          add(sums(), piece(wide, r), piece(wide, r + width), piece(wide, r));
        }
      }
      cast(sums(), piece(wide, 0), out.rows(begin, mine));
    }
  }

  // Elements [begin, begin + round) of every shard travel to its rank; row r of `arrived` becomes
  // what rank r sent. Returns how many this rank's shard has there.
  int64_t tree_round(const char* what, AnyView in, Counts counts, int64_t begin, int64_t round,
                     AnyView arrived) {
    const auto in_round = [&](int64_t count) {
      return std::clamp<int64_t>(count - begin, 0, round);
    };
    const int64_t mine = in_round(counts[static_cast<size_t>(rank())]);
    run(what, static_cast<size_t>(round * size()) * size_of(in.dtype), [&] {
      ncclGroupStart();
      ncclResult_t result = ncclSuccess;
      int64_t first = 0;
      for (int r = 0; r < size(); ++r) {
        const int64_t count = in_round(counts[static_cast<size_t>(r)]);
        const AnyView out = in.rows(count > 0 ? first + begin : 0, count);
        const AnyView here = arrived.rows(r, 1).reshaped({round}).rows(0, mine);
        first += counts[static_cast<size_t>(r)];
        if (r == rank()) {
          copy(sums(), out, here);
          continue;
        }
        if (count > 0) {
          result = std::max(result, ncclSend(out.data, out.bytes(), ncclInt8, r, comm_, stream()));
        }
        if (mine > 0) {
          result =
              std::max(result, ncclRecv(here.data, here.bytes(), ncclInt8, r, comm_, stream()));
        }
      }
      return std::max(result, ncclGroupEnd());
    });
    return mine;
  }

  std::shared_ptr<NcclStream> beside_;
  std::shared_ptr<NcclWatchdog> watchdog_;
  std::unique_ptr<Communicator> staged_;
  ncclComm_t comm_ = nullptr;
};

}  // namespace

bool nccl_built() {
  return true;
}

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& control, Context& context) {
  if (context.device() != DeviceType::kCuda) {
    throw DeviceError("NCCL works on GPU memory and the context is on the host");
  }
  return std::make_unique<NcclCommunicator>(control,
                                            std::make_shared<NcclStream>(context, kNcclSumBytes),
                                            std::make_shared<NcclWatchdog>());
}

}  // namespace degu
