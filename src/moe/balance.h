// What keeps experts evenly loaded: the auxiliary loss, the router z-loss and the bias update.
//
//   aux = weight * sum over MoE layers of mean over balance groups g of E * sum_e f_ge * P_ge
//         f_ge  share of the group's routed slots that chose expert e
//         P_ge  mean score of e over the group's tokens          (Fedus et al. 2021, arXiv
//         2101.03961)
//   z   = weight * sum over MoE layers of mean over tokens of logsumexp(logits)^2
//         (Zoph et al. 2022, arXiv 2202.08906)
//   bias_e += rate * sign(mean load - load_e) once per step, from integer counts of the whole step
//         (balance_bias in kernels/api/router.h)
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

// What a layer's router measured in a pass, on the context's device: the host reads it after the
// pass (model/transformer.h). Sums are kept per balance group, in double precision, so that the
// step's totals can be added in group order on every layout. Null views: not measured.
struct BalanceActivations {
  AnyView aux_G;      // fp64: E * sum_e f_ge * P_ge
  AnyView z_G;        // fp64: sum over the group's tokens of lse^2
  AnyView load_E;     // int64: routed slots per expert
  AnyView dscore_GE;  // fp32: gradient of the weighted auxiliary loss by the scores' group sums

  explicit operator bool() const { return static_cast<bool>(aux_G); }
  // Of a pass with so many groups.
  BalanceActivations groups(int64_t count) const;
};

// The same on the host.
struct BalanceRecord {
  std::vector<double> aux_G;
  std::vector<double> z_G;
  std::vector<int64_t> load_E;
  int64_t dropped = 0;
  int64_t extra_rounds = 0;  // rounds beyond the first
};

// Fills `out` from the routing of one pass.
void measure_balance(Context& context, const RouterActivations& routed, Score score,
                     std::span<const int64_t> group_offsets, const BalanceWeights& weights,
                     const BalanceActivations& out);

}  // namespace degu
