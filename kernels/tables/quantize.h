// Entry points of kernels/api/quantize.h: filled by each backend (CPU: per instruction set).
#pragma once

#include "kernels/api/quantize.h"

namespace degu {

struct QuantizeKernels {
  void (*rows)(Context& context, AnyView x_RD, const Activation& out);
  // A row that holds an infinity or NaN, or -1; an accelerator stops at one instead.
  int64_t (*weight)(Context& context, AnyView w_EFD, const QuantizedWeight& out);
  void (*dequantize)(Context& context, const QuantizedWeight& weight, AnyView w_EFD);
};

}  // namespace degu
