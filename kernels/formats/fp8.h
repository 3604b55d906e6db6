// E4M3 weights (Micikevicius et al. 2022, arXiv 2209.05433) with a scale per 32 elements along the
// inner dimension times bf16 activations; codes are exact in bf16 and the arithmetic is that of
// w8a16.h.
#pragma once

#include "kernels/formats/scheme.h"

namespace degu {

struct Fp8Format {
  using Activation = bf16;
  static constexpr Codes kCodes = Codes::kE4M3;
  static constexpr SchemeInfo kInfo = {Scheme::kFp8, "fp8", DType::kU8, DType::kBF16, 8.5, kCodes};
};

}  // namespace degu
