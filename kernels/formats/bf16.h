// bf16 weights (fp32 masters rounded to nearest even) times bf16 activations, fp32 sums.
#pragma once

#include "kernels/formats/scheme.h"

namespace degu {

struct Bf16Format {
  using Weight = bf16;
  using Activation = bf16;
  static constexpr SchemeInfo kInfo = {Scheme::kBf16, "bf16", DType::kBF16, DType::kBF16, 16};
};

}  // namespace degu
