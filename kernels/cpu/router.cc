#include "kernels/tables/router.h"

#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/sweep.h"

namespace degu {
namespace {

inline constexpr int64_t kLanes = VecF::kLanes;

// Vectors of a row of E; the last may be partial. Absent lanes read as `absent`.
inline VecF load_or(const float* p, int64_t left, float absent) {
  if (left >= kLanes) return load(p);
  const int n = static_cast<int>(left);
  return keep_first(load(p, n), n, broadcast(absent));
}
inline void store_some(float* p, int64_t left, VecF value) {
  left >= kLanes ? store(p, value) : store(p, value, static_cast<int>(left));
}

// sum_e f(e) in one chain of vectors: an order fixed by E. `f` gives 0 in absent lanes.
template <class F>
float sum_experts(int64_t experts, F&& f) {
  VecF sum = zero();
  for (int64_t e = 0; e < experts; e += kLanes) sum = sum + f(e, experts - e);
  return sum_lanes(sum);
}

// Scores of one token; returns log sum_e exp(logit).
float score_token(const float* logit, int64_t experts, Score kind, float* score) {
  VecF top = broadcast(-std::numeric_limits<float>::infinity());
  for (int64_t e = 0; e < experts; e += kLanes) {
    top = max(top, load_or(logit + e, experts - e, -std::numeric_limits<float>::infinity()));
  }
  const float highest = max_lanes(top);
  const VecF shift = broadcast(highest);
  VecF sum = zero();
  for (int64_t e = 0; e < experts; e += kLanes) {
    const int64_t left = experts - e;
    VecF raised = exp(load_or(logit + e, left, 0.0f) - shift);
    if (left < kLanes) raised = keep_first(raised, static_cast<int>(left), zero());
    sum = sum + raised;
    store_some(score + e, left, raised);
  }
  const float total = sum_lanes(sum);
  const VecF one = broadcast(1.0f);
  const VecF divisor = broadcast(total);
  for (int64_t e = 0; e < experts; e += kLanes) {
    const int64_t left = experts - e;
    const VecF value = kind == Score::kSoftmax
                           ? load_or(score + e, left, 0.0f) / divisor
                           : one / (one + exp(zero() - load_or(logit + e, left, 0.0f)));
    store_some(score + e, left, value);
  }
  return highest + std::log(total);
}

// The K largest keys in descending order, ties to the lower index; NaN counts as below everything.
void choose(const float* score, const float* bias, int64_t experts, int64_t top_k, int32_t* expert,
            float* key) {
  int64_t held = 0;
  for (int64_t e = 0; e < experts; ++e) {
    float value = bias != nullptr ? score[e] + bias[e] : score[e];
    if (std::isnan(value)) value = -std::numeric_limits<float>::infinity();
    if (held == top_k && !(value > key[held - 1])) continue;
    int64_t k = held < top_k ? held++ : held - 1;
    for (; k > 0 && value > key[k - 1]; --k) {
      key[k] = key[k - 1];
      expert[k] = expert[k - 1];
    }
    key[k] = value;
    expert[k] = static_cast<int32_t>(e);
  }
}

void topk(Context& context, AnyView logit_TE, AnyView bias_E, const RouterOptions& options,
          AnyView score_TE, AnyView expert_TK, AnyView gate_TK, AnyView lse_T) {
  const int64_t tokens = logit_TE.dim(0);
  const int64_t experts = logit_TE.dim(1);
  const int64_t top_k = options.top_k;
  const auto* logit = static_cast<const float*>(logit_TE.data);
  const auto* bias = static_cast<const float*>(bias_E.data);
  auto* score = static_cast<float*>(score_TE.data);
  auto* expert = static_cast<int32_t*>(expert_TK.data);
  auto* gate = static_cast<float*>(gate_TK.data);
  auto* lse = static_cast<float*>(lse_T.data);
  sweep_rows(context, tokens, experts * 8, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* row = score + t * experts;
      int32_t* chosen = expert + t * top_k;
      float* g = gate + t * top_k;
      lse[t] = score_token(logit + t * experts, experts, options.score, row);
      choose(row, bias, experts, top_k, chosen, g);
      float sum = 0.0f;
      for (int64_t k = 0; k < top_k; ++k) {
        g[k] = row[chosen[k]];
        sum += g[k];
      }
      for (int64_t k = 0; k < top_k; ++k) {
        g[k] = (options.renormalize ? g[k] / sum : g[k]) * options.gate_scale;
      }
    }
  });
}

// What one token's backward pass reads.
struct TokenGradient {
  const float* logit;
  const float* score;
  const int32_t* expert;
  const float* dgate;
  const float*
      dshare;  // gradient of each expert's summed score (softmax) or share (sigmoid); may be null
  float lse;
};

// dL/dscore of one token into `ds`.
void score_gradient(const TokenGradient& in, int64_t experts, const RouterOptions& options,
                    float* ds) {
  const int64_t top_k = options.top_k;
  if (in.dshare == nullptr) {
    std::fill_n(ds, experts, 0.0f);
  } else if (options.score == Score::kSoftmax) {
    std::copy_n(in.dshare, experts, ds);
  } else {  // share_e = s_e / S: dL/ds_e = (dshare_e - sum_j dshare_j share_j) / S
    const float total = sum_experts(
        experts, [&](int64_t e, int64_t left) { return load_or(in.score + e, left, 0.0f); });
    const float mean =
        sum_experts(experts,
                    [&](int64_t e, int64_t left) {
                      return load_or(in.score + e, left, 0.0f) * load_or(in.dshare + e, left, 0.0f);
                    }) /
        total;
    for (int64_t e = 0; e < experts; ++e) ds[e] = (in.dshare[e] - mean) / total;
  }
  if (!options.renormalize) {
    for (int64_t k = 0; k < top_k; ++k) ds[in.expert[k]] += in.dgate[k] * options.gate_scale;
    return;
  }
  // gate_k = scale * s_k / S over the chosen: dL/ds_k = scale * (dgate_k - sum_j dgate_j s_j / S) /
  // S
  float sum = 0.0f, weighted = 0.0f;
  for (int64_t k = 0; k < top_k; ++k) {
    sum += in.score[in.expert[k]];
    weighted += in.dgate[k] * in.score[in.expert[k]];
  }
  const float mean = weighted / sum;
  for (int64_t k = 0; k < top_k; ++k) {
    ds[in.expert[k]] += (in.dgate[k] - mean) * options.gate_scale / sum;
  }
}

// dL/dlogit of one token, in place of dL/dscore in `d`.
void logit_gradient(const TokenGradient& in, int64_t experts, Score kind, float dz, float* d) {
  const float mean =
      kind == Score::kSigmoid ? 0.0f : sum_experts(experts, [&](int64_t e, int64_t left) {
        return load_or(in.score + e, left, 0.0f) * load_or(d + e, left, 0.0f);
      });
  const VecF one = broadcast(1.0f);
  const VecF m = broadcast(mean);
  const VecF lse = broadcast(in.lse);
  const VecF z = broadcast(2.0f * dz * in.lse);
  for (int64_t e = 0; e < experts; e += kLanes) {
    const int64_t left = experts - e;
    const VecF s = load_or(in.score + e, left, 0.0f);
    const VecF ds = load_or(d + e, left, 0.0f);
    VecF out = kind == Score::kSoftmax ? s * (ds - m) : ds * (s * (one - s));
    if (dz != 0.0f) {
      const VecF softmax =
          kind == Score::kSoftmax ? s : exp(load_or(in.logit + e, left, 0.0f) - lse);
      out = fma(z, softmax, out);
    }
    store_some(d + e, left, out);
  }
}

void topk_backward(Context& context, AnyView logit_TE, AnyView score_TE, AnyView expert_TK,
                   AnyView lse_T, AnyView dgate_TK, AnyView dscore_GE,
                   std::span<const int64_t> group_offsets, float dz, const RouterOptions& options,
                   AnyView dlogit_TE) {
  const int64_t tokens = logit_TE.dim(0);
  const int64_t experts = logit_TE.dim(1);
  const int64_t top_k = options.top_k;
  const auto* dscore = static_cast<const float*>(dscore_GE.data);
  auto* out = static_cast<float*>(dlogit_TE.data);
  sweep_rows(context, tokens, experts * 8, [&](int64_t begin, int64_t end) {
    size_t group = 0;
    for (int64_t t = begin; t < end; ++t) {
      if (dscore != nullptr) {
        while (group_offsets[group + 1] <= t) ++group;
      }
      const TokenGradient in{
          .logit = static_cast<const float*>(logit_TE.data) + t * experts,
          .score = static_cast<const float*>(score_TE.data) + t * experts,
          .expert = static_cast<const int32_t*>(expert_TK.data) + t * top_k,
          .dgate = static_cast<const float*>(dgate_TK.data) + t * top_k,
          .dshare = dscore != nullptr ? dscore + static_cast<int64_t>(group) * experts : nullptr,
          .lse = static_cast<const float*>(lse_T.data)[t]};
      float* d = out + t * experts;
      score_gradient(in, experts, options, d);
      logit_gradient(in, experts, options.score, dz, d);
    }
  });
}

void balance(Context& context, AnyView score_TE, AnyView expert_TK,
             std::span<const int64_t> group_offsets, Score kind, AnyView count_GE,
             AnyView score_sum_GE) {
  const int64_t experts = score_TE.dim(1);
  const int64_t top_k = expert_TK.dim(1);
  const auto groups = static_cast<int64_t>(group_offsets.size()) - 1;
  const auto* score = static_cast<const float*>(score_TE.data);
  const auto* expert = static_cast<const int32_t*>(expert_TK.data);
  context.parallel_for(groups, [&](int64_t g, int) {
    const int64_t begin = group_offsets[static_cast<size_t>(g)];
    const int64_t end = group_offsets[static_cast<size_t>(g) + 1];
    int64_t* count = static_cast<int64_t*>(count_GE.data) + g * experts;
    float* sum = static_cast<float*>(score_sum_GE.data) + g * experts;
    std::fill_n(count, experts, int64_t{0});
    std::fill_n(sum, experts, 0.0f);
    for (int64_t i = begin * top_k; i < end * top_k; ++i) ++count[expert[i]];
    for (int64_t t = begin; t < end; ++t) {
      const float* row = score + t * experts;
      const float total =
          kind == Score::kSoftmax ? 1.0f : sum_experts(experts, [&](int64_t e, int64_t left) {
            return load_or(row + e, left, 0.0f);
          });
      const VecF divisor = broadcast(total);
      for (int64_t e = 0; e < experts; e += kLanes) {
        const int64_t left = experts - e;
        const VecF s = load_or(row + e, left, 0.0f);
        const VecF share = kind == Score::kSoftmax ? s : s / divisor;
        store_some(sum + e, left, load_or(sum + e, left, 0.0f) + share);
      }
    }
  });
}

// Tens of groups and experts: one thread.
void losses(Context&, AnyView count_GE, AnyView score_sum_GE, AnyView lse_T,
            std::span<const int64_t> group_offsets, int64_t top_k, double aux_weight, AnyView aux_G,
            AnyView z_G, AnyView load_E, AnyView dscore_GE) {
  const View<const int64_t> count = count_GE.as<const int64_t>();
  const View<const float> score_sum = score_sum_GE.as<const float>();
  const View<const float> lse = lse_T.as<const float>();
  const View<double> aux = aux_G.as<double>(), z = z_G.as<double>();
  const View<int64_t> load = load_E.as<int64_t>();
  const View<float> dscore = dscore_GE.as<float>();
  const int64_t experts = count.dim(1);
  std::fill_n(load.data(), experts, int64_t{0});
  for (int64_t g = 0; g < count.dim(0); ++g) {
    const int64_t begin = group_offsets[static_cast<size_t>(g)];
    const int64_t end = group_offsets[static_cast<size_t>(g) + 1];
    const auto tokens = static_cast<double>(end - begin);
    const double scale = begin == end ? 0
                                      : static_cast<double>(experts) /
                                            (static_cast<double>(top_k) * tokens * tokens);
    double loss = 0, squares = 0;
    for (int64_t e = 0; e < experts; ++e) {
      const auto rows = static_cast<double>(count(g, e));
      loss += scale * rows * static_cast<double>(score_sum(g, e));
      dscore(g, e) = static_cast<float>(aux_weight * scale * rows);
      load[e] += count(g, e);
    }
    for (int64_t t = begin; t < end; ++t) {
      squares += static_cast<double>(lse[t]) * static_cast<double>(lse[t]);
    }
    aux[g] = loss;
    z[g] = squares;
  }
}

void bias(Context&, AnyView load_E, float rate, const float* scale, AnyView bias_E) {
  if (scale != nullptr && std::isnan(*scale)) return;
  const View<const int64_t> load = load_E.as<const int64_t>();
  const View<float> bias = bias_E.as<float>();
  const int64_t experts = load.elements();
  const int64_t total = std::accumulate(load.data(), load.data() + experts, int64_t{0});
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t excess = load[e] * experts - total;
    bias[e] += excess > 0 ? -rate : excess < 0 ? rate : 0.0f;
  }
}

}  // namespace

template <>
const RouterKernels cpu::Table<RouterKernels, cpu::kThisIsa>::value = {&topk, &topk_backward,
                                                                       &balance, &losses, &bias};

}  // namespace degu
