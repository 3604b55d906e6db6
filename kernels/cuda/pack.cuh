// Packs: N neighbouring elements that one thread holds as fp32.
//
// Which elements a thread holds never depends on alignment: where 16-byte accesses are not possible
// the same elements move one by one, so a sum has the same order either way.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "tensor/dtype.h"

namespace degu::cuda {
namespace {

// Elements of T in 16 bytes.
template <class T>
inline constexpr int kPack = 16 / static_cast<int>(sizeof(T));

__device__ inline float to_float(float value) {
  return value;
}
__device__ inline float to_float(bf16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
__device__ inline void assign(float& to, float value) {
  to = value;
}
__device__ inline void assign(bf16& to, float value) {
  to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

template <int kBytes>
struct alignas(kBytes) Words {
  uint32_t word[kBytes / 4];
};

template <int N>
__device__ inline void unpack(const uint32_t* word, float (&v)[N], const float*) {
#pragma unroll
  for (int j = 0; j < N; ++j) v[j] = __uint_as_float(word[j]);
}
template <int N>
__device__ inline void unpack(const uint32_t* word, float (&v)[N], const bf16*) {
#pragma unroll
  for (int j = 0; j < N; j += 2) {
    v[j] = __uint_as_float(word[j / 2] << 16);
    v[j + 1] = __uint_as_float(word[j / 2] & 0xffff0000u);
  }
}
template <int N>
__device__ inline void repack(const float (&v)[N], uint32_t* word, const float*) {
#pragma unroll
  for (int j = 0; j < N; ++j) word[j] = __float_as_uint(v[j]);
}
template <int N>
__device__ inline void repack(const float (&v)[N], uint32_t* word, const bf16*) {
#pragma unroll
  for (int j = 0; j < N; j += 2) {
    const uint32_t low = __bfloat16_as_ushort(__float2bfloat16_rn(v[j]));
    const uint32_t high = __bfloat16_as_ushort(__float2bfloat16_rn(v[j + 1]));
    word[j / 2] = low | high << 16;
  }
}

// v = p[i … i + N) of an array of n; what lies at or past n reads as 0.
template <bool kVector, class T, int N>
__device__ inline void load(const T* p, int64_t i, int64_t n, float (&v)[N]) {
  constexpr int kBytes = N * static_cast<int>(sizeof(T));
  constexpr int kStep = kBytes < 16 ? kBytes : 16;
  if (kVector && i + N <= n) {
    uint32_t word[kBytes / 4];
    const auto* from = reinterpret_cast<const Words<kStep>*>(p + i);
#pragma unroll
    for (int s = 0; s < kBytes / kStep; ++s) {
      const Words<kStep> part = from[s];
#pragma unroll
      for (int w = 0; w < kStep / 4; ++w) word[s * (kStep / 4) + w] = part.word[w];
    }
    unpack(word, v, p);
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = i + j < n ? to_float(p[i + j]) : 0.0f;
  }
}

// p[i … i + N) = v, rounded once; nothing at or past n is touched.
template <bool kVector, class T, int N>
__device__ inline void store(T* p, int64_t i, int64_t n, const float (&v)[N]) {
  constexpr int kBytes = N * static_cast<int>(sizeof(T));
  constexpr int kStep = kBytes < 16 ? kBytes : 16;
  if (kVector && i + N <= n) {
    uint32_t word[kBytes / 4];
    repack(v, word, p);
    auto* to = reinterpret_cast<Words<kStep>*>(p + i);
#pragma unroll
    for (int s = 0; s < kBytes / kStep; ++s) {
      Words<kStep> part;
#pragma unroll
      for (int w = 0; w < kStep / 4; ++w) part.word[w] = word[s * (kStep / 4) + w];
      to[s] = part;
    }
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (i + j < n) assign(p[i + j], v[j]);
    }
  }
}

// f.template at<kVector>(i) for every pack [i, i + N) of n elements.
template <bool kVector, int N, class F>
__global__ void each_pack_kernel(int64_t n, F f) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  if (i < n) f.template at<kVector>(i);
}

}  // namespace
}  // namespace degu::cuda
