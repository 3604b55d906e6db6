#include "moe/balance.h"

#include <numeric>

namespace degu {

void measure_balance(Context& context, const RouterActivations& routed, Score score,
                     std::span<const int64_t> group_offsets, const BalanceWeights& weights,
                     AnyView dscore_GE, BalanceRecord& record) {
  const ScratchScope scope(context.scratch());
  const auto groups = static_cast<int64_t>(group_offsets.size()) - 1;
  const int64_t experts = routed.score_TE.dim(1);
  const auto top_k = static_cast<double>(routed.expert_TK.dim(1));
  const View<int64_t> count_GE = context.scratch().take<int64_t>({groups, experts});
  const View<float> score_sum_GE = context.scratch().take<float>({groups, experts});
  router_balance(context, routed.score_TE, routed.expert_TK, group_offsets, score, count_GE,
                 score_sum_GE);

  record.aux_G.assign(static_cast<size_t>(groups), 0.0);
  record.z_G.assign(static_cast<size_t>(groups), 0.0);
  record.load_E.assign(static_cast<size_t>(experts), 0);
  const View<const float> lse_T = routed.lse_T.as<float>();
  for (int64_t g = 0; g < groups; ++g) {
    const auto i = static_cast<size_t>(g);
    const auto tokens = static_cast<double>(group_offsets[i + 1] - group_offsets[i]);
    if (tokens == 0) continue;
    const double scale = static_cast<double>(experts) / (top_k * tokens * tokens);
    for (int64_t e = 0; e < experts; ++e) {
      const auto count = static_cast<double>(count_GE(g, e));
      record.aux_G[i] += scale * count * static_cast<double>(score_sum_GE(g, e));
      record.load_E[static_cast<size_t>(e)] += count_GE(g, e);
      if (dscore_GE) {
        dscore_GE.as<float>()(g, e) = static_cast<float>(weights.aux_per_group * scale * count);
      }
    }
    for (int64_t t = group_offsets[i]; t < group_offsets[i + 1]; ++t) {
      record.z_G[i] += static_cast<double>(lse_T[t]) * static_cast<double>(lse_T[t]);
    }
  }
}

void update_bias(std::span<const int64_t> load_E, double rate, View<float> bias_E) {
  const int64_t total = std::accumulate(load_E.begin(), load_E.end(), int64_t{0});
  const auto experts = static_cast<int64_t>(load_E.size());
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t excess = load_E[static_cast<size_t>(e)] * experts - total;  // exact: no division
    if (excess > 0) bias_E[e] -= static_cast<float>(rate);
    if (excess < 0) bias_E[e] += static_cast<float>(rate);
  }
}

}  // namespace degu
