#include "moe/routers/hash.h"

#include <algorithm>

#include "base/random.h"
#include "kernels/api/elementwise.h"
#include "tensor/device.h"
#include "tensor/trace.h"

namespace degu {

HashRouter::HashRouter(const ModelShape& shape)
    : experts_(shape.moe.experts),
      top_k_(shape.moe.top_k),
      gate_(static_cast<float>((shape.moe.renormalize ? 1.0 / shape.moe.top_k : 1.0) *
                               shape.moe.gate_scale)),
      expert_VK_(static_cast<size_t>(shape.vocab) * static_cast<size_t>(shape.moe.top_k)) {
  const RandomStream stream(/*seed=*/0, "hash router");
  std::vector<int32_t> order(static_cast<size_t>(experts_));
  for (int64_t v = 0; v < shape.vocab; ++v) {
    for (size_t e = 0; e < order.size(); ++e) order[e] = static_cast<int32_t>(e);
    for (int64_t k = 0; k < top_k_; ++k) {  // the first K steps of a Fisher-Yates shuffle
      const auto at = static_cast<size_t>(k);
      const uint64_t pick =
          stream.below(static_cast<uint64_t>(v * top_k_ + k), static_cast<uint64_t>(experts_ - k));
      std::swap(order[at], order[at + pick]);
      expert_VK_[static_cast<size_t>(v * top_k_ + k)] = order[at];
    }
  }
}

void HashRouter::route(Context& context, AnyView, std::span<const int32_t> tokens_T,
                       const RouterActivations& saved) const {
  const TraceScope span(context, "hash_router");
  const OnHost experts = OnHost::unfilled(context, saved.expert_TK);
  const OnHost gates = OnHost::unfilled(context, saved.gate_TK);
  const OnHost scores = OnHost::unfilled(context, saved.score_TE);
  const View<int32_t> expert_TK = experts.as<int32_t>();
  const View<float> gate_TK = gates.as<float>();
  const View<float> score_TE = scores.as<float>();
  fill_zero(context, saved.logit_TE);
  fill_zero(context, saved.lse_T);
  std::fill_n(score_TE.data(), score_TE.elements(), 0.0f);
  for (size_t t = 0; t < tokens_T.size(); ++t) {
    for (int64_t k = 0; k < top_k_; ++k) {
      const auto row = static_cast<int64_t>(t);
      const int32_t e = expert_VK_[static_cast<size_t>(tokens_T[t] * top_k_ + k)];
      expert_TK(row, k) = e;
      gate_TK(row, k) = gate_;
      score_TE(row, e) = 1.0f / static_cast<float>(top_k_);
    }
  }
  for (const OnHost* filled : {&experts, &gates, &scores}) filled->put_back();
}

void HashRouter::replay(Context& context, AnyView replay_TK, const RouterActivations& saved) const {
  // A token's experts follow from the token alone, so its gates stay.
  const View<const int32_t> recorded = replay_TK.as<const int32_t>();
  const OnHost experts(context, saved.expert_TK);
  const View<int32_t> expert_TK = experts.as<int32_t>();
  for (int64_t t = 0; t < recorded.dim(0); ++t) {
    if (recorded(t, 0) < 0) continue;
    for (int64_t k = 0; k < top_k_; ++k) expert_TK(t, k) = recorded(t, k);
  }
  experts.put_back();
}

std::unique_ptr<Router> make_hash_router(const ModelShape& shape, const RouterParameters&) {
  return std::make_unique<HashRouter>(shape);
}

}  // namespace degu
