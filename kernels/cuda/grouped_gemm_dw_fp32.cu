#include "kernels/cuda/dw_units.cuh"
#include "kernels/cuda/float_tile.cuh"

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
  auto* shared = reinterpret_cast<float*>(dynamic_shared);
  const int first_output = static_cast<int>(threadIdx.x) / kAcross * kEach;
  const int first_column = static_cast<int>(threadIdx.x) % kAcross * kEach;
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const DwPlace place(args, index, kTile, kTile);
    float sum[kEach][kEach];
    sum_units<kBlock, kDepth, kStages>(
        args, place.offsets(args), sum,
        [&](const RowSteps<kDepth>& step, int stage) {
          load_rows(args, place, step, shared + stage * kStage);
        },
        [&](int stage, int rows) {
          const float* here = shared + stage * kStage;
          multiply_floats(sum, here + first_output, kTile, here + kOperand + first_column, kTile,
                          rows);
        });
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
  run_dw<kBlock>(context, &dw_float_kernel, args, kTile, kShared, kResident);
}

}  // namespace degu::cuda
