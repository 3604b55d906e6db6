// fp32 weights times fp32 activations: y = sum_d x[d] * w[d], one fp32 rounding per fused step.
#pragma once

#include "kernels/formats/scheme.h"

namespace degu {

struct Fp32Format {
  using Weight = float;
  using Activation = float;
  static constexpr SchemeInfo kInfo = {Scheme::kFp32, "fp32", DType::kF32, DType::kF32, 32};
};

}  // namespace degu
