// Rounding of fp32 to bf16 that is right on average: a number between two neighbours becomes the
// upper one with the probability of its distance from the lower one (Forsythe 1950, "Round-off
// errors in numerical integration on automatic machinery"; for learning: Gupta et al. 2015, arXiv
// 1502.02551). The noise is a pure function of a key and a 32-bit counter, one number at a time
// here and a vector at a time in kernels/cpu/word_vector.h: the same words on every backend.
#pragma once

#include <bit>
#include <cstdint>

#include "tensor/dtype.h"

namespace degu {

// Noise words for elements first, first + 1, … of a stream, below 2^32 in all.
struct NoiseStream {
  uint32_t first_key = 0;
  uint32_t second_key = 0;
  uint32_t first = 0;
};

template <int kBits>
constexpr uint32_t shift_right(uint32_t word) {
  return word >> kBits;
}

// The finaliser of MurmurHash3 (Appleby 2011), in which each output bit depends on all of the
// input's, over a keyed counter; the second key enters half-way, so that the words of two streams
// are not one sequence in two orders. Two multiplications buy the noise of two numbers: Philox,
// which draws everything else, would take twenty of twice the width.
template <class Word>
constexpr Word noise_word(Word counter, Word first_key, Word second_key) {
  Word x = counter ^ first_key;
  x = (x ^ shift_right<16>(x)) * Word{0x85ebca6bu};
  x = x + second_key;
  x = (x ^ shift_right<13>(x)) * Word{0xc2b2ae35u};
  return x ^ shift_right<16>(x);
}

// `noise` is uniform in [0, 2^16): added below the last bit that stays, it carries with the
// probability of what is cut off. Holds for subnormal numbers too; infinities stay, and a NaN stays
// one.
constexpr bf16 stochastic_bf16(float value, uint32_t noise) {
  const auto word = std::bit_cast<uint32_t>(value);
  if ((word & 0x7fffffffu) > 0x7f800000u) return bf16(value);
  bf16 rounded;
  rounded.bits = static_cast<uint16_t>((word + noise) >> 16);
  return rounded;
}

// Which half of an element's noise word rounds what.
constexpr uint32_t noise_of_m(uint32_t word) {
  return word & 0xffffu;
}
constexpr uint32_t noise_of_v(uint32_t word) {
  return word >> 16;
}

}  // namespace degu
