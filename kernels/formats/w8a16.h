// 8-bit integer weights with a scale per 32 elements along the inner dimension times bf16
// activations:
//   y = sum over groups g, in order, of s_w[g] * sum_d q_w[d] * x[d]
// Codes are exact in bf16; sums and scales are fp32.
#pragma once

#include "kernels/formats/scheme.h"

namespace degu {

struct W8A16Format {
  using Activation = bf16;
  static constexpr Codes kCodes = Codes::kInt8;
  static constexpr SchemeInfo kInfo = {Scheme::kW8A16, "w8a16", DType::kI8,
                                       DType::kBF16,   8.5,     kCodes};
};

}  // namespace degu
