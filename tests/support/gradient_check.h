// Gradients by central differences of a reference in double precision.
#pragma once

#include <algorithm>
#include <functional>

#include "tests/support/kernel_testing.h"

namespace degu::testing {

inline std::vector<double> values_of(const AnyView& view) {
  std::vector<double> values(static_cast<size_t>(view.elements()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = element(view, static_cast<int64_t>(i));
  return values;
}

// `analytic` (a kernel's fp32 gradient) against d objective / d x. With step h the truncation is of
// order h^2 = 1e-10 and the cancellation of order 2^-52 / h = 2e-11, both far below the 64
// roundings of the largest gradient that the kernel is allowed.
inline void check_gradient(const std::string& name, const AnyView& analytic,
                           const std::function<double(const std::vector<double>&)>& objective,
                           std::vector<double> x) {
  constexpr double kStep = 1e-5;
  REQUIRE(static_cast<size_t>(analytic.elements()) == x.size());
  Expected expected;
  double largest = 0;
  for (double& each : x) {
    const double kept = each;
    each = kept + kStep;
    const double above = objective(x);
    each = kept - kStep;
    const double below = objective(x);
    each = kept;
    const double slope = (above - below) / (2 * kStep);
    expected.push(slope, 0);
    largest = std::max(largest, std::fabs(slope));
  }
  for (double& tolerance : expected.tolerance) {
    tolerance = 64 * unit_roundoff(DType::kF32) * largest + 1e-8;
  }
  check_close(name, analytic, expected);
}

// sum_i weight[i] * value[i]: turns outputs into one number whose gradient is known to be `weight`.
inline double weighted(const std::vector<double>& value, const std::vector<double>& weight) {
  double sum = 0;
  for (size_t i = 0; i < value.size(); ++i) sum += value[i] * weight[i];
  return sum;
}

}  // namespace degu::testing
