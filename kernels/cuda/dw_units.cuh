// What the kernels of grouped_gemm_dw share: their arguments, the walk over a result's rows, the
// tree over its units.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/api/rows.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/stage_copy.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace degu::cuda {

struct DwArgs {
  const std::byte* dy;     // [R, outputs]
  const std::byte* x;      // [R, width]
  const int64_t* offsets;  // of units, on the device
  float* dw;               // [slots, groups, outputs, width]
  float* subtrees;         // per block: sums of complete subtrees, a tile per level
  int64_t outputs;
  int64_t width;
  int64_t groups;
  int64_t slots;
  int64_t units;  // of a slot
  int levels;
  bool dy_vector;  // 16-byte accesses are right
  bool x_vector;
  bool pairs;  // dw: 8-byte accesses are right
  bool add;
};

// The fp32 form; rows of both are fp32.
void dw_floats(Context& context, DwArgs args);

namespace {

// Of units: how many subtrees wait at most while the last leaf is summed.
inline int waiting_levels(int64_t units) {
  int levels = 0;
  while ((units - 1) >> levels > 0) ++levels;
  return levels;
}

// Tiles of all results in one line: a result is one (group, slot).
struct DwPlace {
  int64_t result;
  int64_t output;  // first ones of the tile
  int64_t column;

  __device__ DwPlace(const DwArgs& args, int64_t index, int tile_outputs, int tile_columns) {
    const int64_t down = (args.outputs + tile_outputs - 1) / tile_outputs;
    const int64_t across = (args.width + tile_columns - 1) / tile_columns;
    result = index / (down * across);
    output = index / across % down * tile_outputs;
    column = index % across * tile_columns;
  }
  // Where the result's units begin.
  __device__ const int64_t* offsets(const DwArgs& args) const {
    return args.offsets + result * args.units;
  }
  __device__ float* dw(const DwArgs& args) const {
    const int64_t matrix = result % args.slots * args.groups + result / args.slots;
    return args.dw + matrix * args.outputs * args.width;
  }
};

inline int64_t dw_tiles(const DwArgs& args, int tile_outputs, int tile_columns) {
  return args.groups * args.slots * ((args.outputs + tile_outputs - 1) / tile_outputs) *
         ((args.width + tile_columns - 1) / tile_columns);
}

// Steps of up to kDepth rows, each within one unit; empty units have none.
template <int kDepth>
class RowSteps {
 public:
  __device__ RowSteps(const int64_t* offsets, int64_t units)
      : offsets_(offsets), units_(units), row_(offsets[0]) {
    settle();
  }
  __device__ bool more() const { return unit_ < units_; }
  __device__ int64_t row() const { return row_; }
  __device__ int rows() const {
    return static_cast<int>(min(int64_t{kDepth}, offsets_[unit_ + 1] - row_));
  }
  __device__ void advance() {
    row_ += kDepth;
    settle();
  }

 private:
  __device__ void settle() {
    while (unit_ < units_ && row_ >= offsets_[unit_ + 1]) {
      ++unit_;
      row_ = offsets_[unit_];
    }
  }

  const int64_t* offsets_;
  int64_t units_;
  int64_t unit_ = 0;
  int64_t row_;
};

// f(i, number) for a thread's sums in a fixed order.
template <int A, int B, int C, class F>
__device__ inline void each_sum(float (&sum)[A][B][C], F&& f) {
#pragma unroll
  for (int a = 0; a < A; ++a) {
#pragma unroll
    for (int b = 0; b < B; ++b) {
#pragma unroll
      for (int c = 0; c < C; ++c) f((a * B + b) * C + c, sum[a][b][c]);
    }
  }
}
template <int A, int B, class F>
__device__ inline void each_sum(float (&sum)[A][B], F&& f) {
#pragma unroll
  for (int a = 0; a < A; ++a) {
#pragma unroll
    for (int b = 0; b < B; ++b) f(a * B + b, sum[a][b]);
  }
}

// The tree over units, walked like a binary counter: after unit u as many subtrees are complete as
// u has trailing ones, each joined with its left sibling; when the number of units is no power of
// two what is left is joined from the right. A block keeps subtrees in memory of its own, laid out
// so that neighbouring threads are neighbours there.
template <int kBlock, class Sums>
__device__ inline void join_unit(const DwArgs& args, int64_t unit, Sums& sum) {
  constexpr int kEach = static_cast<int>(sizeof(Sums) / sizeof(float));
  float* mine =
      args.subtrees + static_cast<int64_t>(blockIdx.x) * args.levels * kEach * kBlock + threadIdx.x;
  const auto join = [&](int level) {
    const float* left = mine + static_cast<int64_t>(level) * kEach * kBlock;
    each_sum(sum, [&](int i, float& value) { value = left[i * kBlock] + value; });
  };
  int level = 0;
  for (; (unit >> level & 1) != 0; ++level) join(level);
  if (unit + 1 < args.units) {
    float* to = mine + static_cast<int64_t>(level) * kEach * kBlock;
    each_sum(sum, [&](int i, float& value) { to[i * kBlock] = value; });
  } else {
    for (++level; unit >> level != 0; ++level) {
      if ((unit >> level & 1) != 0) join(level);
    }
  }
}

// `sum` becomes a tile's sums over all units: the rows of each in order, the units in the tree.
// Copies run kStages - 1 steps ahead of the products. load(step, stage) starts the copies of a step
// into a stage of shared memory, multiply(stage, rows) adds a stage to `sum`.
template <int kBlock, int kDepth, int kStages, class Sums, class Load, class Multiply>
__device__ inline void sum_units(const DwArgs& args, const int64_t* offsets, Sums& sum, Load&& load,
                                 Multiply&& multiply) {
  RowSteps<kDepth> ahead(offsets, args.units);
  const auto load_next = [&](int stage) {
    if (ahead.more()) {
      load(ahead, stage);
      ahead.advance();
    }
    commit_copies();
  };
  for (int s = 0; s < kStages - 1; ++s) load_next(s);
  int read = 0;
  int write = kStages - 1;
  for (int64_t unit = 0; unit < args.units; ++unit) {
    each_sum(sum, [](int, float& value) { value = 0.0f; });
    const int64_t end = offsets[unit + 1];
    for (int64_t row = offsets[unit]; row < end; row += kDepth) {
      wait_copies<kStages - 2>();
      if constexpr (kHasWarpgroups) fence_copies();
      __syncthreads();  // the step is there for all; nobody reads the stage that is written next
      load_next(write);
      multiply(read, static_cast<int>(min(int64_t{kDepth}, end - row)));
      read = read + 1 == kStages ? 0 : read + 1;
      write = write + 1 == kStages ? 0 : write + 1;
    }
    join_unit<kBlock>(args, unit, sum);
  }
}

// One persistent grid over the tiles of all results, `resident` blocks a multiprocessor.
template <int kBlock, class Kernel>
void run_dw(Context& context, Kernel* kernel, DwArgs args, int tile, int shared, int resident) {
  const int64_t tiles = dw_tiles(args, tile, tile);
  const int64_t blocks = std::min(tiles, state_of(context).multiprocessors() * int64_t{resident});
  args.subtrees = scratch_of<float>(context, blocks * args.levels * tile * tile);
  launch_kernel(context, "grouped_gemm_dw", {static_cast<unsigned>(blocks), kBlock, shared}, kernel,
                args, tiles);
}

}  // namespace
}  // namespace degu::cuda
