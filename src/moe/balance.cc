#include "moe/balance.h"

#include <numeric>

#include "tensor/device.h"

namespace degu {

void measure_balance(Context& context, const RouterActivations& routed, Score score,
                     std::span<const int64_t> group_offsets, const BalanceWeights& weights,
                     AnyView dscore_GE, BalanceRecord& record) {
  const ScratchScope scope(context.scratch());
  const auto groups = static_cast<int64_t>(group_offsets.size()) - 1;
  const int64_t experts = routed.score_TE.dim(1);
  const auto top_k = static_cast<double>(routed.expert_TK.dim(1));
  const AnyView counts = context.scratch().take(DType::kI64, {groups, experts});
  const AnyView score_sums = context.scratch().take(DType::kF32, {groups, experts});
  router_balance(context, routed.score_TE, routed.expert_TK, group_offsets, score, counts,
                 score_sums);
  const OnHost counts_host(context, counts), score_sums_host(context, score_sums);
  const OnHost lse_host(context, routed.lse_T);
  const OnHost dscore_host = OnHost::unfilled(context, dscore_GE);
  const View<const int64_t> count_GE = counts_host.as<int64_t>();
  const View<const float> score_sum_GE = score_sums_host.as<float>();
  const View<const float> lse_T = lse_host.as<float>();

  record.aux_G.assign(static_cast<size_t>(groups), 0.0);
  record.z_G.assign(static_cast<size_t>(groups), 0.0);
  record.load_E.assign(static_cast<size_t>(experts), 0);
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
        dscore_host.as<float>()(g, e) = static_cast<float>(weights.aux_per_group * scale * count);
      }
    }
    for (int64_t t = group_offsets[i]; t < group_offsets[i + 1]; ++t) {
      record.z_G[i] += static_cast<double>(lse_T[t]) * static_cast<double>(lse_T[t]);
    }
  }
  dscore_host.put_back();
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
