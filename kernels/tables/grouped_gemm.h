// Entry points of kernels/api/grouped_gemm.h: filled by each backend (CPU: per instruction set).
#pragma once

#include "kernels/api/grouped_gemm.h"

namespace degu {

struct GroupedGemmKernels {
  void (*forward)(Context& context, const Activation& x_RD, const PackedWeight& w,
                  const RowGroups& groups, AnyView y_RF, const Epilogue& epilogue);
};

struct GroupedGemmDwKernels {
  void (*weight_gradient)(Context& context, AnyView dy_RF, AnyView x_RD,
                          const UnitSegments& segments, AnyView dw_SEFD, Write write);
};

}  // namespace degu
