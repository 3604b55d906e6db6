// Reductions over the threads that share a row, in an order fixed by their numbers, and how many
// threads that are: a function of the row's width alone.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.cuh"

namespace degu::cuda {
namespace {

// The 32 lanes' sum, the same bits on each lane: lane i + lane i^16, then i^8, … Addition commutes,
// so both partners of a step get the same.
__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value = value + __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}
// NaN loses against any number.
__device__ inline float warp_max(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

// The sum over a block of kThreads, on every thread: warps, then their sums in order. `shared`
// holds 32 numbers and may be used again at once.
template <int kThreads>
__device__ inline float block_sum(float value, float* shared) {
  constexpr int kWarps = kThreads / 32;
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = shared[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) sum = sum + shared[w];
  return sum;
}
template <int kThreads>
__device__ inline float block_max(float value, float* shared) {
  constexpr int kWarps = kThreads / 32;
  value = warp_max(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  float most = shared[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) most = fmaxf(most, shared[w]);
  return most;
}

// kRow threads hold a row in kPacks packs each: thread i has packs i, i + kRow, …
template <int kRow_, int kPacks_>
struct RowLayout {
  static constexpr int kRow = kRow_;
  static constexpr int kPacks = kPacks_;
  static constexpr int kBlock = kRow < 256 ? 256 : kRow;  // threads
  static constexpr int kRows = kBlock / kRow;             // rows that a block has in hand

  static __device__ float sum(float value, float* shared) {
    if constexpr (kRow == 32) {
      return warp_sum(value);
    } else {
      return block_sum<kRow>(value, shared);
    }
  }
};

inline constexpr int64_t kMostRowPacks = 4096;

// body(RowLayout) for rows of `packs` packs; false when they are too wide for any. A warp has up to
// four packs a lane before a block takes over: a row's sum then needs no barrier.
template <class Body>
bool with_row_layout(int64_t packs, Body&& body) {
  if (packs <= 32) {
    body(RowLayout<32, 1>{});
  } else if (packs <= 64) {
    body(RowLayout<32, 2>{});
  } else if (packs <= 128) {
    body(RowLayout<32, 4>{});
  } else if (packs <= 256) {
    body(RowLayout<256, 1>{});
  } else if (packs <= 512) {
    body(RowLayout<256, 2>{});
  } else if (packs <= 1024) {
    body(RowLayout<256, 4>{});
  } else if (packs <= kMostRowPacks) {
    body(RowLayout<1024, 4>{});
  } else {
    return false;
  }
  return true;
}

}  // namespace
}  // namespace degu::cuda
