#include "kernels/cuda/dw_units.cuh"
#include "kernels/cuda/table.h"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/tables/grouped_gemm.h"

namespace degu {
namespace {

using namespace degu::cuda;

// A tile of dw is 128 outputs x 128 columns, of four warps. A step is up to 64 rows of dy and x;
// their rows are the summed dimension, so both operands are transposed: by ldmatrix on the way to
// registers, or by the tensor cores.
constexpr int kTile = 128;
constexpr int kDepth = 64;
constexpr int kBlock = 128;  // threads
constexpr int kPanelColumns = 64;
constexpr int kPanelRowBytes = kPanelColumns * 2;
constexpr int kPanelBytes = kDepth * kPanelRowBytes;
constexpr int kOperandBytes = kTile / kPanelColumns * kPanelBytes;
constexpr int kStage = 2 * kOperandBytes;
constexpr int kStages = 3;
constexpr int kShared = kStages * kStage;
constexpr int kResident = 2;

// An operand lies in panels of 64 columns. Of those, piece p (16 bytes) of row r lies at
// p ^ (r % 8): the same piece of eight rows is in all banks, and it is the pattern of wgmma.cuh.
__device__ inline int dw_piece(int row, int piece) {
  constexpr int kPieces = kPanelRowBytes / 16;
  return piece / kPieces * kPanelBytes + row * kPanelRowBytes + (piece % kPieces ^ (row % 8)) * 16;
}

// Words of A for 16 outputs and 16 rows. Matrix i of a load: rows 8 (i / 2), outputs 8 (i % 2) on.
__device__ inline void load_outputs(uint32_t (&a)[4], const std::byte* dy, int k, int output) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int matrix = lane / 8;
  load_matrices_transposed(a,
                           dy + dw_piece(k + matrix / 2 * 8 + lane % 8, output / 8 + matrix % 2));
}

// Who has which part of a tile: a warp has kStrips x 16 outputs, kStripStep x 16 from one to the
// next, and kOctets x 8 columns.
#ifndef DEGU_CUDA_WARPGROUPS
struct Products {  // 2 x 2 warps of 64 x 64
  static constexpr int kStrips = 4;
  static constexpr int kStripStep = 1;
  static constexpr int kOctets = 8;
  using Sums = float[kStrips][kOctets][4];

  static __device__ int first_output(int warp) { return warp % 2 * 16 * kStrips; }
  static __device__ int first_column(int warp) { return warp / 2 * 8 * kOctets; }

  // sum += the step's rows, 16 at a time. Matrix i of a load of x: rows 8 (i % 2), columns 8 (i /
  // 2) on.
  static __device__ void multiply(Sums& sum, const std::byte* stage, int rows) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int warp = static_cast<int>(threadIdx.x / 32);
    const int matrix = lane / 8;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      if (k >= rows) break;
      uint32_t a[kStrips][4], b[kOctets / 2][4];
#pragma unroll
      for (int s = 0; s < kStrips; ++s) load_outputs(a[s], stage, k, first_output(warp) + 16 * s);
#pragma unroll
      for (int o = 0; o < kOctets / 2; ++o) {
        load_matrices_transposed(b[o], stage + kOperandBytes +
                                           dw_piece(k + matrix % 2 * 8 + lane % 8,
                                                    first_column(warp) / 8 + 2 * o + matrix / 2));
      }
#pragma unroll
      for (int s = 0; s < kStrips; ++s) {
#pragma unroll
        for (int o = 0; o < kOctets; ++o) {
          mma_bf16(sum[s][o], a[s], b[o / 2][o % 2 * 2], b[o / 2][o % 2 * 2 + 1]);
        }
      }
    }
  }
};

#else
struct Products {  // 64 outputs at a time, all columns
  static constexpr int kStrips = 2;
  static constexpr int kStripStep = 4;
  static constexpr int kOctets = 16;
  using Sums = float[kStrips][kOctets][4];

  static __device__ int first_output(int warp) { return warp * 16; }
  static __device__ int first_column(int) { return 0; }

  static __device__ void multiply(Sums& sum, const std::byte* stage, int rows) {
    const int warp = static_cast<int>(threadIdx.x / 32);
    uint32_t a[kDepth / 16][kStrips][4];
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
#pragma unroll
      for (int s = 0; s < kStrips; ++s) {
        load_outputs(a[k / 16][s], stage, k, first_output(warp) + 16 * kStripStep * s);
      }
    }
    const uint64_t x = matrix_descriptor(stage + kOperandBytes, kPanelBytes, 8 * kPanelRowBytes);
    const auto add = [&](int k) {
#pragma unroll
      for (int s = 0; s < kStrips; ++s) {
        warpgroup_mma<true>(sum[s], a[k / 16][s], moved(x, k * kPanelRowBytes));
      }
    };
    if (rows > kDepth - 16) {
      warpgroup_fence();
#pragma unroll
      for (int k = 0; k < kDepth; k += 16) add(k);
    } else {
#pragma unroll
      for (int k = 0; k < kDepth - 16; k += 16) {
        if (k >= rows) break;
        warpgroup_fence();
        add(k);
      }
    }
    warpgroup_commit();
    warpgroup_wait<0>();
  }
};

#endif

// rows [row, row + rows) and columns [column, column + kTile) of a matrix; zeros around.
__device__ inline void load_operand(const std::byte* matrix, int64_t width, bool vector,
                                    int64_t row, int rows, int64_t column, std::byte* to) {
  constexpr int kPieces = kTile / 8;
  each_item<kDepth * kPieces, kBlock>([&](int i) {
    const int r = i / kPieces;
    const int64_t at = column + i % kPieces * 8;
    const int valid =
        r < rows ? static_cast<int>(max(min((width - at) * 2, int64_t{16}), int64_t{0})) : 0;
    const std::byte* from = valid > 0 ? matrix + ((row + r) * width + at) * 2 : matrix;
    copy_piece<bf16>(to + dw_piece(r, i % kPieces), from, valid, vector);
  });
}

__device__ inline void load_rows(const DwArgs& args, const DwPlace& place,
                                 const RowSteps<kDepth>& step, std::byte* stage) {
  load_operand(args.dy, args.outputs, args.dy_vector, step.row(), step.rows(), place.output, stage);
  load_operand(args.x, args.width, args.x_vector, step.row(), step.rows(), place.column,
               stage + kOperandBytes);
}

__device__ inline void store_sums(const DwArgs& args, const DwPlace& place,
                                  const Products::Sums& sum) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  float* dw = place.dw(args);
  const int64_t output = place.output + Products::first_output(warp) + lane / 4;
  const int64_t column = place.column + Products::first_column(warp) + lane % 4 * 2;
#pragma unroll
  for (int s = 0; s < Products::kStrips; ++s) {
#pragma unroll
    for (int o = 0; o < Products::kOctets; ++o) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t f = output + 16 * Products::kStripStep * s + 8 * half;
        const int64_t d = column + 8 * o;
        if (f >= args.outputs || d >= args.width) continue;
        float* to = dw + f * args.width + d;
        const float* v = sum[s][o] + 2 * half;
        if (args.pairs) {
          Words<8> pair;
          if (args.add) pair = *reinterpret_cast<const Words<8>*>(to);
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const float value = args.add ? __uint_as_float(pair.word[j]) + v[j] : v[j];
            pair.word[j] = __float_as_uint(value);
          }
          *reinterpret_cast<Words<8>*>(to) = pair;
        } else {
          to[0] = args.add ? to[0] + v[0] : v[0];
          if (d + 1 < args.width) to[1] = args.add ? to[1] + v[1] : v[1];
        }
      }
    }
  }
}

__global__ void __launch_bounds__(kBlock, kResident) dw_kernel(DwArgs args, int64_t tiles) {
  auto* shared = reinterpret_cast<std::byte*>(dynamic_shared);
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const DwPlace place(args, index, kTile, kTile);
    Products::Sums sum;
    sum_units<kBlock, kDepth, kStages>(
        args, place.offsets(args), sum,
        [&](const RowSteps<kDepth>& step, int stage) {
          load_rows(args, place, step, shared + stage * kStage);
        },
        [&](int stage, int rows) { Products::multiply(sum, shared + stage * kStage, rows); });
    store_sums(args, place, sum);
    wait_copies<0>();
    __syncthreads();  // before the next tile's copies
  }
}

void weight_gradient(Context& context, AnyView dy, AnyView x, const UnitSegments& segments,
                     AnyView dw, Write write) {
  const int64_t outputs = dy.dim(1);
  const int64_t width = x.dim(1);
  if (outputs * width * segments.groups * segments.slots == 0) return;
  ScratchScope scope(context.scratch());
  const DwArgs args{.dy = static_cast<const std::byte*>(dy.data),
                    .x = static_cast<const std::byte*>(x.data),
                    .offsets = on_device(context, segments.offsets, segments.device_offsets),
                    .dw = static_cast<float*>(dw.data),
                    .subtrees = nullptr,
                    .outputs = outputs,
                    .width = width,
                    .groups = segments.groups,
                    .slots = segments.slots,
                    .units = segments.units,
                    .levels = waiting_levels(segments.units),
                    .dy_vector = vectored<bf16>(dy.dim(0), outputs, {dy.data}),
                    .x_vector = vectored<bf16>(x.dim(0), width, {x.data}),
                    .pairs = width % 2 == 0 && reinterpret_cast<uintptr_t>(dw.data) % 8 == 0,
                    .add = write == Write::kAdd};
  x.dtype == DType::kBF16 ? run_dw<kBlock>(context, &dw_kernel, args, kTile, kShared, kResident)
                          : dw_floats(context, args);
}

}  // namespace

template <>
const GroupedGemmDwKernels cuda::Table<GroupedGemmDwKernels>::value = {&weight_gradient};

}  // namespace degu
