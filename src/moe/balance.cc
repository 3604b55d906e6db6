#include "moe/balance.h"

namespace degu {

BalanceActivations BalanceActivations::groups(int64_t count) const {
  return {.aux_G = aux_G.rows(0, count),
          .z_G = z_G.rows(0, count),
          .load_E = load_E,
          .dscore_GE = dscore_GE.rows(0, count)};
}

void measure_balance(Context& context, const RouterActivations& routed, Score score,
                     std::span<const int64_t> group_offsets, const BalanceWeights& weights,
                     const BalanceActivations& out) {
  const ScratchScope scope(context.scratch());
  const Shape ge = {static_cast<int64_t>(group_offsets.size()) - 1, routed.score_TE.dim(1)};
  const AnyView count_GE = context.scratch().take(DType::kI64, ge);
  const AnyView score_sum_GE = context.scratch().take(DType::kF32, ge);
  router_balance(context, routed.score_TE, routed.expert_TK, group_offsets, score, count_GE,
                 score_sum_GE);
  balance_losses(context, count_GE, score_sum_GE, routed.lse_T, group_offsets,
                 routed.expert_TK.dim(1), weights.aux_per_group, out.aux_G, out.z_G, out.load_E,
                 out.dscore_GE);
}

}  // namespace degu
