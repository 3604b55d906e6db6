// What keeps experts evenly loaded: the auxiliary loss, the router z-loss and the bias update.
//
//   aux = weight * sum over MoE layers of mean over balance groups g of E * sum_e f_ge * P_ge
//         f_ge  share of the group's routed slots that chose expert e
//         P_ge  mean score of e over the group's tokens          (Fedus et al. 2021, arXiv
//         2101.03961)
//   z   = weight * sum over MoE layers of mean over tokens of logsumexp(logits)^2
//         (Zoph et al. 2022, arXiv 2202.08906)
//   bias_e += rate * sign(mean load - load_e) once per step, from integer counts of the whole step
//         (Wang et al. 2024, arXiv 2408.15664)
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/api/router.h"
#include "moe/router.h"

namespace degu {

// Weights of one step's losses; zero where off.
struct BalanceWeights {
  double aux_per_group = 0;  // aux_loss / balance groups in the step
  double z_per_token = 0;    // z_loss / tokens in the step
};

// What one layer measured over one forward pass. Sums are kept per balance group, in double
// precision, so that the step's totals can be added in group order on every layout.
struct BalanceRecord {
  std::vector<double> aux_G;    // E * sum_e f_ge * P_ge
  std::vector<double> z_G;      // sum over the group's tokens of lse^2
  std::vector<int64_t> load_E;  // routed slots per expert
  int64_t dropped = 0;
};

// Fills the record from the routing of one pass and, when `dscore_GE` is not null, the gradient of
// the weighted auxiliary loss with respect to the scores' group sums.
void measure_balance(Context& context, const RouterActivations& routed, Score score,
                     std::span<const int64_t> group_offsets, const BalanceWeights& weights,
                     AnyView dscore_GE, BalanceRecord& record);

// One step of bias balancing. load_E: counts of the whole step, over all ranks.
void update_bias(std::span<const int64_t> load_E, double rate, View<float> bias_E);

}  // namespace degu
