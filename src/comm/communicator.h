// The ranks of a job, or of a named group of them, and what they do together.
//
// Contract
// - Every call but rank(), size(), abort() and SharedCounter::fetch_add is collective: each rank of
// the
//   group makes the same calls in the same order, from one thread at a time.
// - A call returns a Work. Its buffers belong to the communicator until `wait` returns: what is
//   sent may not be written nor given away, what is received neither read nor written. Counts are
//   read during the call. Ranks wait for works in the same order. On host memory the work is
//   complete when the call returns. On an accelerator `wait` does not hold the host: what the
//   context is given afterwards comes after the work.
// - Element types: fp32, fp64, int32, int64 and bf16. bf16 is summed in fp32 and rounded once, at
// the end.
//   Calls that only move data (all_gather, all_to_all_rows, broadcast) take every type.
// - kMax and kMin of floating types return NaN when any rank brings NaN.
// - Errors: ShapeError when this rank's own arguments do not fit together; CommError when ranks
// disagree
//   (verified before each exchange in debug builds, or with CommOptions::verify), when another rank
//   has failed, or when the transport reports an error. After a CommError the communicator is
//   unusable: let the error reach the top of the program, which ends the job.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "tensor/context.h"
#include "tensor/view.h"

namespace degu {

enum class Reduce : uint8_t { kSum, kMax, kMin };

// kTree adds in one fixed order: a binary tree over rank indices. Level by level the neighbours
// (2i, 2i+1) are added, the left one first; a last one without a partner moves up unchanged
// (comm/tree.h). Each element's sum is a function of the values and the number of ranks alone. When
// every rank brings the tree sum of its own aligned run of 2^k units, the result is the tree sum
// over all units, whatever the number of ranks. kAny leaves the order to the transport and is the
// fastest it has.
enum class Order : uint8_t { kTree, kAny };

using Counts = std::span<const int64_t>;  // one entry per rank of the group

// A collective under way. Destroying it waits.
class Work {
 public:
  Work() = default;  // complete
  explicit Work(std::function<void()> finish) : finish_(std::move(finish)) {}
  Work(Work&& other) noexcept : finish_(std::exchange(other.finish_, nullptr)) {}
  // Waiting for the old work may fail.
  Work& operator=(Work&& other) {  // NOLINT(performance-noexcept-move-constructor)
    wait();
    finish_ = std::exchange(other.finish_, nullptr);
    return *this;
  }
  ~Work() { wait(); }

  bool done() const { return !finish_; }
  void wait() {
    if (finish_) std::exchange(finish_, nullptr)();
  }

 private:
  std::function<void()> finish_;
};

// A number that all ranks of a group share, to hand out pieces of work as ranks become free.
// fetch_add is not collective and needs no other rank to take part in the call.
class SharedCounter {
 public:
  virtual ~SharedCounter() = default;        // collective
  virtual int64_t fetch_add(int64_t n) = 0;  // returns the value before the addition
};

class Communicator {
 public:
  virtual ~Communicator() = default;  // collective
  Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // x[i] = reduce over ranks of x[i], on every rank.
  virtual Work all_reduce(Context&, AnyView x, Reduce, Order = Order::kTree) = 0;

  // `in` holds one shard per rank, in rank order, counts[r] elements each; `out` becomes the
  // reduction of shard rank() over all ranks. Without counts all shards are of out's size. `out`
  // may be this rank's own shard of `in`; any other overlap is a ShapeError. Contents of `in`
  // outside `out` are kept.
  virtual Work reduce_scatter(Context&, AnyView in, Counts counts, AnyView out, Reduce,
                              Order = Order::kTree) = 0;
  Work reduce_scatter(Context&, AnyView in, AnyView out, Reduce, Order = Order::kTree);

  // `out` becomes every rank's `in`, in rank order; counts[r] elements come from rank r. `in` may
  // be this rank's own part of `out`.
  virtual Work all_gather(Context&, AnyView in, AnyView out, Counts counts) = 0;
  Work all_gather(Context&, AnyView in, AnyView out);

  // Rows (first dimension) of `send` lie in rank order, send_rows[r] of them for rank r; those
  // received lie in rank order at the start of `recv`, recv_rows[r] from rank r. Both views may be
  // larger than what travels. send_rows[q] on rank p must equal recv_rows[p] on rank q. The views
  // must not overlap.
  virtual Work all_to_all_rows(Context&, AnyView send, Counts send_rows, AnyView recv,
                               Counts recv_rows) = 0;

  virtual Work broadcast(Context&, AnyView x, int root) = 0;

  // Control plane: small host data, blocking, no Context needed.
  virtual void barrier() = 0;
  virtual std::vector<std::string> gather_text(
      std::string_view mine) = 0;  // [r] is rank r's, on all
  virtual std::string broadcast_text(std::string_view text, int root) = 0;

  // Ranks of equal color form a group, ordered by (key, rank). A negative color joins none: null.
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;
  virtual std::unique_ptr<SharedCounter> make_counter(int64_t initial) = 0;

  // Ends the whole job, not this group alone, from any one rank: the others stop within seconds
  // with `reason`, which is one line.
  [[noreturn]] virtual void abort(std::string_view reason, ExitCode code = ExitCode::kComm) = 0;
};

struct CommOptions {
  // Compare what the ranks bring before each exchange: one small extra exchange per call.
#ifdef NDEBUG
  bool verify = false;
#else
  bool verify = true;
#endif
  // Received parts of a reduction pass through a buffer of this size, in rounds. Chosen
  // to stay in a core's second-level cache; not tuned beyond that.
  size_t scratch_bytes = size_t{1} << 20;
};

// One rank on its own.
std::unique_ptr<Communicator> make_self_communicator(const CommOptions& options = {});

}  // namespace degu
