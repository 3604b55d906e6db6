// 4-bit symmetric integer weights with a scale per 32 elements along the inner dimension times bf16
// activations; the arithmetic is that of w8a16.h.
#pragma once

#include "kernels/formats/scheme.h"

namespace degu {

struct W4A16Format {
  using Activation = bf16;
  static constexpr Codes kCodes = Codes::kInt4;
  static constexpr SchemeInfo kInfo = {Scheme::kW4A16, "w4a16", DType::kU8,
                                       DType::kBF16,   4.5,     kCodes};
};

}  // namespace degu
