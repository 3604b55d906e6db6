// Vectors of unsigned 32-bit words, as many lanes as VecF has, and the rounding of
// kernels/common/stochastic_rounding.h on them. For sources compiled once per instruction set.
#pragma once

#include "kernels/common/stochastic_rounding.h"
#include "kernels/cpu/simd.h"

namespace degu {
namespace {

#if defined(__AVX512F__)

struct VecWord {
  explicit VecWord(uint32_t word) : v(_mm512_set1_epi32(static_cast<int32_t>(word))) {}
  explicit VecWord(__m512i words) : v(words) {}
  __m512i v;
};
inline VecWord operator^(VecWord a, VecWord b) {
  return VecWord(_mm512_xor_si512(a.v, b.v));
}
inline VecWord operator&(VecWord a, VecWord b) {
  return VecWord(_mm512_and_si512(a.v, b.v));
}
inline VecWord operator+(VecWord a, VecWord b) {
  return VecWord(_mm512_add_epi32(a.v, b.v));
}
inline VecWord operator*(VecWord a, VecWord b) {
  return VecWord(_mm512_mullo_epi32(a.v, b.v));
}
template <int kBits>
VecWord shift_right(VecWord a) {
  return VecWord(_mm512_srli_epi32(a.v, kBits));
}
inline VecWord lane_numbers() {
  return VecWord(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}
inline VecWord stochastic_words(VecF a, VecWord noise) {
  const __m512i word = _mm512_castps_si512(a.v);
  const __m512i quiet = _mm512_or_si512(word, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return VecWord(_mm512_mask_mov_epi32(_mm512_add_epi32(word, noise.v), nan, quiet));
}
inline void store_upper(bf16* p, VecWord a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(a.v, 16)));
}
inline void store_upper(bf16* p, VecWord a, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), _mm512_cvtepi32_epi16(_mm512_srli_epi32(a.v, 16)));
}

#elif defined(__AVX2__)

struct VecWord {
  explicit VecWord(uint32_t word) : v(_mm256_set1_epi32(static_cast<int32_t>(word))) {}
  explicit VecWord(__m256i words) : v(words) {}
  __m256i v;
};
inline VecWord operator^(VecWord a, VecWord b) {
  return VecWord(_mm256_xor_si256(a.v, b.v));
}
inline VecWord operator&(VecWord a, VecWord b) {
  return VecWord(_mm256_and_si256(a.v, b.v));
}
inline VecWord operator+(VecWord a, VecWord b) {
  return VecWord(_mm256_add_epi32(a.v, b.v));
}
inline VecWord operator*(VecWord a, VecWord b) {
  return VecWord(_mm256_mullo_epi32(a.v, b.v));
}
template <int kBits>
VecWord shift_right(VecWord a) {
  return VecWord(_mm256_srli_epi32(a.v, kBits));
}
inline VecWord lane_numbers() {
  return VecWord(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline VecWord stochastic_words(VecF a, VecWord noise) {
  const __m256i word = _mm256_castps_si256(a.v);
  const __m256i quiet = _mm256_or_si256(word, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  return VecWord(_mm256_blendv_epi8(_mm256_add_epi32(word, noise.v), quiet, nan));
}
inline void store_upper(bf16* p, VecWord a) {
  const __m256i high = _mm256_srli_epi32(a.v, 16);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
}
inline void store_upper(bf16* p, VecWord a, int n) {
  alignas(16) bf16 buffer[8];
  store_upper(buffer, a);
  std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(bf16));
}

#else

struct VecWord {
  explicit VecWord(uint32_t word) : v(Word4{word, word, word, word}) {}
  explicit VecWord(Word4 words) : v(words) {}
  Word4 v;
};
inline VecWord operator^(VecWord a, VecWord b) {
  return VecWord(a.v ^ b.v);
}
inline VecWord operator&(VecWord a, VecWord b) {
  return VecWord(a.v & b.v);
}
inline VecWord operator+(VecWord a, VecWord b) {
  return VecWord(a.v + b.v);
}
inline VecWord operator*(VecWord a, VecWord b) {
  return VecWord(a.v * b.v);
}
template <int kBits>
VecWord shift_right(VecWord a) {
  return VecWord(a.v >> kBits);
}
inline VecWord lane_numbers() {
  return VecWord(Word4{0, 1, 2, 3});
}
inline VecWord stochastic_words(VecF a, VecWord noise) {
  const Word4 word = reinterpret_cast<Word4>(a.v);
  return VecWord(a.v == a.v ? word + noise.v : word | 0x400000u);
}
inline void store_upper(bf16* p, VecWord a, int n) {
  for (int i = 0; i < n; ++i) p[i].bits = static_cast<uint16_t>(a.v[i] >> 16);
}
inline void store_upper(bf16* p, VecWord a) {
  store_upper(p, a, VecF::kLanes);
}

#endif

// The words of a stream that belong to elements i, i + 1, … of the call.
class NoiseVectors {
 public:
  explicit NoiseVectors(const NoiseStream& s)
      : first_key_(s.first_key),
        second_key_(s.second_key),
        counters_(lane_numbers() + VecWord(s.first)) {}
  VecWord at(int64_t i) const {
    return noise_word(counters_ + VecWord(static_cast<uint32_t>(i)), first_key_, second_key_);
  }

 private:
  VecWord first_key_, second_key_, counters_;
};

// p[0 …] = a, rounded as stochastic_bf16 does: `noise` is below 2^16 in each lane. `count`: how
// many lanes, when not all.
template <class... Count>
void store_stochastic(bf16* p, VecF a, VecWord noise, Count... count) {
  store_upper(p, stochastic_words(a, noise), count...);
}

}  // namespace
}  // namespace degu
