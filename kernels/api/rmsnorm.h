// Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv 1910.07467).
#pragma once

#include "kernels/api/rows.h"
#include "tensor/context.h"

namespace degu {

// inv_T[t] = 1 / sqrt(mean_d x_TD[t,d]^2 + eps);   y_TD[t,d] = x_TD[t,d] * inv_T[t] * gain_D[d]
// x, y: fp32 or bf16, the same type; y may be x. gain_D fp32. inv_T fp32 (null view: not kept).
void rmsnorm(Context& context, AnyView x_TD, AnyView gain_D, double eps, AnyView y_TD,
             AnyView inv_T);

// dx_TD = inv * (gain * dy - x * inv^2 * mean_d(gain * dy * x)) + add_TD     (add_TD may be a null
// view,
//         or dx itself: the gradient that the residual stream already carries)
// dgain_SD[s, d] = tree over units of sum_t dy * x * inv     fp32, [slots, D] or [D]
void rmsnorm_backward(Context& context, AnyView dy_TD, AnyView x_TD, AnyView gain_D, AnyView inv_T,
                      const UnitSegments& segments, AnyView add_TD, AnyView dx_TD, AnyView dgain_SD,
                      Write write = Write::kOverwrite);

}  // namespace degu
