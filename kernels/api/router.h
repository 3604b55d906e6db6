// Router scores, the choice of experts, and what the balancing losses need.
#pragma once

#include <span>

#include "kernels/api/rows.h"
#include "tensor/context.h"

namespace degu {

enum class Score : uint8_t { kSoftmax, kSigmoid };

struct RouterOptions {
  Score score = Score::kSoftmax;
  int top_k = 2;
  bool renormalize = true;  // gates of the chosen experts sum to one
  float gate_scale = 1.0f;
};

// score_TE = softmax_e(logit_TE) or sigmoid(logit_TE)                       fp32
// expert_TK = the K experts with the largest score + bias_E, largest first; ties to the lower
// index; int32 gate_TK = score of the chosen (bias not included), / their sum when renormalize, *
// gate_scale  fp32 lse_T = log sum_e exp(logit_TE)                                           fp32,
// for the router z-loss bias_E: fp32 or a null view (auxiliary-loss-free balancing, Wang et al.
// 2024, arXiv 2408.15664). A token with a NaN or +inf logit gets NaN scores, gates and lse
// (softmax; with sigmoid a NaN logit gives a NaN score and lse, +inf a score of 1), so its loss and
// gradients are not finite and the step is skipped; its experts are still K different valid ones, a
// NaN counting as the smallest. -inf logits score 0.
void router_topk(Context& context, AnyView logit_TE, AnyView bias_E, const RouterOptions& options,
                 AnyView score_TE, AnyView expert_TK, AnyView gate_TK, AnyView lse_T);

// dlogit_TE from dgate_TK, from dscore_GE (null view: none; row t belongs to balance group g when
// group_offsets[g] <= t < group_offsets[g+1]; the loss's gradient with respect to score_sum_GE of
// router_balance), and from the z-loss: adds 2 * dz * lse_T[t] * softmax(logit_TE).
void router_topk_backward(Context& context, AnyView logit_TE, AnyView score_TE, AnyView expert_TK,
                          AnyView gate_TK, AnyView lse_T, AnyView dgate_TK, AnyView dscore_GE,
                          std::span<const int64_t> group_offsets, float dz,
                          const RouterOptions& options, AnyView dlogit_TE);

// Per balance group: count_GE[g, e] = how many of the group's (token, slot) pairs chose e   (int64)
// and score_sum_GE[g, e] = sum over its tokens of score_TE (softmax) or score / sum_e score
// (sigmoid), fp32 in row order.
void router_balance(Context& context, AnyView score_TE, AnyView expert_TK,
                    std::span<const int64_t> group_offsets, Score score, AnyView count_GE,
                    AnyView score_sum_GE);

// What the losses make of that, for groups of n_g tokens with c_g = E / (top_k * n_g^2):
//   aux_G     = c_g * sum_e count_GE * score_sum_GE      fp64
//   z_G       = sum over the group's tokens of lse_T^2   fp64
//   load_E    = sum_g count_GE                           int64
//   dscore_GE = aux_weight * c_g * count_GE              fp32, the gradient of aux_weight * sum_g
//               aux_G with respect to score_sum_GE
// Sums are taken in an order that depends on the group alone; a group without tokens gives zeros.
void balance_losses(Context& context, AnyView count_GE, AnyView score_sum_GE, AnyView lse_T,
                    std::span<const int64_t> group_offsets, int64_t top_k, double aux_weight,
                    AnyView aux_G, AnyView z_G, AnyView load_E, AnyView dscore_GE);

// Balance without an auxiliary loss (Wang et al. 2024, arXiv 2408.15664):
//   bias_E += rate * sign(mean of load_E - load_E)
// from a step's counts (int64; exact: nothing is divided); bias fp32. scale: fp32 [1] (null: 1);
// NaN: the step is skipped, and nothing is written.
void balance_bias(Context& context, AnyView load_E, double rate, AnyView scale, AnyView bias_E);

}  // namespace degu
