// Entry points of kernels/api/adamw.h: filled by each backend (CPU: per instruction set).
#pragma once

#include <span>

#include "kernels/api/adamw.h"

namespace degu {

struct AdamWKernels {
  void (*step)(Context&, const AdamWStep&, AnyView master, AnyView m, AnyView v, AnyView grad,
               AnyView weight);
  void (*block_square_sums)(Context&, AnyView grad, double* block_sums);
};

}  // namespace degu
