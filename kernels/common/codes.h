// How numbers become codes of a quantized scheme and back: arithmetic that all backends and the
// quantizers share, one number at a time. `constexpr` makes it device code too.
//
// Weights and activations are cut into groups of kScaleGroup along the dimension that a product
// sums over; each group has one scale. A width that the group does not divide ends in a shorter
// group. Scales of weights are bf16, and codes are chosen against the rounded scale; scales of
// activations are fp32.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/formats/scheme.h"

namespace degu {

inline constexpr int64_t kScaleGroup = 32;

constexpr int64_t scale_groups(int64_t inner) {
  return (inner + kScaleGroup - 1) / kScaleGroup;
}

// Bytes of one row of `inner` codes.
constexpr int64_t code_bytes(Codes codes, int64_t inner) {
  return codes == Codes::kInt4 ? (inner + 1) / 2 : inner;
}

// The largest magnitude that a code stands for.
constexpr float largest_code(Codes codes) {
  switch (codes) {
    case Codes::kInt4:
      return 7;
    case Codes::kE4M3:
      return 448;
    default:
      return 127;
  }
}

// The scale of a group of weights whose largest magnitude is `most`: bf16, as fp32. A group that a
// normal number could not scale counts as zeros.
constexpr float weight_scale(Codes codes, float most) {
  const float scale = static_cast<float>(bf16(most / largest_code(codes)));
  return scale < 0x1p-126f ? 0.0f : scale;
}

constexpr float e4m3_value(uint8_t code) {
  const auto word = (uint32_t{code} & 0x80u) << 24 | (uint32_t{code} & 0x7fu) << 20;
  return std::bit_cast<float>(word) * 0x1p120f;  // moves the exponent's bias from 7 to 127
}

// To nearest even; magnitudes beyond 448 become 448.
constexpr uint8_t e4m3_code(float value) {
  const auto sign = static_cast<uint32_t>(std::signbit(value)) << 7;
  const float magnitude = std::fabs(value);
  uint32_t code = 0;
  if (magnitude < 0x1p-6f) {  // multiples of 2^-9; eight of them are the first normal number
    code = static_cast<uint32_t>(std::nearbyint(magnitude * 0x1p9f));
  } else if (magnitude >= 448.0f) {
    code = 0x7e;
  } else {
    auto word = std::bit_cast<uint32_t>(magnitude);
    word += 0x7ffffu + ((word >> 20) & 1u);
    code = std::min((word >> 20) - (120u << 3), 0x7eu);
  }
  return static_cast<uint8_t>(sign | code);
}

// The integer code nearest to value / scale (ties to even); 0 for a zero scale.
constexpr int integer_code(Codes codes, float value, float scale) {
  if (scale == 0.0f) return 0;
  const float most = largest_code(codes);
  return static_cast<int>(std::clamp(std::nearbyint(value / scale), -most, most));
}

// The code of one number as a byte: kInt8 two's complement, kInt4 plus 8 in the low half.
constexpr uint8_t code_of(Codes codes, float value, float scale) {
  if (codes == Codes::kE4M3) return scale == 0.0f ? uint8_t{0} : e4m3_code(value / scale);
  const int code = integer_code(codes, value, scale);
  return static_cast<uint8_t>(codes == Codes::kInt4 ? code + 8 : code);
}

// What it stands for, before the scale.
constexpr float code_value(Codes codes, uint8_t code) {
  if (codes == Codes::kE4M3) return e4m3_value(code);
  if (codes == Codes::kInt4) return static_cast<float>(static_cast<int>(code) - 8);
  return static_cast<float>(static_cast<int8_t>(code));
}

// Code `i` of a stored row, and its place.
constexpr uint8_t stored_code(Codes codes, const uint8_t* row, int64_t i) {
  if (codes != Codes::kInt4) return row[i];
  return static_cast<uint8_t>(i % 2 == 0 ? row[i / 2] & 0x0f : row[i / 2] >> 4);
}
constexpr void store_code(Codes codes, uint8_t* row, int64_t i, uint8_t code) {
  if (codes != Codes::kInt4) {
    row[i] = code;
  } else if (i % 2 == 0) {  // the partner of an odd last element is the code of zero
    row[i / 2] = static_cast<uint8_t>(0x80 | code);
  } else {
    row[i / 2] = static_cast<uint8_t>((row[i / 2] & 0x0f) | code << 4);
  }
}

}  // namespace degu
