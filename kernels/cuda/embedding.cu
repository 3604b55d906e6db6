#include "kernels/tables/embedding.h"

#include <vector>

#include "kernels/common/tree.h"
#include "kernels/cuda/copy_rows.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/table.h"

namespace degu {
namespace {

using namespace degu::cuda;

void forward(Context& context, AnyView table, const RowNumbers& tokens, AnyView y) {
  ScratchScope scope(context.scratch());
  const int64_t row_bytes = table.dim(1) * static_cast<int64_t>(size_of(table.dtype));
  copy_rows(context, "embedding", table.data, on_device(context, tokens.host, tokens.device),
            y.data, static_cast<int64_t>(tokens.size()), row_bytes, table.dim(0));
}

// One row of the gradient: the leaves [first, last) of its tree, and the joins after them.
struct TokenSum {
  int64_t out_row;
  int32_t first;
  int32_t last;
  int32_t joins;
};

// Neighbouring entries [begin, end) of the row list, all of one unit, and the joins before it.
struct Leaf {
  int32_t begin;
  int32_t end;
  int32_t joins;
};

// The tokens are the host's, so the host sorts them, while the device is still at earlier work.
struct Plan {
  std::vector<TokenSum> sums;
  std::vector<Leaf> leaves;
  std::vector<int32_t> rows;  // of dy, by (slot, token, row)
};

void plan_token(const UnitSegments& segments, int64_t slot, int64_t out_row, int32_t begin,
                int32_t end, Plan& plan) {
  TokenSum sum{out_row, static_cast<int32_t>(plan.leaves.size()), 0, 0};
  TreeStack tree;
  int32_t joins = 0;
  const auto count_join = [&](int, int) { ++joins; };
  int64_t unit = 0;
  for (int32_t next = begin; next < end;) {
    while (plan.rows[static_cast<size_t>(next)] >= segments.end(0, slot, unit)) ++unit;
    int32_t last = next + 1;
    while (last < end && plan.rows[static_cast<size_t>(last)] < segments.end(0, slot, unit)) ++last;
    tree.push(unit, count_join);
    plan.leaves.push_back({next, last, joins});
    joins = 0;
    next = last;
  }
  tree.finish(count_join);
  sum.last = static_cast<int32_t>(plan.leaves.size());
  sum.joins = joins;
  plan.sums.push_back(sum);
}

Plan plan_of(std::span<const int32_t> tokens, const UnitSegments& segments, int64_t vocab) {
  Plan plan;
  plan.rows.resize(tokens.size());
  std::vector<int32_t> place(static_cast<size_t>(vocab) + 1);
  for (int64_t slot = 0; slot < segments.slots; ++slot) {
    const int64_t begin = segments.begin(0, slot, 0);
    const int64_t end = segments.end(0, slot, segments.units - 1);
    place.assign(place.size(), 0);
    for (int64_t r = begin; r < end; ++r) {
      ++place[static_cast<size_t>(tokens[static_cast<size_t>(r)]) + 1];
    }
    place[0] = static_cast<int32_t>(begin);
    for (size_t v = 1; v < place.size(); ++v) place[v] += place[v - 1];
    for (int64_t r = begin; r < end; ++r) {
      const auto token = static_cast<size_t>(tokens[static_cast<size_t>(r)]);
      plan.rows[static_cast<size_t>(place[token]++)] = static_cast<int32_t>(r);
    }
    // Placing moved each token's start to its end.
    auto from = static_cast<int32_t>(begin);
    for (int64_t v = 0; v < vocab; ++v) {
      const int32_t to = place[static_cast<size_t>(v)];
      if (to > from) plan_token(segments, slot, slot * vocab + v, from, to, plan);
      from = to;
    }
  }
  return plan;
}

constexpr int kColumns = 4;  // per thread
constexpr int kSumThreads = 128;
constexpr int kDepth = 32;  // tree_depth of any count that fits in memory
constexpr int kAhead = 8;   // rows of a sum on their way at a time

template <class T>
struct SumArgs {
  const T* dy;
  const TokenSum* sums;
  const Leaf* leaves;
  const int32_t* rows;
  float* out;
  int64_t width;
  int tiles;  // of columns
  bool add;
};

// total += rows of one leaf, in order.
template <bool kVector, class T>
__device__ inline void add_rows(const SumArgs<T>& args, const Leaf& leaf, int64_t column,
                                float (&total)[kColumns]) {
  int32_t r = leaf.begin;
  for (; r + kAhead <= leaf.end; r += kAhead) {
    float v[kAhead][kColumns];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      load<kVector>(args.dy + args.rows[r + a] * args.width, column, args.width, v[a]);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) total[j] = total[j] + v[a][j];
    }
  }
  for (; r < leaf.end; ++r) {
    float v[kColumns];
    load<kVector>(args.dy + args.rows[r] * args.width, column, args.width, v);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) total[j] = total[j] + v[j];
  }
}

template <bool kVector, class T>
__global__ void __launch_bounds__(kSumThreads) sum_kernel(SumArgs<T> args) {
  const TokenSum sum = args.sums[blockIdx.x / args.tiles];
  const int64_t column =
      (static_cast<int64_t>(blockIdx.x % args.tiles) * kSumThreads + threadIdx.x) * kColumns;
  if (column >= args.width) return;
  float total[kColumns] = {};
  if (sum.last - sum.first == 1) {  // most tokens occur in one unit
    add_rows<kVector>(args, args.leaves[sum.first], column, total);
  } else {
    float stack[kDepth][kColumns];
    int top = -1;
    const auto join = [&](int joins) {
      for (; joins > 0; --joins, --top) {
        for (int j = 0; j < kColumns; ++j) stack[top - 1][j] = stack[top - 1][j] + stack[top][j];
      }
    };
    for (int32_t l = sum.first; l < sum.last; ++l) {
      const Leaf leaf = args.leaves[l];
      join(leaf.joins);
      float part[kColumns] = {};
      add_rows<kVector>(args, leaf, column, part);
      ++top;
      for (int j = 0; j < kColumns; ++j) stack[top][j] = part[j];
    }
    join(sum.joins);
    for (int j = 0; j < kColumns; ++j) total[j] = stack[0][j];
  }
  float* out = args.out + sum.out_row * args.width;
  if (args.add) {
    float held[kColumns];
    load<kVector>(out, column, args.width, held);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) total[j] = held[j] + total[j];
  }
  store<kVector>(out, column, args.width, total);
}

template <class T>
void backward_typed(Context& context, AnyView dy, const Plan& plan, AnyView dtable, int64_t width,
                    bool add) {
  ScratchScope scope(context.scratch());
  const SumArgs<T> args{.dy = static_cast<const T*>(dy.data),
                        .sums = on_device(context, std::span<const TokenSum>(plan.sums)),
                        .leaves = on_device(context, std::span<const Leaf>(plan.leaves)),
                        .rows = on_device(context, std::span<const int32_t>(plan.rows)),
                        .out = static_cast<float*>(dtable.data),
                        .width = width,
                        .tiles = static_cast<int>(blocks_for(width, kSumThreads * kColumns)),
                        .add = add};
  const auto blocks = static_cast<unsigned>(plan.sums.size()) * static_cast<unsigned>(args.tiles);
  // Four columns are 16 bytes of the table and 8 or 16 of dy.
  if (vectored<float>(2, width, {dy.data, dtable.data})) {
    launch_kernel(context, "embedding_backward", {blocks, kSumThreads}, &sum_kernel<true, T>, args);
  } else {
    launch_kernel(context, "embedding_backward", {blocks, kSumThreads}, &sum_kernel<false, T>,
                  args);
  }
}

void backward(Context& context, AnyView dy, std::span<const int32_t> tokens,
              const UnitSegments& segments, AnyView dtable, int64_t width, Write write) {
  const bool add = write == Write::kAdd;
  if (!add && dtable.bytes() > 0) state_of(context).zero(dtable.data, dtable.bytes());
  if (tokens.empty() || width == 0) return;
  const Plan plan = plan_of(tokens, segments, dtable.elements() / (segments.slots * width));
  dy.dtype == DType::kBF16 ? backward_typed<bf16>(context, dy, plan, dtable, width, add)
                           : backward_typed<float>(context, dy, plan, dtable, width, add);
}

}  // namespace

template <>
const EmbeddingKernels cuda::Table<EmbeddingKernels>::value = {&forward, &backward};

}  // namespace degu
