// 8-bit integer weights times 8-bit integer activations, both with a scale per 32 elements along
// the inner dimension:
//   y = sum over groups g, in order, of (s_w[g] * s_x[g]) * dot(q_w[g], q_x[g])
// The dot of a group is an exact integer (below 2^19); it is converted to fp32, where it is exact
// too, and joined by one fused multiply-add. So every instruction set gives the same bits.
#pragma once

#include "kernels/formats/scheme.h"

namespace degu {

struct W8A8Format {
  using Activation = int8_t;
  static constexpr Codes kCodes = Codes::kInt8;
  static constexpr SchemeInfo kInfo = {Scheme::kW8A8, "w8a8", DType::kI8, DType::kI8, 8.5, kCodes};
};

}  // namespace degu
