// Entry points of kernels/api/rmsnorm.h: filled by each backend (CPU: per instruction set).
#pragma once

#include "kernels/api/rows.h"
#include "tensor/context.h"

namespace degu {

struct RmsNormKernels {
  void (*forward)(Context&, AnyView x_TD, AnyView gain_D, double eps, AnyView y_TD, AnyView inv_T);
  void (*backward)(Context&, AnyView dy_TD, AnyView x_TD, AnyView gain_D, AnyView inv_T,
                   const UnitSegments&, AnyView add_TD, AnyView dx_TD, AnyView dgain_SD, Write);
};

}  // namespace degu
