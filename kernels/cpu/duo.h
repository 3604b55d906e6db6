// Pairs of vectors, loaded and stored in whichever order is cheapest for the type. For sources
// compiled once per instruction set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cpu/simd.h"
#include "kernels/cpu/sweep.h"

namespace degu {
namespace {

// Two vectors of neighbouring elements, in the order that costs least to load: of fp32 one behind
// the other, of bf16 the even and the odd elements, which are taken apart and joined again without
// widening. For arithmetic element by element; `in_duo_order` brings a row of fp32 that belongs to
// the columns into the same order.
struct Duo {
  VecF a;
  VecF b;
};
inline constexpr int kDuo = 2 * VecF::kLanes;  // elements
inline Duo load_duo(const float* p) {
  return {load(p), load(p + VecF::kLanes)};
}
inline Duo load_duo(const bf16* p) {
  const VecPairs pairs = load_pairs(p);
  return {even_of(pairs), odd_of(pairs)};
}
inline void store_duo(float* p, Duo x) {
  store(p, x.a);
  store(p + VecF::kLanes, x.b);
}
inline void store_duo(bf16* p, Duo x) {
  store_pairs(p, narrow_pairs(x.a, x.b));
}
inline void stream_duo(float* p, Duo x) {
  stream(p, x.a);
  stream(p + VecF::kLanes, x.b);
}
inline void stream_duo(bf16* p, Duo x) {
  stream_pairs(p, narrow_pairs(x.a, x.b));
}

template <bool kStream, class T>
void put(T* p, Duo value) {
  if constexpr (kStream) {
    stream_duo(p, value);
  } else {
    store_duo(p, value);
  }
}

// Asks for the lines of the Duo at `p`, which may lie outside of any array; into the second cache,
// for the first one can wait for fewer lines at a time.
template <class T>
void prefetch_duo(const T* p) {
  constexpr int64_t kBytes = kDuo * static_cast<int64_t>(sizeof(T));
  for (int64_t b = 0; b < kBytes; b += 64) {
    __builtin_prefetch(reinterpret_cast<const char*>(p) + b, 0, 2);
  }
}

// full(i) for each Duo of [begin, end), then part(i, count) for what is left, a vector at a time.
template <class Full, class Part>
void each_duo(int64_t begin, int64_t end, Full&& full, Part&& part) {
  int64_t i = begin;
  for (; i + kDuo <= end; i += kDuo) full(i);
  for (; i < end; i += VecF::kLanes) {
    part(i, static_cast<int>(std::min<int64_t>(VecF::kLanes, end - i)));
  }
}

// Copies a row of fp32 into the order in which each_duo over [0, width) meets it beside a row of T,
// and back.
template <class T>
void in_duo_order(const float* row, int64_t width, float* out) {
  std::copy_n(row, width, out);
  if constexpr (std::is_same_v<T, bf16>) {
    for (int64_t i = 0; i + kDuo <= width; i += kDuo) {
      for (int64_t j = 0; j < VecF::kLanes; ++j) {
        out[i + j] = row[i + 2 * j];
        out[i + VecF::kLanes + j] = row[i + 2 * j + 1];
      }
    }
  }
}
template <class T>
void from_duo_order(float* row, int64_t width) {
  if constexpr (std::is_same_v<T, bf16>) {
    for (int64_t i = 0; i + kDuo <= width; i += kDuo) {
      float copy[kDuo];
      std::copy_n(row + i, kDuo, copy);
      for (int64_t j = 0; j < VecF::kLanes; ++j) {
        row[i + 2 * j] = copy[j];
        row[i + 2 * j + 1] = copy[VecF::kLanes + j];
      }
    }
  }
}

}  // namespace
}  // namespace degu
