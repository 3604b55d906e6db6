// Entry points of kernels/api/router.h: filled by each backend (CPU: per instruction set).
#pragma once

#include <span>

#include "kernels/api/router.h"

namespace degu {

struct RouterKernels {
  void (*topk)(Context&, AnyView logit_TE, AnyView bias_E, const RouterOptions&, AnyView score_TE,
               AnyView expert_TK, AnyView gate_TK, AnyView lse_T);
  void (*topk_backward)(Context&, AnyView logit_TE, AnyView score_TE, AnyView expert_TK,
                        AnyView lse_T, AnyView dgate_TK, AnyView dscore_GE,
                        std::span<const int64_t> group_offsets, float dz, const RouterOptions&,
                        AnyView dlogit_TE);
  void (*balance)(Context&, AnyView score_TE, AnyView expert_TK,
                  std::span<const int64_t> group_offsets, Score, AnyView count_GE,
                  AnyView score_sum_GE);
  void (*balance_losses)(Context&, AnyView count_GE, AnyView score_sum_GE, AnyView lse_T,
                         std::span<const int64_t> group_offsets, int64_t top_k, double aux_weight,
                         AnyView aux_G, AnyView z_G, AnyView load_E, AnyView dscore_GE);
  void (*balance_bias)(Context&, AnyView load_E, float rate, const float* scale, AnyView bias_E);
};

}  // namespace degu
