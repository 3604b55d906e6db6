// Entry points of kernels/api/elementwise.h: filled by each backend (CPU: per instruction set).
#pragma once

#include "tensor/context.h"

namespace degu {

struct ElementwiseKernels {
  void (*cast)(Context&, AnyView from, AnyView to);
  void (*add)(Context&, AnyView a, AnyView b, AnyView out);
  void (*scale)(Context&, AnyView x, float factor);
  void (*fill_zero)(Context&, AnyView x);
};

}  // namespace degu
