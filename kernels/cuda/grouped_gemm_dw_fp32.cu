#include <algorithm>

#include "kernels/cuda/dw_units.cuh"
#include "kernels/cuda/float_tile.cuh"
#include "kernels/cuda/stage_copy.cuh"

namespace degu::cuda {
namespace {

// A tile of dw: 64 outputs x 64 columns, 4 x 4 a thread. Rows come 4 bytes at a time, whatever
// their alignment.
constexpr int kTile = 64;
constexpr int kDepth = 32;  // rows of a step
constexpr int kEach = 4;
constexpr int kAcross = kTile / kEach;
constexpr int kBlock = kAcross * kAcross;  // threads
constexpr int kOperand = kDepth * kTile;   // numbers
constexpr int kStage = 2 * kOperand;
constexpr int kStages = 3;
constexpr int kShared = kStages * kStage * static_cast<int>(sizeof(float));
constexpr int kResident = 4;

__device__ inline void load_operand(const float* matrix, int64_t width, int64_t row, int rows,
                                    int64_t column, float* to) {
  each_item<kOperand, kBlock>([&](int i) {
    const int r = i / kTile;
    const int64_t at = column + i % kTile;
    const bool exists = r < rows && at < width;
    copy_async_4(to + i, matrix + (exists ? (row + r) * width + at : 0), exists ? 4 : 0);
  });
}

__device__ inline void load_rows(const DwArgs& args, const DwPlace& place,
                                 const RowSteps<kDepth>& step, float* stage) {
  load_operand(reinterpret_cast<const float*>(args.dy), args.outputs, step.row(), step.rows(),
               place.output, stage);
  load_operand(reinterpret_cast<const float*>(args.x), args.width, step.row(), step.rows(),
               place.column, stage + kOperand);
}

__global__ void __launch_bounds__(kBlock) dw_float_kernel(DwArgs args, int64_t tiles) {
  extern __shared__ uint4 dw_float_memory[];
  auto* shared = reinterpret_cast<float*>(dw_float_memory);
  const int first_output = static_cast<int>(threadIdx.x) / kAcross * kEach;
  const int first_column = static_cast<int>(threadIdx.x) % kAcross * kEach;
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const DwPlace place(args, index, kTile, kTile);
    const int64_t* offsets = place.offsets(args);
    RowSteps<kDepth> ahead(offsets, args.units);
    for (int s = 0; s < kStages - 1; ++s) {
      if (ahead.more()) {
        load_rows(args, place, ahead, shared + s * kStage);
        ahead.advance();
      }
      commit_copies();
    }
    int read = 0;
    int write = kStages - 1;
    float sum[kEach][kEach];
    for (int64_t unit = 0; unit < args.units; ++unit) {
      clear(sum);
      const int64_t end = offsets[unit + 1];
      for (int64_t row = offsets[unit]; row < end; row += kDepth) {
        wait_copies<kStages - 2>();
        __syncthreads();  // the step is there for all; nobody reads the stage that is written next
        if (ahead.more()) {
          load_rows(args, place, ahead, shared + write * kStage);
          ahead.advance();
        }
        commit_copies();
        const float* stage = shared + read * kStage;
        multiply_floats(sum, stage + first_output, kTile, stage + kOperand + first_column, kTile,
                        static_cast<int>(min(int64_t{kDepth}, end - row)));
        read = read + 1 == kStages ? 0 : read + 1;
        write = write + 1 == kStages ? 0 : write + 1;
      }
      join_unit<kBlock>(args, unit, sum);
    }
    float* dw = place.dw(args);
    each_sum(sum, [&](int i, float& value) {
      const int64_t f = place.output + first_output + i / kEach;
      const int64_t d = place.column + first_column + i % kEach;
      if (f >= args.outputs || d >= args.width) return;
      float* to = dw + f * args.width + d;
      *to = args.add ? *to + value : value;
    });
    wait_copies<0>();
    __syncthreads();  // before the next tile's copies
  }
}

}  // namespace

void dw_floats(Context& context, DwArgs args) {
  allow_shared(&dw_float_kernel, kShared);
  const int64_t tiles = dw_tiles(args, kTile, kTile);
  const int64_t blocks = std::min(tiles, state_of(context).multiprocessors() * int64_t{kResident});
  args.subtrees = scratch_of<float>(context, blocks * args.levels * kTile * kTile);
  dw_float_kernel<<<static_cast<unsigned>(blocks), kBlock, kShared, state_of(context).stream()>>>(
      args, tiles);
  state_of(context).check_launch("grouped_gemm_dw");
}

}  // namespace degu::cuda
