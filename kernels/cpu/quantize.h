// Entry points of kernels/api/quantize.h per instruction set.
#pragma once

#include "kernels/api/quantize.h"
#include "kernels/cpu/isa.h"

namespace degu::cpu {

struct QuantizeKernels {
  void (*rows)(Context& context, AnyView x_RD, const Activation& out);
};

}  // namespace degu::cpu
