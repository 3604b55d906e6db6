// Small matrix products that attention's forward and backward share. Compiled once
// per instruction set, in an unnamed namespace like kernels/cpu/simd.h.
//
// All products have one form, c[m][n] += sum over steps k of a[m][k] * b[k][n], where a step is one
// word (kernels/cpu/attention.h): a is row-major and its words are broadcast, b has a word per
// lane. Each element of c is one chain of accumulations over k from 0, whatever the tile it falls
// in.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_rearrange.h"
#include "kernels/cpu/exp2.h"
#include "kernels/cpu/simd.h"

namespace degu {
namespace {

inline constexpr int64_t kLanes = VecF::kLanes;
inline constexpr int64_t kBlock = kKvPageKeys;
// Queries and keys are handled in runs of 16 within a block: on the diagonal, runs above it are
// skipped.
inline constexpr int64_t kRun = 16;
inline constexpr int64_t kRunVectors = kRun / kLanes;
// A tile of 4 x 4 vectors keeps 16 accumulators busy: more than the 4 to 6 cycles that one
// accumulation takes, with 8 loads for 16 products. Sets with 16 registers hold 4 x 2.
inline constexpr int kTileRows = 4;
inline constexpr int kTileVectors = kLanes == 16 ? 4 : 2;
inline constexpr float kLowest =
    -1e30f;  // a masked score: finite, so that no infinity meets another

template <class T>
inline constexpr int64_t kPack = static_cast<int64_t>(sizeof(float) / sizeof(T));

inline VecF load_words(const float* p) {
  return load(p);
}
inline VecPairs load_words(const bf16* p) {
  return load_pairs(p);
}
inline VecF broadcast_of(const float* p) {
  return broadcast(*p);
}
inline VecPairs broadcast_of(const bf16* p) {
  return broadcast_pair(p);
}
inline VecF accumulate(VecF acc, VecF a, VecF b) {
  return fma(a, b, acc);
}
inline VecF accumulate(VecF acc, VecPairs a, VecPairs b) {
  return dot_bf16(acc, a, b);
}

enum class Start {
  kZero,    // c = product
  kAdd,     // c = c + product, continuing each chain
  kScaled,  // c = factor[m] * c + product, continuing each chain
};

// Strides and steps in words, pointers in elements.
template <class T>
struct Operand {
  const T* data;
  int64_t stride;
};

struct Sums {
  float* data;
  int64_t stride;
  const float* factor = nullptr;  // per row, for Start::kScaled
};

template <class T, Start start, int M, int N>
inline void tile(Operand<T> a, Operand<T> b, int64_t steps, Sums c) {
  VecF acc[M][N];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      if constexpr (start == Start::kZero) {
        acc[m][n] = zero();
      } else {
        acc[m][n] = load(c.data + m * c.stride + n * kLanes);
        if constexpr (start == Start::kScaled) acc[m][n] = acc[m][n] * broadcast(c.factor[m]);
      }
    }
  }
  const T* ak = a.data;
  const T* bk = b.data;
  for (int64_t k = 0; k < steps; ++k) {
    decltype(load_words(bk)) bn[N];
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) bn[n] = load_words(bk + n * kLanes * kPack<T>);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const auto am = broadcast_of(ak + m * a.stride * kPack<T>);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) acc[m][n] = accumulate(acc[m][n], am, bn[n]);
    }
    ak += kPack<T>;
    bk += b.stride * kPack<T>;
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) store(c.data + m * c.stride + n * kLanes, acc[m][n]);
  }
}

template <class T, Start start, int N>
void column_of_tiles(Operand<T> a, Operand<T> b, int64_t rows, int64_t steps, Sums c) {
  // Narrow tiles take more rows, to keep as many accumulators busy.
  constexpr int kTall = 2 * N <= kTileVectors ? 2 * kTileRows : kTileRows;
  auto advance = [&](int64_t count) {
    a.data += count * a.stride * kPack<T>;
    c.data += count * c.stride;
    if constexpr (start == Start::kScaled) c.factor += count;
    rows -= count;
  };
  while (rows >= kTall) {
    tile<T, start, kTall, N>(a, b, steps, c);
    advance(kTall);
  }
  if constexpr (kTall > 4) {
    if (rows >= 4) {
      tile<T, start, 4, N>(a, b, steps, c);
      advance(4);
    }
  }
  if (rows >= 2) {
    tile<T, start, 2, N>(a, b, steps, c);
    advance(2);
  }
  if (rows == 1) tile<T, start, 1, N>(a, b, steps, c);
}

// rows x (columns) x steps; columns is a multiple of kLanes.
template <class T, Start start>
void product(Operand<T> a, Operand<T> b, int64_t rows, int64_t columns, int64_t steps, Sums c) {
  int64_t n = 0;
  auto at = [&](int64_t offset) { return Operand<T>{b.data + offset * kPack<T>, b.stride}; };
  for (; n + kTileVectors * kLanes <= columns; n += kTileVectors * kLanes) {
    column_of_tiles<T, start, kTileVectors>(a, at(n), rows, steps,
                                            {c.data + n, c.stride, c.factor});
  }
  if constexpr (kTileVectors == 4) {
    if (n + 2 * kLanes <= columns) {
      column_of_tiles<T, start, 2>(a, at(n), rows, steps, {c.data + n, c.stride, c.factor});
      n += 2 * kLanes;
    }
  }
  if (n < columns) {
    column_of_tiles<T, start, 1>(a, at(n), rows, steps, {c.data + n, c.stride, c.factor});
  }
}

// result[r] = op over the lanes of rows[r], for 16 vectors at once; every row's lanes meet in the
// same order.
#if defined(__AVX512F__)
template <class Op>
void reduce_lanes(const VecF (&rows)[kRun], Op op, float* result) {
  __m512 quads[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const auto halves = [&](int r) {
      const __m512 a = rows[r].v;
      const __m512 b = rows[r + 1].v;
      return op(VecF{_mm512_unpacklo_ps(a, b)}, VecF{_mm512_unpackhi_ps(a, b)}).v;
    };
    const __m512d ab = _mm512_castps_pd(halves(4 * i));
    const __m512d cd = _mm512_castps_pd(halves(4 * i + 2));
    quads[i] = op(VecF{_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd))},
                  VecF{_mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd))})
                   .v;
  }
  const auto across = [&](__m512 a, __m512 b) {
    return op(VecF{_mm512_shuffle_f32x4(a, b, 0x88)}, VecF{_mm512_shuffle_f32x4(a, b, 0xdd)}).v;
  };
  store(result, VecF{across(across(quads[0], quads[1]), across(quads[2], quads[3]))});
}
#else
template <class Op>
void reduce_lanes(const VecF (&rows)[kRun], Op op, float* result) {
  for (int64_t r = 0; r < kRun; ++r) {
    alignas(64) float lane[2 * kLanes] = {};
    store(lane, rows[r]);
    for (int64_t half = kLanes / 2; half > 0; half /= 2)
      store(lane, op(load(lane), load(lane + half)));
    result[r] = lane[0];
  }
}
#endif

// One key/value head of the page that holds a block of a sequence.
template <class T>
T* page_of(const KvView& kv, const PageLayout& layout, int64_t sequence, int64_t block,
           int64_t kv_head) {
  const int64_t page = kv.table[static_cast<size_t>(sequence * kv.max_pages + block)];
  return static_cast<T*>(kv.pages) + (page * kv.kv_heads + kv_head) * layout.head_elements();
}

}  // namespace
}  // namespace degu
