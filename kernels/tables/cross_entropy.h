// Entry points of kernels/api/cross_entropy.h: filled by each backend (CPU: per instruction set).
#pragma once

#include <span>

#include "tensor/context.h"

namespace degu {

struct CrossEntropyKernels {
  // Checked by kernels/api/cross_entropy.cc: shapes, types, targets below V.
  void (*loss)(Context& context, AnyView logit_TV, std::span<const int32_t> target_T, float scale,
               float z_loss, AnyView loss_T, AnyView dlogit_TV);
};

}  // namespace degu
