// Entry points of kernels/api/elementwise.h per instruction set.
#pragma once

#include "kernels/cpu/isa.h"
#include "tensor/context.h"

namespace degu {

struct ElementwiseKernels {
  void (*cast)(Context&, AnyView from, AnyView to);
  void (*add)(Context&, AnyView a, AnyView b, AnyView out);
  void (*scale)(Context&, AnyView x, float factor);
  void (*fill_zero)(Context&, AnyView x);
};

}  // namespace degu
