// Entry points of kernels/api/swiglu.h: filled by each backend (CPU: per instruction set).
#pragma once

#include "tensor/context.h"

namespace degu {

// `n` elements from the start of each view.
struct SwigluKernels {
  void (*forward)(Context&, AnyView gate, AnyView up, AnyView act, int64_t n);
  void (*backward)(Context&, AnyView dact, AnyView gate, AnyView up, AnyView dgate, AnyView dup,
                   int64_t n);
};

}  // namespace degu
