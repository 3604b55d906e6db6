// Every scheme, one line each. Tests, benchmarks and packers loop over this table.
#pragma once

#include <array>

#include "kernels/formats/scheme.h"

namespace degu {

struct SchemeInfo {
  Scheme scheme;
  std::string_view name;
  DType weight;       // element type that a checkpoint stores
  DType activation;   // element type of the left operand
  double bits;        // per weight, scales included
};

inline constexpr std::array kSchemes = {
    SchemeInfo{Scheme::kFp32, "fp32", DType::kF32, DType::kF32, 32},
    SchemeInfo{Scheme::kBf16, "bf16", DType::kBF16, DType::kBF16, 16},
};

constexpr const SchemeInfo& scheme_info(Scheme scheme) {
  return kSchemes[static_cast<size_t>(scheme)];
}
// The scheme that training packs for activations of this type.
constexpr Scheme training_scheme(DType activation) {
  return activation == DType::kF32 ? Scheme::kFp32 : Scheme::kBf16;
}

}  // namespace degu
