// 2^x for softmaxes, in an unnamed namespace like kernels/cpu/simd.h. Cheaper than exp() there:
// arguments are at most a little above 0, the reduction is exact, and the polynomial is one degree
// shorter.
#pragma once

#include "kernels/cpu/simd.h"

namespace degu {
namespace {

inline constexpr float kLog2E = 1.4426950408889634f;

// For -1e30 <= x <= 100: x = n + r with |r| <= 1/2, and a polynomial for 2^r that is 1 at 0 with
// relative error below 3e-9 (minimax, degree 6) before rounding. 2^0 is exactly 1, below 2^-150 it
// is 0, NaN stays NaN.
inline VecF exp2_of(VecF x) {
  if constexpr (VecF::kLanes < 16) {
    x = max(broadcast(-200.0f),
            x);  // scale_by_power takes n >= -252 there; NaN as second operand stays
  }
  const VecF n = round_nearest(x);
  const VecF r = x - n;
  VecF p = broadcast(0.0001559467701510541f);
  p = fma(p, r, broadcast(0.0013406643847480061f));
  p = fma(p, r, broadcast(0.009617692976143188f));
  p = fma(p, r, broadcast(0.05550310551206981f));
  p = fma(p, r, broadcast(0.24022652782876178f));
  p = fma(p, r, broadcast(0.693147214967885f));
  p = fma(p, r, broadcast(1.0f));
  return scale_by_power(p, n);
}

}  // namespace
}  // namespace degu
