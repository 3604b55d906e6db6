// Vectors of fp32 lanes for the sources that are compiled once per instruction set
// (kernels/cpu/isa.h). Everything sits in an unnamed namespace: two objects of different sets never
// share a function.
//
//               lanes   fma             bf16 from fp32                     dot_bf16
//   portable      4     mul, then add   nearest even                       mul, add per product
//   avx2          8     one rounding    nearest even                       two fma
//   avx512       16     one rounding    nearest even                       two fma
//   avx512_bf16  16     one rounding    nearest even, subnormals become 0  vdpbf16ps (subnormals as
//   0)
//
// So floating results differ between sets (they are promised per set); within a set they are the
// same wherever a value stands in a vector: partial loads and stores use the same arithmetic as
// full ones. The build forbids contraction: a*b+c is two roundings, fma(a, b, c) is what the table
// says.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/isa.h"
#include "tensor/dtype.h"

#if defined(__AVX2__) || defined(__AVX512F__)
// GCC 12 takes its own headers' undefined registers (_mm512_undefined_ps) for a mistake of ours.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace degu {
namespace {

#if defined(__AVX512F__)

struct VecF {
  static constexpr int kLanes = 16;
  __m512 v;
};
// Pairs of bf16: lane i holds elements 2i (low half) and 2i + 1 (high half).
struct VecPairs {
  static constexpr int kLanes = 16;
  __m512i v;
};
inline __mmask16 first_lanes(int n) {
  return static_cast<__mmask16>((1u << n) - 1u);
}

inline VecF zero() {
  return {_mm512_setzero_ps()};
}
inline VecF broadcast(float x) {
  return {_mm512_set1_ps(x)};
}
inline VecF load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
inline VecF load(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(first_lanes(n), p)};
}
inline void store(float* p, VecF a) {
  _mm512_storeu_ps(p, a.v);
}
inline void store(float* p, VecF a, int n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), a.v);
}
inline void stream(float* p, VecF a) {
  _mm512_stream_ps(p, a.v);
}

using Half = __m256i;  // kLanes bf16
inline Half load_half(const bf16* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline Half load_half(const bf16* p, int n) {
  return _mm256_maskz_loadu_epi16(first_lanes(n), p);
}
inline VecF widen(Half a) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16))};
}
#if !defined(__AVX512BF16__)
// The upper half of each lane is the bf16.
inline __m512i rounded_words(VecF a) {
  const __m512i word = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(word, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(word, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(word, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_mask_mov_epi32(up, nan, quiet);
}
#endif
inline Half narrow(VecF a) {
#if defined(__AVX512BF16__)
  return (__m256i)_mm512_cvtneps_pbh(a.v);
#else
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded_words(a), 16));
#endif
}
inline VecF load(const bf16* p) {
  return widen(load_half(p));
}
inline VecF load(const bf16* p, int n) {
  return widen(load_half(p, n));
}
inline void store(bf16* p, VecF a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a));
}
inline void store(bf16* p, VecF a, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(a));
}
inline void stream(bf16* p, VecF a) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow(a));
}

inline VecF operator+(VecF a, VecF b) {
  return {_mm512_add_ps(a.v, b.v)};
}
inline VecF operator-(VecF a, VecF b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
inline VecF operator*(VecF a, VecF b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
inline VecF operator/(VecF a, VecF b) {
  return {_mm512_div_ps(a.v, b.v)};
}
inline VecF fma(VecF a, VecF b, VecF c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline VecF max(VecF a, VecF b) {
  return {_mm512_max_ps(a.v, b.v)};
}
inline VecF min(VecF a, VecF b) {
  return {_mm512_min_ps(a.v, b.v)};
}
inline VecF sqrt(VecF a) {
  return {_mm512_sqrt_ps(a.v)};
}
inline VecF round_nearest(VecF a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline VecF scale_by_power(VecF a, VecF exponent) {
  return {_mm512_scalef_ps(a.v, exponent.v)};
}
inline VecF keep_first(VecF a, int n, VecF other) {
  return {_mm512_mask_mov_ps(other.v, first_lanes(n), a.v)};
}

inline VecPairs load_pairs(const void* p) {
  return {_mm512_loadu_si512(p)};
}
inline void store_pairs(void* p, VecPairs a) {
  _mm512_storeu_si512(p, a.v);
}
inline void store_pairs(void* p, VecPairs a, int n) {
  _mm512_mask_storeu_epi32(p, first_lanes(n), a.v);
}
// Lane i becomes the pair (even[i], odd[i]).
inline VecPairs zip(Half even, Half odd) {
  return {_mm512_or_si512(_mm512_cvtepu16_epi32(even),
                          _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16))};
}
// The same of narrow(even) and narrow(odd).
inline VecPairs narrow_pairs(VecF even, VecF odd) {
#if defined(__AVX512BF16__)
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(odd.v, even.v);  // even in the low half
  const __m512i interleave =
      _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                       21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return {_mm512_permutexvar_epi16(interleave, halves)};
#else
  const __m512i high = _mm512_and_si512(rounded_words(odd), _mm512_set1_epi32(-65536));
  return {_mm512_or_si512(_mm512_srli_epi32(rounded_words(even), 16), high)};
#endif
}
inline void stream_pairs(void* p, VecPairs a) {
  _mm512_stream_si512(static_cast<__m512i*>(p), a.v);
}
inline VecPairs broadcast_word(uint32_t word) {
  return {_mm512_set1_epi32(static_cast<int32_t>(word))};
}
inline VecF even_of(VecPairs a) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(a.v, 16))};
}
inline VecF odd_of(VecPairs a) {
  return {_mm512_castsi512_ps(_mm512_and_si512(a.v, _mm512_set1_epi32(-65536)))};
}

#elif defined(__AVX2__)

struct VecF {
  static constexpr int kLanes = 8;
  __m256 v;
};
// Pairs of bf16: lane i holds elements 2i (low half) and 2i + 1 (high half).
struct VecPairs {
  static constexpr int kLanes = 8;
  __m256i v;
};
inline __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline VecF zero() {
  return {_mm256_setzero_ps()};
}
inline VecF broadcast(float x) {
  return {_mm256_set1_ps(x)};
}
inline VecF load(const float* p) {
  return {_mm256_loadu_ps(p)};
}
inline VecF load(const float* p, int n) {
  return {_mm256_maskload_ps(p, first_lanes(n))};
}
inline void store(float* p, VecF a) {
  _mm256_storeu_ps(p, a.v);
}
inline void store(float* p, VecF a, int n) {
  _mm256_maskstore_ps(p, first_lanes(n), a.v);
}
inline void stream(float* p, VecF a) {
  _mm256_stream_ps(p, a.v);
}

using Half = __m128i;  // kLanes bf16
inline Half load_half(const bf16* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
inline Half load_half(const bf16* p, int n) {
  alignas(16) bf16 buffer[8]{};
  std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(bf16));
  return load_half(buffer);
}
inline VecF widen(Half a) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16))};
}
// The upper half of each lane is the bf16.
inline __m256i rounded_words(VecF a) {
  const __m256i word = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(word, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(word, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(word, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(up, quiet, nan);
}
inline Half narrow(VecF a) {
  const __m256i high = _mm256_srli_epi32(rounded_words(a), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}
inline VecF load(const bf16* p) {
  return widen(load_half(p));
}
inline VecF load(const bf16* p, int n) {
  return widen(load_half(p, n));
}
inline void store(bf16* p, VecF a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(a));
}
inline void store(bf16* p, VecF a, int n) {
  alignas(16) bf16 buffer[8];
  store(buffer, a);
  std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(bf16));
}
inline void stream(bf16* p, VecF a) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), narrow(a));
}

inline VecF operator+(VecF a, VecF b) {
  return {_mm256_add_ps(a.v, b.v)};
}
inline VecF operator-(VecF a, VecF b) {
  return {_mm256_sub_ps(a.v, b.v)};
}
inline VecF operator*(VecF a, VecF b) {
  return {_mm256_mul_ps(a.v, b.v)};
}
inline VecF operator/(VecF a, VecF b) {
  return {_mm256_div_ps(a.v, b.v)};
}
inline VecF fma(VecF a, VecF b, VecF c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
inline VecF max(VecF a, VecF b) {
  return {_mm256_max_ps(a.v, b.v)};
}
inline VecF min(VecF a, VecF b) {
  return {_mm256_min_ps(a.v, b.v)};
}
inline VecF sqrt(VecF a) {
  return {_mm256_sqrt_ps(a.v)};
}
inline VecF round_nearest(VecF a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a * 2^exponent for integral exponents in [-252, 254]; two steps, so that both ends round
// correctly.
inline VecF scale_by_power(VecF a, VecF exponent) {
  const __m256i whole = _mm256_cvtps_epi32(exponent.v);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i one = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i two = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
  return {_mm256_mul_ps(_mm256_mul_ps(a.v, _mm256_castsi256_ps(one)), _mm256_castsi256_ps(two))};
}
inline VecF keep_first(VecF a, int n, VecF other) {
  return {_mm256_blendv_ps(other.v, a.v, _mm256_castsi256_ps(first_lanes(n)))};
}

inline VecPairs load_pairs(const void* p) {
  return {_mm256_loadu_si256(static_cast<const __m256i*>(p))};
}
inline void store_pairs(void* p, VecPairs a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), a.v);
}
inline void store_pairs(void* p, VecPairs a, int n) {
  _mm256_maskstore_epi32(static_cast<int*>(p), first_lanes(n), a.v);
}
// Lane i becomes the pair (even[i], odd[i]).
inline VecPairs zip(Half even, Half odd) {
  return {_mm256_or_si256(_mm256_cvtepu16_epi32(even),
                          _mm256_slli_epi32(_mm256_cvtepu16_epi32(odd), 16))};
}
// The same of narrow(even) and narrow(odd).
inline VecPairs narrow_pairs(VecF even, VecF odd) {
  return {_mm256_blend_epi16(_mm256_srli_epi32(rounded_words(even), 16), rounded_words(odd), 0xaa)};
}
inline void stream_pairs(void* p, VecPairs a) {
  _mm256_stream_si256(static_cast<__m256i*>(p), a.v);
}
inline VecPairs broadcast_word(uint32_t word) {
  return {_mm256_set1_epi32(static_cast<int32_t>(word))};
}
inline VecF even_of(VecPairs a) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(a.v, 16))};
}
inline VecF odd_of(VecPairs a) {
  return {_mm256_castsi256_ps(_mm256_and_si256(a.v, _mm256_set1_epi32(-65536)))};
}

#else  // GCC's and Clang's generic vectors: SSE2 on x86-64, NEON on arm64, plain code elsewhere.

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));
typedef uint32_t Word4 __attribute__((vector_size(16)));
typedef uint16_t Half4 __attribute__((vector_size(8)));

struct VecF {
  static constexpr int kLanes = 4;
  Float4 v;
};
// Pairs of bf16: lane i holds elements 2i (low half) and 2i + 1 (high half).
struct VecPairs {
  static constexpr int kLanes = 4;
  Word4 v;
};

inline VecF zero() {
  return {Float4{}};
}
inline VecF broadcast(float x) {
  return {Float4{x, x, x, x}};
}
inline VecF load(const float* p, int n) {
  VecF a = zero();
  std::memcpy(&a.v, p, static_cast<size_t>(n) * sizeof(float));
  return a;
}
inline VecF load(const float* p) {
  return load(p, VecF::kLanes);
}
inline void store(float* p, VecF a, int n) {
  std::memcpy(p, &a.v, static_cast<size_t>(n) * sizeof(float));
}
inline void store(float* p, VecF a) {
  store(p, a, VecF::kLanes);
}
inline void stream(float* p, VecF a) {
  store(p, a);
}
using Half = Half4;  // kLanes bf16
inline Half load_half(const bf16* p, int n) {
  Half a{};
  std::memcpy(&a, p, static_cast<size_t>(n) * sizeof(bf16));
  return a;
}
inline Half load_half(const bf16* p) {
  return load_half(p, VecF::kLanes);
}
inline VecF widen(Half a) {
  return {reinterpret_cast<Float4>(__builtin_convertvector(a, Word4) << 16)};
}
inline Half narrow(VecF a) {
  const Half rounded = {bf16(a.v[0]).bits, bf16(a.v[1]).bits, bf16(a.v[2]).bits, bf16(a.v[3]).bits};
  return rounded;
}
inline VecF load(const bf16* p, int n) {
  return widen(load_half(p, n));
}
inline VecF load(const bf16* p) {
  return widen(load_half(p));
}
inline void store(bf16* p, VecF a, int n) {
  for (int i = 0; i < n; ++i) p[i] = bf16(a.v[i]);
}
inline void store(bf16* p, VecF a) {
  store(p, a, VecF::kLanes);
}
inline void stream(bf16* p, VecF a) {
  store(p, a);
}

inline VecF operator+(VecF a, VecF b) {
  return {a.v + b.v};
}
inline VecF operator-(VecF a, VecF b) {
  return {a.v - b.v};
}
inline VecF operator*(VecF a, VecF b) {
  return {a.v * b.v};
}
inline VecF operator/(VecF a, VecF b) {
  return {a.v / b.v};
}
inline VecF fma(VecF a, VecF b, VecF c) {
  return {a.v * b.v + c.v};
}
inline VecF max(VecF a, VecF b) {
  return {a.v > b.v ? a.v : b.v};
}
inline VecF min(VecF a, VecF b) {
  return {a.v < b.v ? a.v : b.v};
}
inline VecF sqrt(VecF a) {
  for (int i = 0; i < VecF::kLanes; ++i) a.v[i] = std::sqrt(a.v[i]);
  return a;
}
// For |a| < 2^22: adding 1.5 * 2^23 leaves no bit below the point.
inline VecF round_nearest(VecF a) {
  const Float4 big = broadcast(12582912.0f).v;
  return {(a.v + big) - big};
}
// a * 2^exponent for integral exponents in [-252, 254]; two steps, so that both ends round
// correctly.
inline VecF scale_by_power(VecF a, VecF exponent) {
  const Int4 whole = __builtin_convertvector(exponent.v, Int4);
  const Int4 half = whole >> 1;
  const Int4 one = (half + 127) << 23;
  const Int4 two = (whole - half + 127) << 23;
  return {(a.v * reinterpret_cast<Float4>(one)) * reinterpret_cast<Float4>(two)};
}
inline VecF keep_first(VecF a, int n, VecF other) {
  const Int4 lane = {0, 1, 2, 3};
  const Int4 count = {n, n, n, n};
  return {lane < count ? a.v : other.v};
}

inline VecPairs load_pairs(const void* p) {
  VecPairs a;
  std::memcpy(&a.v, p, sizeof a.v);
  return a;
}
inline void store_pairs(void* p, VecPairs a, int n) {
  std::memcpy(p, &a.v, static_cast<size_t>(n) * sizeof(uint32_t));
}
inline void store_pairs(void* p, VecPairs a) {
  store_pairs(p, a, VecPairs::kLanes);
}
// Lane i becomes the pair (even[i], odd[i]).
inline VecPairs zip(Half even, Half odd) {
  return {__builtin_convertvector(odd, Word4) << 16 | __builtin_convertvector(even, Word4)};
}
// The same of narrow(even) and narrow(odd).
inline VecPairs narrow_pairs(VecF even, VecF odd) {
  return zip(narrow(even), narrow(odd));
}
inline void stream_pairs(void* p, VecPairs a) {
  store_pairs(p, a);
}
inline VecPairs broadcast_word(uint32_t word) {
  return {Word4{word, word, word, word}};
}
inline VecF even_of(VecPairs a) {
  return {reinterpret_cast<Float4>(a.v << 16)};
}
inline VecF odd_of(VecPairs a) {
  return {reinterpret_cast<Float4>(a.v & 0xffff0000u)};
}

#endif

// The same 32-bit pair (p[0], p[1]) in every lane; with one element the second counts as 0.
inline VecPairs broadcast_pair(const bf16* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return broadcast_word(word);
}
inline VecPairs broadcast_single(const bf16* p) {
  return broadcast_word(p->bits);
}

// acc[i] + a[2i] * b[2i] + a[2i+1] * b[2i+1] in the order of the table above (element 2i first when
// the products are separate).
inline VecF dot_bf16(VecF acc, VecPairs a, VecPairs b) {
#if defined(__AVX512BF16__)
  return {_mm512_dpbf16_ps(acc.v, (__m512bh)a.v, (__m512bh)b.v)};
#else
  return fma(odd_of(a), odd_of(b), fma(even_of(a), even_of(b), acc));
#endif
}

// Lanes added by halves: lane i + lane i + n/2, then again, down to one.
inline float sum_lanes(VecF a) {
#if defined(__AVX512F__)
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
#elif defined(__AVX2__)
  const __m256 eight = a.v;
#endif
#if defined(__AVX2__)
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
  return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
#endif
}
inline float max_lanes(VecF a) {
  alignas(64) float lane[VecF::kLanes];
  store(lane, a);
  for (int half = VecF::kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
  }
  return lane[0];
}

inline VecF reciprocal(VecF a) {
  return broadcast(1.0f) / a;
}
inline VecF reciprocal_sqrt(VecF a) {
  return broadcast(1.0f) / sqrt(a);
}

// What a bf16 store followed by a load gives.
inline VecF round_to_bf16(VecF a) {
  return widen(narrow(a));
}

// e^x within 1.1 ulp: x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 in two parts of which n times
// the first is exact, and the Taylor series of e^r to r^7 (next term below 6e-9). Below about
// -103.97 it is 0, above 88.72 infinity; NaN stays NaN.
inline VecF exp(VecF x) {
  x = min(broadcast(89.0f), max(broadcast(-105.0f), x));  // the second operand wins when it is NaN
  const VecF n = round_nearest(x * broadcast(1.44269504f));
  VecF r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  VecF p = broadcast(1.0f / 5040);
  p = fma(p, r, broadcast(1.0f / 720));
  p = fma(p, r, broadcast(1.0f / 120));
  p = fma(p, r, broadcast(1.0f / 24));
  p = fma(p, r, broadcast(1.0f / 6));
  p = fma(p, r, broadcast(0.5f));
  p = fma(p * r, r, r) + broadcast(1.0f);
  return scale_by_power(p, n);
}

}  // namespace
}  // namespace degu
