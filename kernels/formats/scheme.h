// A scheme names what a weight holds and what it is multiplied with. Its operator is
//   y = sum over groups of s_w * s_x * dot(q_w, q_x),
// the same on every backend; the unquantized schemes are the case without scales. A packing, in
// contrast, is one backend's memory layout of a scheme and never leaves the process.
//
// To add one: its enumerator and name here, a header beside this one with a format type (see
// bf16.h), one line in list.h, and each backend's packing of it (CPU: a Packing<Format>,
// kernels/cpu/packing.h). The operators, their checks, threads and tests reach it through the list.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "tensor/dtype.h"

namespace degu {

enum class Scheme : uint8_t { kFp32, kBf16, kW8A8, kW4A8, kW8A16, kW4A16, kFp8 };

constexpr auto enum_names(Scheme) {
  return std::array<std::string_view, 7>{"fp32", "bf16", "w8a8", "w4a8", "w8a16", "w4a16", "fp8"};
}

// What one number of a weight is written as; kernels/common/codes.h has their arithmetic.
//   kNone  the number itself
//   kInt8  an integer in [-127, 127], one byte
//   kInt4  an integer in [-7, 7], stored plus 8 in four bits; element 2i in the low half of a byte
//   kE4M3  8-bit floating point with 4 bits of exponent (bias 7) and 3 of fraction, no infinities
enum class Codes : uint8_t { kNone, kInt8, kInt4, kE4M3 };

struct SchemeInfo {
  Scheme scheme;
  std::string_view name;
  DType weight;      // element type that a checkpoint stores (codes of 4 bits: two a byte)
  DType activation;  // element type of the left operand
  double bits;       // per weight, scales included, where the groups divide the inner dimension
  Codes codes = Codes::kNone;

  constexpr bool quantized() const { return codes != Codes::kNone; }
  // Whether the left operand is quantized too (kernels/api/quantize.h).
  constexpr bool integer_activations() const { return activation == DType::kI8; }
};

}  // namespace degu
