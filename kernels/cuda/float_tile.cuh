// Products of fp32 numbers: plain fused multiply-adds, one chain per output, no TF32. Both operands
// lie in shared memory, [inner][…], so that forward products and weight gradients share the loop.
#pragma once

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/pack.cuh"

namespace degu::cuda {
namespace {

// v = p[0 … N), N numbers that are aligned together.
template <int N>
__device__ inline void read_floats(const float* p, float (&v)[N]) {
  const auto part = *reinterpret_cast<const Words<4 * N>*>(p);
#pragma unroll
  for (int j = 0; j < N; ++j) v[j] = __uint_as_float(part.word[j]);
}

// sum[i][j] += a[k][i] * b[k][j] for k = 0, 1, … in order. `a` and `b` are this thread's first
// numbers; rows of k are a_stride and b_stride numbers apart.
template <int kEach>
__device__ inline void multiply_floats(float (&sum)[kEach][kEach], const float* a, int a_stride,
                                       const float* b, int b_stride, int count) {
#pragma unroll 8
  for (int k = 0; k < count; ++k) {
    float x[kEach], y[kEach];
    read_floats(a + k * a_stride, x);
    read_floats(b + k * b_stride, y);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
    }
  }
}

template <int kEach>
__device__ inline void clear(float (&sum)[kEach][kEach]) {
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) sum[i][j] = 0.0f;
  }
}

}  // namespace
}  // namespace degu::cuda
