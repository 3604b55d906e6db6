// The 32-bit words that matrix kernels multiply: one fp32 number, or a pair of bf16 numbers that
// are neighbours along the summed dimension. Packing turns rows or columns of a matrix into lanes
// of words.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/cpu/simd.h"

namespace degu {
namespace {

#if defined(__AVX512F__)

inline VecPairs concat(Half low, Half high) {
  return {_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)};
}

// 16 x 16 words: neighbours of 1, of 2, then the 128-bit quarters change places.
inline void transpose(VecPairs (&row)[16]) {
  __m512i a[16];
  __m512i b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(row[i].v, row[i + 1].v);
    a[i + 1] = _mm512_unpackhi_epi32(row[i].v, row[i + 1].v);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // b[4 j + i], quarter q: column 4 q + i of rows 4 j .. 4 j + 3
    const __m512i x0 = _mm512_shuffle_i32x4(b[i], b[4 + i], 0x88);
    const __m512i x1 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0x88);
    const __m512i x2 = _mm512_shuffle_i32x4(b[i], b[4 + i], 0xdd);
    const __m512i x3 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0xdd);
    row[i].v = _mm512_shuffle_i32x4(x0, x1, 0x88);
    row[4 + i].v = _mm512_shuffle_i32x4(x2, x3, 0x88);
    row[8 + i].v = _mm512_shuffle_i32x4(x0, x1, 0xdd);
    row[12 + i].v = _mm512_shuffle_i32x4(x2, x3, 0xdd);
  }
}

#elif defined(__AVX2__)

inline VecPairs concat(Half low, Half high) {
  return {_mm256_set_m128i(high, low)};
}

inline void transpose(VecPairs (&row)[8]) {
  __m256i a[8];
  __m256i b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_epi32(row[i].v, row[i + 1].v);
    a[i + 1] = _mm256_unpackhi_epi32(row[i].v, row[i + 1].v);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    row[i].v = _mm256_permute2x128_si256(b[i], b[4 + i], 0x20);
    row[4 + i].v = _mm256_permute2x128_si256(b[i], b[4 + i], 0x31);
  }
}

#else

inline VecPairs concat(Half low, Half high) {
  VecPairs joined;
  std::memcpy(&joined.v, &low, sizeof low);
  std::memcpy(reinterpret_cast<char*>(&joined.v) + sizeof low, &high, sizeof high);
  return joined;
}

inline void transpose(VecPairs (&row)[4]) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < i; ++j) {
      const uint32_t word = row[i].v[j];
      row[i].v[j] = row[j].v[i];
      row[j].v[i] = word;
    }
  }
}

#endif

inline constexpr int kPanelVectors = 2;
inline constexpr int kPanel = kPanelVectors * VecF::kLanes;

// Sums stay in registers: rows x 2 vectors, beside 2 of the weight and 1 broadcast of x. With 32
// registers (AVX-512) 12 rows use 27 of them. One fused step starts per cycle and its result takes
// 4 (fp32) to 6 (vdpbf16ps on Zen 4) cycles, so 6 chains (3 rows) hide the latency; per step 12
// rows load 12 broadcasts and 2 vectors for 24 products, half of the load slots. With 16 registers
// two steps start per cycle and 8 chains (4 rows) are needed; 5 rows use 13 and leave room for the
// mask that takes bf16 pairs apart (with 6 rows sums spill: half the rate).
inline constexpr int kTileRows = VecF::kLanes == 16 ? 12 : 5;

template <int kRows>
struct Tile {
  VecF sum[kRows][kPanelVectors];
};

inline VecPairs as_words(VecF a) {
  return {reinterpret_cast<decltype(VecPairs::v)>(a.v)};
}

inline VecF as_floats(VecPairs a) {
  return {reinterpret_cast<decltype(VecF::v)>(a.v)};
}

// One word in every lane: the whole word at p, or only its first element.
inline VecPairs broadcast_word_at(const void* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return broadcast_word(word);
}
inline VecPairs broadcast_first(const bf16* p) {
  return broadcast_word(p->bits);
}
inline VecPairs broadcast_first(const float* p) {
  return broadcast_word_at(p);
}

inline Half half_of(const bf16* p, int n) {
  return n == VecF::kLanes ? load_half(p) : load_half(p, n);
}
inline Half half_of(const float* p, int n) {
  return narrow(n == VecF::kLanes ? load(p) : load(p, n));
}

// Words of elements of type T, made from a matrix of fp32 or bf16.
//   kStep           elements of the summed dimension per word
//   across(a, b, n) lane i: elements i < n of kStep rows (b null: zeros instead of the second)
//   along(p, n)     lane i: elements kStep i .. of one row, n in all; zeros beyond
//   multiply(tile, w0, w1, x)  one step: tile[r] += x(r) * (w0, w1), x(r) the same word in every
//   lane
template <class T>
struct Words;

template <>
struct Words<float> {
  static constexpr int kStep = 1;
  template <class Source>
  static VecPairs across(const Source* a, const Source*, int n) {
    return as_words(n == VecF::kLanes ? load(a) : load(a, n));
  }
  template <class Source>
  static VecPairs along(const Source* p, int n) {
    return across<Source>(p, nullptr, n);
  }
  template <int kRows, class X>
  [[gnu::always_inline]] static void multiply(Tile<kRows>& tile, const uint32_t* w, X&& x) {
    const VecF w0 = as_floats(load_pairs(w));
    const VecF w1 = as_floats(load_pairs(w + VecF::kLanes));
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const VecF a = as_floats(x(r));
      tile.sum[r][0] = fma(a, w0, tile.sum[r][0]);
      tile.sum[r][1] = fma(a, w1, tile.sum[r][1]);
    }
  }
};

template <>
struct Words<bf16> {
  static constexpr int kStep = 2;
  template <class Source>
  static VecPairs across(const Source* a, const Source* b, int n) {
    return zip(half_of(a, n), b == nullptr ? Half{} : half_of(b, n));
  }
  template <class Source>
  static VecPairs along(const Source* p, int n) {
    constexpr int kLanes = VecF::kLanes;
    const Half low = half_of(p, std::min(n, kLanes));
    return concat(low, n > kLanes ? half_of(p + kLanes, n - kLanes) : Half{});
  }
  // Without vdpbf16ps the first elements of all rows come first, then the second ones: the chain of
  // each sum is that of dot_bf16. Where registers are few both operands are loaded again for the
  // second half (10 sums + 2 of w + 1 of x + a mask); left alone the compiler keeps them, and
  // spills.
  template <int kRows, class X>
  [[gnu::always_inline]] static void multiply(Tile<kRows>& tile, const uint32_t* w, X&& x) {
#if defined(__AVX512BF16__)
    const VecPairs w0 = load_pairs(w);
    const VecPairs w1 = load_pairs(w + VecF::kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const VecPairs a = x(r);
      tile.sum[r][0] = dot_bf16(tile.sum[r][0], a, w0);
      tile.sum[r][1] = dot_bf16(tile.sum[r][1], a, w1);
    }
#else
    const VecF even0 = even_of(load_pairs(w));
    const VecF even1 = even_of(load_pairs(w + VecF::kLanes));
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const VecF a = even_of(x(r));
      tile.sum[r][0] = fma(a, even0, tile.sum[r][0]);
      tile.sum[r][1] = fma(a, even1, tile.sum[r][1]);
    }
#if !defined(__AVX512F__)
    asm volatile("" ::: "memory");
#endif
    const VecF odd0 = odd_of(load_pairs(w));
    const VecF odd1 = odd_of(load_pairs(w + VecF::kLanes));
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const VecF a = odd_of(x(r));
      tile.sum[r][0] = fma(a, odd0, tile.sum[r][0]);
      tile.sum[r][1] = fma(a, odd1, tile.sum[r][1]);
    }
#endif
  }
};

template <class T>
constexpr int64_t steps_for(int64_t elements) {
  return (elements + Words<T>::kStep - 1) / Words<T>::kStep;
}

// out[s][0 .. width) = words of columns [0, count) of rows kStep s, kStep s + 1 of `from`, for all
// of `rows` rows; zeros between count and width, and for the missing partner of an odd last row.
template <class T, class Source>
void pack_rows(const Source* from, int64_t stride, int64_t rows, int64_t count, int64_t width,
               uint32_t* out) {
  constexpr int64_t kLanes = VecF::kLanes;
  constexpr int64_t kRowsAhead = 16;
  const uint32_t* end = out + steps_for<T>(rows) * width;
  for (int64_t r = 0; r < rows; r += Words<T>::kStep, out += width) {
    const Source* a = from + r * stride;
    const Source* b = r + 1 < rows ? a + stride : nullptr;
    // Narrow columns of long rows: each row is another page to the hardware's own prefetching.
    __builtin_prefetch(a + kRowsAhead * stride);
    if (Words<T>::kStep == 2) __builtin_prefetch(a + (kRowsAhead + 1) * stride);
    for (int64_t j = 0; j < width; j += kLanes) {
      const int n = static_cast<int>(std::clamp<int64_t>(count - j, 0, kLanes));
      const VecPairs word = Words<T>::across(a + j, b == nullptr ? b : b + j, n);
      if (out + j + kLanes <= end) {
        store_pairs(out + j, word);
      } else {
        store_pairs(out + j, word, static_cast<int>(std::min(end - out - j, kLanes)));
      }
    }
  }
}

// out[s][0 .. width) = words s of the rows [0, count) of `from`, each of `length` elements; `width`
// is a multiple of the lanes; zeros between count and width and beyond an odd length.
template <class T, class Source>
void pack_transposed(const Source* from, int64_t stride, int64_t length, int64_t count,
                     int64_t width, uint32_t* out) {
  constexpr int64_t kLanes = VecF::kLanes;
  constexpr int64_t kElements = kLanes * Words<T>::kStep;
  for (int64_t at = 0; at < length; at += kElements, out += kLanes * width) {
    const int n = static_cast<int>(std::min(kElements, length - at));
    const int64_t steps = steps_for<T>(n);
    for (int64_t j = 0; j < width; j += kLanes) {
      VecPairs word[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        word[i] =
            j + i < count ? Words<T>::along(from + (j + i) * stride + at, n) : broadcast_word(0);
      }
      transpose(word);
      for (int64_t s = 0; s < steps; ++s) store_pairs(out + s * width + j, word[s]);
    }
  }
}

// tile[r] += x[r * stride ...] * w over `inner` elements, w being steps of kPanel words.
template <class T, int kRows>
[[gnu::always_inline]] inline void multiply_words(Tile<kRows>& tile, const T* x, int64_t stride,
                                                  const uint32_t* w, int64_t inner) {
  constexpr int64_t kStep = Words<T>::kStep;
  int64_t i = 0;
  for (; i + kStep <= inner; i += kStep, w += kPanel) {
    Words<T>::multiply(tile, w, [&](int r) { return broadcast_word_at(x + r * stride + i); });
  }
  if (i < inner) {  // an odd last element of bf16: its partner counts as zero, whatever follows x
    Words<T>::multiply(tile, w, [&](int r) { return broadcast_first(x + r * stride + i); });
  }
}

// Rows of unquantized elements. Rows whose distance is a multiple of 4 KiB fall into the same 8
// lines of a first-level cache: a tile of more rows would lose each line before it has used it.
// Such rows are first copied to a stride one line longer.
template <class T>
struct WordRows {
  const T* x;
  int64_t stride;

  static constexpr int64_t kCacheWays = 8;
  static int64_t row_bytes(int64_t inner) { return inner * static_cast<int64_t>(sizeof(T)); }
  static bool spreads(int64_t inner) { return row_bytes(inner) % 4096 == 0; }
  static int64_t scratch(int64_t rows, int64_t inner) {
    return spreads(inner) ? rows * (row_bytes(inner) + 64) : 0;
  }
  static WordRows make(const void* values, int64_t row, int64_t count, int64_t inner,
                       std::byte* scratch) {
    const T* x = static_cast<const T*>(values) + row * inner;
    if (!spreads(inner) || count <= kCacheWays) return {x, inner};
    const int64_t bytes = row_bytes(inner) + 64;
    for (int64_t r = 0; r < count; ++r) {
      std::memcpy(scratch + r * bytes, x + r * inner, static_cast<size_t>(row_bytes(inner)));
    }
    return {reinterpret_cast<const T*>(scratch), bytes / static_cast<int64_t>(sizeof(T))};
  }
  WordRows from(int64_t r) const { return {x + r * stride, stride}; }
};

}  // namespace
}  // namespace degu
