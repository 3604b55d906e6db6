#include <algorithm>

#include "kernels/cuda/float_tile.cuh"
#include "kernels/cuda/stage_copy.cuh"
#include "kernels/cuda/tile_walk.cuh"
#include "kernels/cuda/weight_layout.cuh"

namespace degu::cuda {
namespace {

// A thread has kEach x kEach numbers of a tile of kOutputs x kRows.
template <int kOutputs_, int kRows_, int kEach_>
struct FloatGemmTile {
  static constexpr int kOutputs = kOutputs_;
  static constexpr int kRows = kRows_;
  static constexpr int kEach = kEach_;
  static constexpr int kAcross = kOutputs / kEach;
  static constexpr int kBlock = kAcross * (kRows / kEach);  // threads
  static constexpr int kPanels = kOutputs / kFloatPanel;
  static constexpr int kPanelFloats = kFloatStep * kFloatPanel;  // of a step
  // Rows of x come along the inner dimension and are laid across it, 4 bytes at a time.
  static constexpr int kXStride = kRows + 4;
  static constexpr int kXAt = kPanels * kPanelFloats;
  static constexpr int kStage = kXAt + kFloatStep * kXStride;
  static constexpr int kStages = 3;
};

using ManyFloatRows = FloatGemmTile<64, 64, 4>;
using FewFloatRows = FloatGemmTile<32, 8, 1>;

template <class Tile>
__device__ inline void load_float_step(const GemmArgs& args, const TilePlace& place, int step,
                                       float* stage) {
  const int64_t depth = (args.inner + kFloatStep - 1) / kFloatStep * int64_t{kFloatStep};
  const int panels = (args.outputs + kFloatPanel - 1) / kFloatPanel;
  const auto* w = reinterpret_cast<const float*>(args.w);
  constexpr int kPieces = Tile::kPanelFloats / 4;
  each_item<Tile::kPanels * kPieces, Tile::kBlock>([&](int i) {
    const int panel = place.column_tile * Tile::kPanels + i / kPieces;
    const bool exists = panel < panels;
    const int64_t at =
        exists
            ? ((static_cast<int64_t>(place.group) * panels + panel) * depth + step * kFloatStep) *
                      kFloatPanel +
                  i % kPieces * 4
            : 0;
    copy_async_16(stage + i * 4, w + at, exists ? 16 : 0);
  });
  const auto* x = reinterpret_cast<const float*>(args.x);
  each_item<Tile::kRows * kFloatStep, Tile::kBlock>([&](int i) {
    const int row = i / kFloatStep;
    const int k = i % kFloatStep;
    const bool exists = row < place.rows && step * kFloatStep + k < args.inner;
    const float* from = x + (exists ? (place.row + row) * args.inner + step * kFloatStep + k : 0);
    copy_async_4(stage + Tile::kXAt + k * Tile::kXStride + row, from, exists ? 4 : 0);
  });
}

template <class Tile>
__device__ inline void store_floats(const GemmArgs& args, const TilePlace& place, int first_output,
                                    int first_row, float (&sum)[Tile::kEach][Tile::kEach]) {
#pragma unroll
  for (int j = 0; j < Tile::kEach; ++j) {
#pragma unroll
    for (int i = 0; i < Tile::kEach; ++i) {
      const int output = place.column_tile * Tile::kOutputs + first_output + i;
      if (first_row + j >= place.rows || output >= args.outputs) continue;
      const int64_t at = (place.row + first_row + j) * args.outputs + output;
      if (args.narrow) {
        auto* y = static_cast<bf16*>(args.y);
        const auto* add = static_cast<const bf16*>(args.add);
        assign(y[at], add == nullptr ? sum[i][j] : sum[i][j] + to_float(add[at]));
      } else {
        auto* y = static_cast<float*>(args.y);
        const auto* add = static_cast<const float*>(args.add);
        y[at] = add == nullptr ? sum[i][j] : sum[i][j] + add[at];
      }
    }
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kBlock) float_gemm_kernel(GemmArgs args) {
  auto* shared = reinterpret_cast<float*>(dynamic_shared);
  const int output = static_cast<int>(threadIdx.x) % Tile::kAcross * Tile::kEach;
  const int row = static_cast<int>(threadIdx.x) / Tile::kAcross * Tile::kEach;
  const int w_at = output / kFloatPanel * Tile::kPanelFloats + output % kFloatPanel;
  const int steps = (args.inner + kFloatStep - 1) / kFloatStep;
  TileWalk<Tile::kRows> walk(args.offsets, args.groups,
                             (args.outputs + Tile::kOutputs - 1) / Tile::kOutputs);
  TilePlace place;
  for (auto index = static_cast<int>(blockIdx.x); walk.find(index, place);
       index += static_cast<int>(gridDim.x)) {
    float sum[Tile::kEach][Tile::kEach];
    clear(sum);
    for (int s = 0; s < Tile::kStages - 1; ++s) {
      if (s < steps) load_float_step<Tile>(args, place, s, shared + s * Tile::kStage);
      commit_copies();
    }
    for (int step = 0; step < steps; ++step) {
      wait_copies<Tile::kStages - 2>();
      __syncthreads();  // step is there for all, and nobody reads the stage that is written next
      const int ahead = step + Tile::kStages - 1;
      if (ahead < steps) {
        load_float_step<Tile>(args, place, ahead, shared + ahead % Tile::kStages * Tile::kStage);
      }
      commit_copies();
      const float* stage = shared + step % Tile::kStages * Tile::kStage;
      multiply_floats(sum, stage + w_at, kFloatPanel, stage + Tile::kXAt + row, Tile::kXStride,
                      min(kFloatStep, args.inner - step * kFloatStep));
    }
    store_floats<Tile>(args, place, output, row, sum);
    wait_copies<0>();
    __syncthreads();  // before the next tile's copies
  }
}

template <class Tile>
void launch_floats(Context& context, const GemmArgs& args, int64_t rows, int64_t filled) {
  constexpr int kShared = Tile::kStages * Tile::kStage * static_cast<int>(sizeof(float));
  constexpr int64_t kResident = 4;
  const int64_t columns = (args.outputs + Tile::kOutputs - 1) / Tile::kOutputs;
  const int64_t tiles = (rows / Tile::kRows + filled) * columns;
  check_tiles(tiles);
  const int64_t resident = state_of(context).multiprocessors() * kResident;
  launch_kernel(context, "grouped_gemm",
                {static_cast<unsigned>(std::min(tiles, resident)), Tile::kBlock, kShared},
                &float_gemm_kernel<Tile>, args);
}

}  // namespace

template <>
void run_gemm<Fp32Format>(Context& context, const GemmArgs& args, int64_t rows, int64_t filled) {
  if (rows <= filled * 2 * FewFloatRows::kRows) {
    launch_floats<FewFloatRows>(context, args, rows, filled);
  } else {
    launch_floats<ManyFloatRows>(context, args, rows, filled);
  }
}

}  // namespace degu::cuda
