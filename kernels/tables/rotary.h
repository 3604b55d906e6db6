// Entry points of kernels/api/rotary.h: filled by each backend (CPU: per instruction set).
#pragma once

#include "kernels/api/rows.h"
#include "tensor/context.h"

namespace degu {

struct RotaryKernels {
  // Checked by kernels/api/rotary.cc: positions are not negative, A is even, types are fp32 or
  // bf16.
  void (*rotate)(Context& context, AnyView x_THA, const RowNumbers& positions_T, double theta,
                 bool inverse);
};

}  // namespace degu
