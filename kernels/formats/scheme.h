// A scheme names what a weight holds and what it is multiplied with. Its operator is
//   y = sum over groups of s_w * s_x * dot(q_w, q_x),
// the same on every backend; the unquantized schemes are the case without scales. A packing, in contrast,
// is one backend's memory layout of a scheme and never leaves the process.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "tensor/dtype.h"

namespace degu {

enum class Scheme : uint8_t { kFp32, kBf16 };

constexpr auto enum_names(Scheme) { return std::array<std::string_view, 2>{"fp32", "bf16"}; }

}  // namespace degu
