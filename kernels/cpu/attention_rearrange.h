// Moving words between the layouts of attention's operands: transposes, and rows joined into words
// and taken apart again. No arithmetic: bits are copied.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "kernels/cpu/simd.h"

namespace degu {
namespace {

// Columns that one step of join_rows and split_rows handles.
inline constexpr int64_t kJoin = 16;

#if defined(__AVX512F__)

inline constexpr int64_t kSquare = 16;

// Four stages: neighbours in pairs, pairs in quads, then quads of 4 words across the register
// twice.
inline void transpose_square(const std::byte* from, int64_t from_bytes, std::byte* to,
                             int64_t to_bytes) {
  __m512i a[16];
  __m512i b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(from + i * from_bytes);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  // a[4 g + c] holds, in its 128-bit lane l, column 4 l + c of rows 4 g .. 4 g + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i even_low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88);
    const __m512i even_high = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
    const __m512i odd_high = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
    b[c] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    b[8 + c] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
    b[4 + c] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    b[12 + c] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * to_bytes, b[i]);
}

// words[i] = even[i] | odd[i] << 16 for 16 columns.
inline void join_rows(const bf16* even, const bf16* odd, bf16* words) {
  const __m512i low =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(even)));
  const __m512i high =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(odd)));
  _mm512_storeu_si512(words, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}
inline void split_rows(const bf16* words, bf16* even, bf16* odd) {
  const __m512i both = _mm512_loadu_si512(words);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(even), _mm512_cvtepi32_epi16(both));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(odd),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16)));
}

#elif defined(__AVX2__)

inline constexpr int64_t kSquare = 8;

inline void transpose_square(const std::byte* from, int64_t from_bytes, std::byte* to,
                             int64_t to_bytes) {
  __m256i a[8];
  __m256i b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    a[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i * from_bytes));
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    a[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    b[c] = _mm256_permute2x128_si256(a[c], a[4 + c], 0x20);
    b[4 + c] = _mm256_permute2x128_si256(a[c], a[4 + c], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * to_bytes), b[i]);
}

inline void join_rows(const bf16* even, const bf16* odd, bf16* words) {
  const __m256i e = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(even));
  const __m256i o = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(odd));
  const __m256i low = _mm256_unpacklo_epi16(e, o);
  const __m256i high = _mm256_unpackhi_epi16(e, o);
  auto* to = reinterpret_cast<__m256i*>(words);
  _mm256_storeu_si256(to, _mm256_permute2x128_si256(low, high, 0x20));
  _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(low, high, 0x31));
}
inline void split_rows(const bf16* words, bf16* even, bf16* odd) {
  const auto* from = reinterpret_cast<const __m256i*>(words);
  const __m256i low = _mm256_loadu_si256(from);
  const __m256i high = _mm256_loadu_si256(from + 1);
  const __m256i mask = _mm256_set1_epi32(0xffff);
  const __m256i e = _mm256_packus_epi32(_mm256_and_si256(low, mask), _mm256_and_si256(high, mask));
  const __m256i o = _mm256_packus_epi32(_mm256_srli_epi32(low, 16), _mm256_srli_epi32(high, 16));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(even), _mm256_permute4x64_epi64(e, 0xd8));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(odd), _mm256_permute4x64_epi64(o, 0xd8));
}

#else

inline constexpr int64_t kSquare = 4;

inline void transpose_square(const std::byte* from, int64_t from_bytes, std::byte* to,
                             int64_t to_bytes) {
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t j = 0; j < 4; ++j)
      std::memcpy(to + j * to_bytes + i * 4, from + i * from_bytes + j * 4, 4);
  }
}
inline void join_rows(const bf16* even, const bf16* odd, bf16* words) {
  for (int64_t i = 0; i < kJoin; ++i) {
    words[2 * i] = even[i];
    words[2 * i + 1] = odd[i];
  }
}
inline void split_rows(const bf16* words, bf16* even, bf16* odd) {
  for (int64_t i = 0; i < kJoin; ++i) {
    even[i] = words[2 * i];
    odd[i] = words[2 * i + 1];
  }
}

#endif

// to[w][r] = from[r][w], both of 32-bit words; strides in words.
inline void transpose_words(const void* source, int64_t from_stride, int64_t rows, int64_t words,
                            void* target, int64_t to_stride) {
  const auto* from = static_cast<const std::byte*>(source);
  auto* to = static_cast<std::byte*>(target);
  const auto edge = [&](int64_t r0, int64_t r1, int64_t w0, int64_t w1) {
    for (int64_t w = w0; w < w1; ++w) {
      for (int64_t r = r0; r < r1; ++r) {
        std::memcpy(to + (w * to_stride + r) * 4, from + (r * from_stride + w) * 4, 4);
      }
    }
  };
  const int64_t whole_rows = rows / kSquare * kSquare;
  const int64_t whole_words = words / kSquare * kSquare;
  for (int64_t w = 0; w < whole_words; w += kSquare) {
    for (int64_t r = 0; r < whole_rows; r += kSquare) {
      transpose_square(from + (r * from_stride + w) * 4, from_stride * 4,
                       to + (w * to_stride + r) * 4, to_stride * 4);
    }
  }
  edge(whole_rows, rows, 0, words);
  edge(0, whole_rows, whole_words, words);
}

// Rows of T [rows][columns] become words [rows / pack][columns]: neighbours along the rows share a
// word. `rows` is a multiple of the pack. Strides in elements of T.
inline void rows_to_words(const float* from, int64_t from_stride, int64_t rows, int64_t columns,
                          float* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(from + r * from_stride, columns, to + r * to_stride);
  }
}
inline void rows_to_words(const bf16* from, int64_t from_stride, int64_t rows, int64_t columns,
                          bf16* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; r += 2) {
    const bf16* even = from + r * from_stride;
    const bf16* odd = even + from_stride;
    bf16* words = to + (r / 2) * to_stride;
    int64_t i = 0;
    for (; i + kJoin <= columns; i += kJoin) join_rows(even + i, odd + i, words + 2 * i);
    for (; i < columns; ++i) {
      words[2 * i] = even[i];
      words[2 * i + 1] = odd[i];
    }
  }
}

// The way back.
inline void words_to_rows(const float* from, int64_t from_stride, int64_t rows, int64_t columns,
                          float* to, int64_t to_stride) {
  rows_to_words(from, from_stride, rows, columns, to, to_stride);
}
inline void words_to_rows(const bf16* from, int64_t from_stride, int64_t rows, int64_t columns,
                          bf16* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; r += 2) {
    const bf16* words = from + (r / 2) * from_stride;
    bf16* even = to + r * to_stride;
    bf16* odd = even + to_stride;
    int64_t i = 0;
    for (; i + kJoin <= columns; i += kJoin) split_rows(words + 2 * i, even + i, odd + i);
    for (; i < columns; ++i) {
      even[i] = words[2 * i];
      odd[i] = words[2 * i + 1];
    }
  }
}

// Copies rows of `width` elements that lie `from_stride` apart into rows of `to_width` >= width,
// with zeros behind each row and in the rows up to `padded_rows`.
template <class T>
void copy_rows(const T* from, int64_t from_stride, int64_t rows, int64_t width, T* to,
               int64_t to_width, int64_t padded_rows) {
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(to + r * to_width, from + r * from_stride, static_cast<size_t>(width) * sizeof(T));
    std::fill(to + r * to_width + width, to + (r + 1) * to_width, T(0.0f));
  }
  std::fill(to + rows * to_width, to + padded_rows * to_width, T(0.0f));
}

}  // namespace
}  // namespace degu
