// The tensor-core product of rows grouped by expert; contract in kernels/api/grouped_gemm.h.
//
// A block computes tiles of kOutputs x kRows numbers: weights and rows of x come in steps of 128
// bytes along the inner dimension, several under way at once, and each warp keeps the sums of its
// part in registers all the while. An output is one chain of products along the inner dimension;
// neither the tile's shape nor the row's place in it takes part.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/gemm_operand.cuh"
#include "kernels/cuda/stage_copy.cuh"
#include "kernels/cuda/tile_walk.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace degu::cuda {
namespace {

// kWarpsDown x kWarpsAcross warps, of kStrips x 16 outputs and kOctets x 8 rows each; kResident
// blocks share a multiprocessor.
template <int kStrips_, int kOctets_, int kWarpsDown_, int kWarpsAcross_, int kResident_>
struct GemmTile {
  static constexpr bool kWarpgroup = false;
  static constexpr int kStripStep = 1;  // from a warp's strip to its next
  static constexpr int kStrips = kStrips_;
  static constexpr int kOctets = kOctets_;
  static constexpr int kWarpsDown = kWarpsDown_;
  static constexpr int kResident = kResident_;
  static constexpr int kThreads = 32 * kWarpsDown * kWarpsAcross_;
  static constexpr int kTileStrips = kStrips * kWarpsDown;
  static constexpr int kOutputs = kStripOutputs * kTileStrips;
  static constexpr int kRows = 8 * kOctets * kWarpsAcross_;
};

// A warpgroup of kStrips x 64 outputs and kOctets x 8 rows: each warp has one strip of every 64
// outputs.
template <int kStrips_, int kOctets_, int kResident_>
struct WarpgroupTile : GemmTile<kStrips_, kOctets_, 4, 1, kResident_> {
  static constexpr bool kWarpgroup = true;
  static constexpr int kStripStep = 4;
};

// bf16 weights on Hopper. 128 registers of sums beside 32 of weights; while one of the two blocks
// waits for its products and fetches the next step, the tensor cores have the other's.
using ManyRowsTogether = WarpgroupTile<2, 16, 2>;
using SomeRowsTogether = WarpgroupTile<2, 4, 2>;
using FewRowsTogether = WarpgroupTile<1, 1, 3>;

// 64 x 64 numbers a warp: 128 registers of sums, beside 32 of x; per 32 products of 16 x 8 x 16 it
// reads 4 KiB of shared memory, which two blocks of four warps do in less time than the tensor
// cores take.
using ManyRows = GemmTile<4, 8, 2, 2, 2>;
// Codes and scales take registers of their own, and a product of codes takes more time outside the
// tensor cores and less to read: half as wide, without spills.
using ManyCodedRows = GemmTile<4, 4, 2, 2, 2>;
using SomeRows = GemmTile<2, 4, 4, 1, 2>;
// Up to 8 rows: time is that of reading the weights. 64 outputs make enough blocks when a few
// experts are active.
using FewRows = GemmTile<1, 1, 4, 1, 3>;

// A step in shared memory: chunks of the tile's strips, rows of x, scales [4][kRows].
template <class Format, class Tile>
struct GemmStage {
  static constexpr int kChunk = Chunk<Format>::kBytes;
  static constexpr int kXAt = Tile::kTileStrips * kChunk;
  static constexpr int kScalesAt = kXAt + Tile::kRows * kStepBytes;
  static constexpr int kScaleGroups = Chunk<Format>::kInteger ? Chunk<Format>::kGroups : 0;
  static constexpr int kBytes = kScalesAt + kScaleGroups * Tile::kRows * 4;
  // As many as fit beside the other blocks in Hopper's 227 KiB, and no more than help.
  static constexpr int kBudget = (227 / Tile::kResident - 1) * 1024;
  static constexpr int kStages = std::clamp(kBudget / kBytes, 3, 10);
  // The finished tile passes through the same memory; rows are 4 words apart in the banks.
  static constexpr int kOutStride = Tile::kOutputs + 4;
  static constexpr int kShared =
      std::max(kStages * kBytes, Tile::kRows* kOutStride* static_cast<int>(sizeof(float)));
};

// Starts the copies of a tile's steps, one after the other. Each warp copies whole chunks; eight
// threads share a row of x, four its scales. A thread's sources are a few pointers that move on
// with the steps, and distances that are the same for all.
template <class Format, class Tile>
class StepLoader {
 public:
  __device__ StepLoader(const GemmArgs& args, const TilePlace& place) : args_(args) {
    const int thread = static_cast<int>(threadIdx.x);
    const auto strips = static_cast<int>(Layout::strips(args.outputs));
    const int strip = place.column_tile * Tile::kTileStrips + thread / 32;
    strip_bytes_ = Layout::chunks(args.inner) * Layout::kBytes;
    w_ = args.w + (static_cast<int64_t>(place.group) * strips + strip) * strip_bytes_ +
         thread % 32 * 16;
    strips_left_ = strips - strip;
    x_ = args.x + (place.row + thread / 8) * args.x_row_bytes + thread % 8 * 16;
    x_left_ = static_cast<int>(args.x_row_bytes) - thread % 8 * 16;
    rows_left_ = place.rows - thread / 8;
    if constexpr (Stage::kScaleGroups > 0) {
      scales_ = args.x_scales + (place.row + thread / 4) * args.scale_groups + thread % 4;
      groups_left_ = args.scale_groups - thread % 4;
      scale_rows_left_ = place.rows - thread / 4;
    }
  }

  __device__ void load(std::byte* stage) {
    const int thread = static_cast<int>(threadIdx.x);
    load_chunks(stage + thread / 32 * Layout::kBytes + thread % 32 * 16);
    const int left = max(min(x_left_, 16), 0);
    constexpr int kRowsAtOnce = Tile::kThreads / 8;
    std::byte* to = stage + Stage::kXAt + x_piece(thread / 8, thread % 8);
#pragma unroll
    for (int row = 0; row < Tile::kRows; row += kRowsAtOnce) {
      if (Tile::kRows < kRowsAtOnce && thread / 8 >= Tile::kRows) break;
      const int bytes = row < rows_left_ ? left : 0;
      const std::byte* from = bytes > 0 ? x_ + row * args_.x_row_bytes : args_.x;
      copy_piece<typename Format::Activation>(to + row * kStepBytes, from, bytes, args_.x_vector);
    }
    x_ += kStepBytes;
    x_left_ -= kStepBytes;
    if constexpr (Stage::kScaleGroups > 0) load_scales(stage);
  }

 private:
  using Stage = GemmStage<Format, Tile>;
  using Layout = Chunk<Format>;
  static constexpr int kWarps = Tile::kThreads / 32;
  static_assert(Tile::kTileStrips % kWarps == 0);

  __device__ void load_chunks(std::byte* to) {
    constexpr int kPieces = Layout::kBytes / 16;
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int strip = 0; strip < Tile::kTileStrips; strip += kWarps) {
      const bool exists = strip < strips_left_;
      const std::byte* from = exists ? w_ + strip * strip_bytes_ : args_.w;
#pragma unroll
      for (int piece = 0; piece < kPieces; piece += 32) {
        if (piece + 32 > kPieces && lane >= kPieces - piece) break;
        copy_async_16(to + strip * Layout::kBytes + piece * 16, from + piece * 16, exists ? 16 : 0);
      }
    }
    w_ += Layout::kBytes;
  }

  __device__ void load_scales(std::byte* stage) {
    const int thread = static_cast<int>(threadIdx.x);
    auto* to =
        reinterpret_cast<float*>(stage + Stage::kScalesAt) + thread % 4 * Tile::kRows + thread / 4;
    constexpr int kRowsAtOnce = Tile::kThreads / 4;
#pragma unroll
    for (int row = 0; row < Tile::kRows; row += kRowsAtOnce) {
      if (Tile::kRows < kRowsAtOnce && thread / 4 >= Tile::kRows) break;
      const bool exists = row < scale_rows_left_ && groups_left_ > 0;
      const float* from =
          exists ? scales_ + static_cast<int64_t>(row) * args_.scale_groups : args_.x_scales;
      copy_async_4(to + row, from, exists ? 4 : 0);
    }
    scales_ += 4;
    groups_left_ -= 4;
  }

  const GemmArgs& args_;
  const std::byte* w_;
  int64_t strip_bytes_;
  int strips_left_;  // from the warp's first one on
  const std::byte* x_;
  int x_left_;     // bytes of the row from here on
  int rows_left_;  // from the thread's first one on
  const float* scales_ = nullptr;
  int groups_left_ = 0;
  int scale_rows_left_ = 0;
};

// The warp's part of a tile.
template <class Tile>
struct WarpPlace {
  __device__ WarpPlace() {}
  int lane = static_cast<int>(threadIdx.x % 32);
  int strip = static_cast<int>(threadIdx.x / 32) % Tile::kWarpsDown *
              (Tile::kWarpgroup ? 1 : Tile::kStrips);
  int row = static_cast<int>(threadIdx.x / 32) / Tile::kWarpsDown * Tile::kOctets * 8;
};

// sum += a step, by the whole warpgroup; under way when this returns. `a` is where its weights stay
// meanwhile.
template <class Format, class Tile>
__device__ inline void start_step(float (&sum)[Tile::kStrips][Tile::kOctets][4],
                                  Cell (&a)[Tile::kStrips][4], const std::byte* stage,
                                  const WarpPlace<Tile>& warp) {
  using Stage = GemmStage<Format, Tile>;
#pragma unroll
  for (int s = 0; s < Tile::kStrips; ++s) {
#pragma unroll
    for (int product = 0; product < 4; ++product) {
      a[s][product] = read_cell(stage + (warp.strip + Tile::kStripStep * s) * Stage::kChunk,
                                product, warp.lane);
    }
  }
  const uint64_t x = matrix_descriptor(stage + Stage::kXAt, 0, 8 * kStepBytes);
  warpgroup_fence();
#pragma unroll
  for (int product = 0; product < 4; ++product) {
#pragma unroll
    for (int s = 0; s < Tile::kStrips; ++s) {
      warpgroup_mma<false>(sum[s], a[s][product].word, moved(x, 32 * product));
    }
  }
  warpgroup_commit();
}

// sum = the warp's part of a tile. Ends with all copies done and all warps past the barrier.
template <class Format, class Tile>
__device__ inline void multiply_tile(const GemmArgs& args, const TilePlace& place,
                                     const WarpPlace<Tile>& warp, std::byte* shared,
                                     float (&sum)[Tile::kStrips][Tile::kOctets][4]) {
  using Stage = GemmStage<Format, Tile>;
#pragma unroll
  for (int s = 0; s < Tile::kStrips; ++s) {
#pragma unroll
    for (int o = 0; o < Tile::kOctets; ++o) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[s][o][i] = 0.0f;
    }
  }
  const int steps = static_cast<int>(Chunk<Format>::chunks(args.inner));
  StepLoader<Format, Tile> loader(args, place);
#pragma unroll 1
  for (int s = 0; s < Stage::kStages - 1; ++s) {
    if (s < steps) loader.load(shared + s * Stage::kBytes);
    commit_copies();
  }
  [[maybe_unused]] const bool busy = warp.row < place.rows;
  int read = 0;
  int write = Stage::kStages - 1;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    wait_copies<Stage::kStages - 2>();
    if constexpr (Tile::kWarpgroup) fence_copies();
    __syncthreads();  // step is there for all, and nobody reads the stage that is written next
    const std::byte* stage = shared + read * Stage::kBytes;
    [[maybe_unused]] Cell a[Tile::kStrips][4];
    if constexpr (Tile::kWarpgroup) start_step<Format, Tile>(sum, a, stage, warp);
    if (step + Stage::kStages - 1 < steps) loader.load(shared + write * Stage::kBytes);
    commit_copies();
    if constexpr (Tile::kWarpgroup) {
      warpgroup_wait<0>();
    } else if (busy) {
      multiply_step<Format, Tile::kRows>(
          sum, stage + warp.strip * Stage::kChunk, stage + Stage::kXAt + warp.row * kStepBytes,
          reinterpret_cast<const float*>(stage + Stage::kScalesAt) + warp.row, warp.lane);
    }
    read = read + 1 == Stage::kStages ? 0 : read + 1;
    write = write + 1 == Stage::kStages ? 0 : write + 1;
  }
  wait_copies<0>();
  __syncthreads();
}

// y = tile (+ add), rounded once, in packs of eight outputs.
template <class Tile, bool kVector, class T>
__device__ inline void store_tile(const GemmArgs& args, const TilePlace& place, const float* tile,
                                  int stride) {
  constexpr int N = 8;
  constexpr int kPacks = Tile::kOutputs / N;
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kRows * kPacks; i += Tile::kThreads) {
    const int row = i / kPacks;
    const int output = place.column_tile * Tile::kOutputs + i % kPacks * N;
    if (row >= place.rows || output >= args.outputs) continue;
    float v[N];
    load<true>(tile + row * stride, i % kPacks * N, Tile::kOutputs, v);
    const int64_t at = (place.row + row) * args.outputs;
    if (args.add != nullptr) {
      float add[N];
      load<kVector>(static_cast<const T*>(args.add) + at, output, args.outputs, add);
#pragma unroll
      for (int j = 0; j < N; ++j) v[j] = v[j] + add[j];
    }
    store<kVector>(static_cast<T*>(args.y) + at, output, args.outputs, v);
  }
}

template <class Format, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident) gemm_kernel(GemmArgs args) {
  using Stage = GemmStage<Format, Tile>;
  auto* shared = reinterpret_cast<std::byte*>(dynamic_shared);
  auto* out = reinterpret_cast<float*>(dynamic_shared);
  const WarpPlace<Tile> warp;
  const int column_tiles = (args.outputs + Tile::kOutputs - 1) / Tile::kOutputs;
  TileWalk<Tile::kRows> walk(args.offsets, args.groups, column_tiles);
  TilePlace place;
  for (auto index = static_cast<int>(blockIdx.x); walk.find(index, place);
       index += static_cast<int>(gridDim.x)) {
    float sum[Tile::kStrips][Tile::kOctets][4];
    multiply_tile<Format, Tile>(args, place, warp, shared, sum);
    const int output = warp.strip * kStripOutputs + warp.lane / 4;
    const int row = warp.row + warp.lane % 4 * 2;
#pragma unroll
    for (int s = 0; s < Tile::kStrips; ++s) {
#pragma unroll
      for (int o = 0; o < Tile::kOctets; ++o) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          out[(row + 8 * o + i % 2) * Stage::kOutStride + output +
              kStripOutputs * Tile::kStripStep * s + i / 2 * 8] = sum[s][o][i];
        }
      }
    }
    __syncthreads();
    if (args.narrow) {
      args.y_vector ? store_tile<Tile, true, bf16>(args, place, out, Stage::kOutStride)
                    : store_tile<Tile, false, bf16>(args, place, out, Stage::kOutStride);
    } else {
      args.y_vector ? store_tile<Tile, true, float>(args, place, out, Stage::kOutStride)
                    : store_tile<Tile, false, float>(args, place, out, Stage::kOutStride);
    }
    __syncthreads();  // before the next tile's copies
  }
}

template <class Format, class Tile>
void launch_gemm(Context& context, const GemmArgs& args, int64_t rows, int64_t filled) {
  using Stage = GemmStage<Format, Tile>;
  static_assert(Stage::kShared <= 227 * 1024);
  const int64_t columns = (args.outputs + Tile::kOutputs - 1) / Tile::kOutputs;
  const int64_t tiles = (rows / Tile::kRows + filled) * columns;
  check_tiles(tiles);
  const int64_t resident = state_of(context).multiprocessors() * int64_t{Tile::kResident};
  launch_kernel(context, "grouped_gemm",
                {static_cast<unsigned>(std::min(tiles, resident)), Tile::kThreads, Stage::kShared},
                &gemm_kernel<Format, Tile>, args);
}

}  // namespace

template <class Format>
void run_gemm(Context& context, const GemmArgs& args, int64_t rows, int64_t filled) {
  // All tiles of a format take the same kind of product, for a row has the same bits in each.
  constexpr bool kNumbers = Chunk<Format>::kCodes == Codes::kNone;
  constexpr bool kTogether = kNumbers && kHasWarpgroups;
  using Few = std::conditional_t<kTogether, FewRowsTogether, FewRows>;
  using Some = std::conditional_t<kTogether, SomeRowsTogether, SomeRows>;
  using Many = std::conditional_t<kTogether, ManyRowsTogether,
                                  std::conditional_t<kNumbers, ManyRows, ManyCodedRows>>;
  if (rows <= filled * Few::kRows) {
    launch_gemm<Format, Few>(context, args, rows, filled);
  } else if (rows <= filled * 2 * Some::kRows) {
    launch_gemm<Format, Some>(context, args, rows, filled);
  } else {
    launch_gemm<Format, Many>(context, args, rows, filled);
  }
}

}  // namespace degu::cuda
