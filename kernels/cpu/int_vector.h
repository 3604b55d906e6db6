// Vectors of 32-bit integers, as many lanes as VecF has, and the dot products of bytes that
// quantized schemes are made of. For sources compiled once per instruction set.
//
// A lane of codes is four bytes, neighbours along the summed dimension; so is a lane of
// activations. dot_bytes(acc, w, x) adds the four products to the lane's sum, exactly. With VNNI
// the weight's byte must be unsigned: codes are stored plus kByteOffset, and sums start at
// -kByteOffset times the sum of the activations. Without it, weights are signed bytes and the sign
// moves from the weight to the activation, so that the products of a pair (at most 2 * 127 * 127)
// fit in 16 bits. Four-bit codes are small enough to be unsigned everywhere (plus kNibbleOffset).
#pragma once

#include <bit>

#include "kernels/common/codes.h"
#include "kernels/cpu/simd.h"

namespace degu {
namespace {

#if defined(__AVX512VNNI__)
inline constexpr int kByteOffset = 128;
#else
inline constexpr int kByteOffset = 0;
#endif
inline constexpr int kNibbleOffset = 8;

#if defined(__AVX512F__)

struct VecI {
  __m512i v;
};
inline VecI broadcast_int(int32_t x) {
  return {_mm512_set1_epi32(x)};
}
inline VecI load_bytes(const void* p) {
  return {_mm512_loadu_si512(p)};
}
inline VecF to_float(VecI a) {
  return {_mm512_cvtepi32_ps(a.v)};
}
inline VecI low_nibbles(VecI a) {
  return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))};
}
inline VecI high_nibbles(VecI a) {
  return low_nibbles({_mm512_srli_epi16(a.v, 4)});
}
inline VecI dot_unsigned(VecI acc, VecI w, VecI x) {
#if defined(__AVX512VNNI__)
  return {_mm512_dpbusd_epi32(acc.v, w.v, x.v)};
#else
  const __m512i pairs = _mm512_maddubs_epi16(w.v, x.v);
  return {_mm512_add_epi32(acc.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
#endif
}
inline VecI dot_bytes(VecI acc, VecI w, VecI x) {
#if !defined(__AVX512VNNI__)
  x.v = _mm512_mask_sub_epi8(x.v, _mm512_movepi8_mask(w.v), _mm512_setzero_si512(), x.v);
  w.v = _mm512_abs_epi8(w.v);
#endif
  return dot_unsigned(acc, w, x);
}

// kLanes bytes as integers.
inline VecI widen_signed(const uint8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline VecI widen_unsigned(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline VecI shift_left_20(VecI a) {
  return {_mm512_slli_epi32(a.v, 20)};
}
inline VecI shift_right_4(VecI a) {
  return {_mm512_srli_epi32(a.v, 4)};
}
inline VecI operator&(VecI a, VecI b) {
  return {_mm512_and_si512(a.v, b.v)};
}
inline VecI operator-(VecI a, VecI b) {
  return {_mm512_sub_epi32(a.v, b.v)};
}
inline VecI max(VecI a, VecI b) {
  return {_mm512_max_epi32(a.v, b.v)};
}
inline int32_t max_lane(VecI a) {
  return _mm512_reduce_max_epi32(a.v);
}
inline VecI word_bits(VecF a) {
  return {_mm512_castps_si512(a.v)};
}
inline VecF float_of_bits(VecI a) {
  return {_mm512_castsi512_ps(a.v)};
}
// Nearest integers (ties to even) of magnitude at most 127, as bytes.
inline void store_rounded(int8_t* p, VecF a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
// Words of pairs (even[i], odd[i]) of numbers that bf16 holds exactly.
inline VecPairs exact_pairs(VecF even, VecF odd) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even.v), 16);
  const __m512i high =
      _mm512_and_si512(_mm512_castps_si512(odd.v), _mm512_set1_epi32(static_cast<int>(0xffff0000)));
  return {_mm512_or_si512(low, high)};
}
inline VecF fma_once(VecF a, VecF b, VecF c) {
  return fma(a, b, c);
}

#elif defined(__AVX2__)

struct VecI {
  __m256i v;
};
inline VecI broadcast_int(int32_t x) {
  return {_mm256_set1_epi32(x)};
}
inline VecI load_bytes(const void* p) {
  return {_mm256_loadu_si256(static_cast<const __m256i*>(p))};
}
inline VecF to_float(VecI a) {
  return {_mm256_cvtepi32_ps(a.v)};
}
inline VecI low_nibbles(VecI a) {
  return {_mm256_and_si256(a.v, _mm256_set1_epi8(15))};
}
inline VecI high_nibbles(VecI a) {
  return low_nibbles({_mm256_srli_epi16(a.v, 4)});
}
inline VecI dot_unsigned(VecI acc, VecI w, VecI x) {
  const __m256i pairs = _mm256_maddubs_epi16(w.v, x.v);
  return {_mm256_add_epi32(acc.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
}
inline VecI dot_bytes(VecI acc, VecI w, VecI x) {
  return dot_unsigned(acc, {_mm256_abs_epi8(w.v)}, {_mm256_sign_epi8(x.v, w.v)});
}

inline VecI widen_signed(const uint8_t* p) {
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
inline VecI widen_unsigned(const uint8_t* p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
inline VecI shift_left_20(VecI a) {
  return {_mm256_slli_epi32(a.v, 20)};
}
inline VecI shift_right_4(VecI a) {
  return {_mm256_srli_epi32(a.v, 4)};
}
inline VecI operator&(VecI a, VecI b) {
  return {_mm256_and_si256(a.v, b.v)};
}
inline VecI operator-(VecI a, VecI b) {
  return {_mm256_sub_epi32(a.v, b.v)};
}
inline VecI max(VecI a, VecI b) {
  return {_mm256_max_epi32(a.v, b.v)};
}
inline int32_t max_lane(VecI a) {
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
inline VecI word_bits(VecF a) {
  return {_mm256_castps_si256(a.v)};
}
inline VecF float_of_bits(VecI a) {
  return {_mm256_castsi256_ps(a.v)};
}
inline void store_rounded(int8_t* p, VecF a) {
  const __m256i word = _mm256_cvtps_epi32(a.v);
  const __m128i half =
      _mm_packs_epi32(_mm256_castsi256_si128(word), _mm256_extracti128_si256(word, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(half, half));
}
inline VecPairs exact_pairs(VecF even, VecF odd) {
  const __m256i low = _mm256_srli_epi32(_mm256_castps_si256(even.v), 16);
  return {_mm256_blend_epi16(low, _mm256_castps_si256(odd.v), 0xaa)};
}
inline VecF fma_once(VecF a, VecF b, VecF c) {
  return fma(a, b, c);
}

#else

struct VecI {
  Int4 v;
};
inline VecI broadcast_int(int32_t x) {
  return {Int4{x, x, x, x}};
}
inline VecI load_bytes(const void* p) {
  VecI a;
  std::memcpy(&a.v, p, sizeof a.v);
  return a;
}
inline VecF to_float(VecI a) {
  return {__builtin_convertvector(a.v, Float4)};
}
inline VecI low_nibbles(VecI a) {
  return {a.v & 0x0f0f0f0f};
}
inline VecI high_nibbles(VecI a) {
  return {a.v >> 4 & 0x0f0f0f0f};
}
inline VecI dot_bytes(VecI acc, VecI w, VecI x) {
  for (int byte = 24; byte >= 0; byte -= 8) {
    acc.v += (w.v << byte >> 24) * (x.v << byte >> 24);
  }
  return acc;
}
inline VecI dot_unsigned(VecI acc, VecI w, VecI x) {  // codes below 128: as signed bytes
  return dot_bytes(acc, w, x);
}

inline VecI widen_signed(const uint8_t* p) {
  const auto at = [p](int i) { return int32_t{static_cast<int8_t>(p[i])}; };
  return {Int4{at(0), at(1), at(2), at(3)}};
}
inline VecI widen_unsigned(const uint8_t* p) {
  return {Int4{p[0], p[1], p[2], p[3]}};
}
inline VecI shift_left_20(VecI a) {
  return {reinterpret_cast<Int4>(reinterpret_cast<Word4>(a.v) << 20)};
}
inline VecI shift_right_4(VecI a) {
  return {a.v >> 4};
}
inline VecI operator&(VecI a, VecI b) {
  return {a.v & b.v};
}
inline VecI operator-(VecI a, VecI b) {
  return {a.v - b.v};
}
inline VecI max(VecI a, VecI b) {
  return {a.v > b.v ? a.v : b.v};
}
inline int32_t max_lane(VecI a) {
  return std::max(std::max(a.v[0], a.v[1]), std::max(a.v[2], a.v[3]));
}
inline VecI word_bits(VecF a) {
  return {reinterpret_cast<Int4>(a.v)};
}
inline VecF float_of_bits(VecI a) {
  return {reinterpret_cast<Float4>(a.v)};
}
inline void store_rounded(int8_t* p, VecF a) {
  const VecF whole = round_nearest(a);
  for (int i = 0; i < VecF::kLanes; ++i) p[i] = static_cast<int8_t>(whole.v[i]);
}
inline VecPairs exact_pairs(VecF even, VecF odd) {
  return {reinterpret_cast<Word4>(even.v) >> 16 | (reinterpret_cast<Word4>(odd.v) & 0xffff0000u)};
}
// The one-rounding form, which the baseline's fma is not.
inline VecF fma_once(VecF a, VecF b, VecF c) {
  for (int i = 0; i < VecF::kLanes; ++i) c.v[i] = std::fma(a.v[i], b.v[i], c.v[i]);
  return c;
}

#endif

// The same four bytes in every lane.
inline VecI broadcast_bytes(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, sizeof word);
  return broadcast_int(word);
}

// out[g] = -offset * sum of the codes of group g.
inline void offset_sums(const int8_t* x, int64_t groups, int32_t offset, int32_t* out) {
  int64_t g = 0;
#if defined(__AVX512VNNI__)
  const __m512i ones = _mm512_set1_epi8(1);
  const __m512i factor = _mm512_set1_epi32(-offset);
  for (; g + 2 <= groups; g += 2) {  // lanes 0-7 are group g, lanes 8-15 the next
    const __m512i codes = _mm512_loadu_si512(x + g * kScaleGroup);
    __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, codes);
    sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32(sum, _MM_PERM_BADC));
    sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32(sum, _MM_PERM_CDAB));
    sum = _mm512_add_epi32(sum, _mm512_shuffle_i32x4(sum, sum, 0xb1));
    sum = _mm512_maskz_compress_epi32(0x0101, _mm512_mullo_epi32(sum, factor));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + g), _mm512_castsi512_si128(sum));
  }
#endif
  for (; g < groups; ++g) {
    int32_t sum = 0;
    for (int64_t i = 0; i < kScaleGroup; ++i) sum += x[g * kScaleGroup + i];
    out[g] = -offset * sum;
  }
}

}  // namespace
}  // namespace degu
