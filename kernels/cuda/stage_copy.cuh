// Pieces of rows on their way to shared memory.
#pragma once

#include <cstring>

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/pack.cuh"

namespace degu::cuda {
namespace {

// f(i) for i < kItems, shared among the kBlock threads of a block.
template <int kItems, int kBlock, class F>
__device__ inline void each_item(F&& f) {
#pragma unroll
  for (int first = 0; first < kItems; first += kBlock) {
    const int i = first + static_cast<int>(threadIdx.x);
    if (first + kBlock <= kItems || i < kItems) f(i);
  }
}

// 16 bytes of a row of T of which the first `valid` exist (0 … 16, whole elements); the rest
// becomes zero. Asynchronous where the row's address is right for it (`vector`), else element by
// element and at once.
template <class T>
__device__ inline void copy_piece(std::byte* shared, const std::byte* from, int valid,
                                  bool vector) {
  if (vector) {
    copy_async_16(shared, from, valid);
    return;
  }
  constexpr int kEach = static_cast<int>(sizeof(T));
  T element[16 / kEach];
#pragma unroll
  for (int i = 0; i < 16 / kEach; ++i) {
    element[i] = i * kEach < valid ? reinterpret_cast<const T*>(from)[i] : T{};
  }
  Words<16> piece;
  memcpy(&piece, element, sizeof piece);
  *reinterpret_cast<Words<16>*>(shared) = piece;
}

}  // namespace
}  // namespace degu::cuda
