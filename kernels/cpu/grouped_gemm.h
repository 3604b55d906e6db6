// Entry points per instruction set; contracts in kernels/api/grouped_gemm.h.
#pragma once

#include "kernels/api/grouped_gemm.h"
#include "kernels/cpu/isa.h"

namespace degu::cpu {

struct GroupedGemmKernels {
  void (*forward)(Context& context, const Activation& x_RD, const PackedWeight& w,
                  const RowGroups& groups, AnyView y_RF, const Epilogue& epilogue);
};

struct GroupedGemmDwKernels {
  void (*weight_gradient)(Context& context, AnyView dy_RF, AnyView x_RD,
                          const UnitSegments& segments, AnyView dw_SEFD, Write write);
};

}  // namespace degu::cpu
