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

enum class Scheme : uint8_t { kFp32, kBf16 };

constexpr auto enum_names(Scheme) {
  return std::array<std::string_view, 2>{"fp32", "bf16"};
}

struct SchemeInfo {
  Scheme scheme;
  std::string_view name;
  DType weight;      // element type that a checkpoint stores
  DType activation;  // element type of the left operand
  double bits;       // per weight, scales included
};

}  // namespace degu
