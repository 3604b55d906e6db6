// 4-bit symmetric integer weights times 8-bit integer activations, both with a scale per 32
// elements along the inner dimension; the arithmetic is that of w8a8.h.
#pragma once

#include "kernels/formats/scheme.h"

namespace degu {

struct W4A8Format {
  using Activation = int8_t;
  static constexpr Codes kCodes = Codes::kInt4;
  static constexpr SchemeInfo kInfo = {Scheme::kW4A8, "w4a8", DType::kU8, DType::kI8, 4.5, kCodes};
};

}  // namespace degu
