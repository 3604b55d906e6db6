// What the gradient's norm makes of a step (kernels/api/adamw.h), on every backend.
#pragma once

#include <cstdint>
#include <limits>

namespace degu {

constexpr bool all_finite(const double* values, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (values[i] - values[i] != 0) return false;
  }
  return true;
}

constexpr float step_scale(double norm, double clip, bool finite) {
  if (!finite) return std::numeric_limits<float>::quiet_NaN();
  return clip > 0 && norm > clip ? static_cast<float>(clip / norm) : 1.0f;
}

}  // namespace degu
