#include "moe/routers/topk.h"

#include "kernels/api/elementwise.h"
#include "tensor/device.h"

namespace degu {
namespace {

// The fp32 copy of h that the router's products read; h itself when it is fp32 already.
AnyView as_fp32(Context& context, AnyView h_TD) {
  if (h_TD.dtype == DType::kF32) return h_TD;
  const AnyView copy = context.scratch().take(DType::kF32, h_TD.shape);
  cast(context, h_TD, copy);
  return copy;
}

}  // namespace

TopKRouter::TopKRouter(const ModelShape& shape, const RouterParameters& parameters, Score score)
    : options_{.score = score,
               .top_k = shape.moe.top_k,
               .renormalize = shape.moe.renormalize,
               .gate_scale = static_cast<float>(shape.moe.gate_scale)},
      p_(parameters),
      multiplier_(shape.mup_base_width > 0
                      ? static_cast<float>(shape.mup_base_width) / static_cast<float>(shape.width)
                      : 1.0f) {}

void TopKRouter::route(Context& context, AnyView h_TD, std::span<const int32_t>,
                       const RouterActivations& saved) const {
  const ScratchScope scope(context.scratch());
  linear(context, as_fp32(context, h_TD), *p_.weight, saved.logit_TE);
  if (multiplier_ != 1.0f) scale(context, saved.logit_TE, multiplier_);
  router_topk(context, saved.logit_TE, p_.bias != nullptr ? p_.bias->value : AnyView{}, options_,
              saved.score_TE, saved.expert_TK, saved.gate_TK, saved.lse_T);
}

void TopKRouter::replay(Context& context, AnyView replay_TK, const RouterActivations& saved) const {
  const View<const int32_t> recorded = replay_TK.as<const int32_t>();
  const OnHost scores(context, saved.score_TE), experts(context, saved.expert_TK);
  const OnHost gates(context, saved.gate_TK);
  const View<const float> score_TE = scores.as<const float>();
  const View<int32_t> expert_TK = experts.as<int32_t>();
  const View<float> gate_TK = gates.as<float>();
  context.parallel_for(recorded.dim(0), [&](int64_t t, int) {
    if (recorded(t, 0) < 0) return;
    // As router_topk: summed in the order of the slots.
    float sum = 0.0f;
    for (int64_t k = 0; k < options_.top_k; ++k) {
      expert_TK(t, k) = recorded(t, k);
      gate_TK(t, k) = score_TE(t, recorded(t, k));
      sum += gate_TK(t, k);
    }
    for (int64_t k = 0; k < options_.top_k; ++k) {
      gate_TK(t, k) =
          (options_.renormalize ? gate_TK(t, k) / sum : gate_TK(t, k)) * options_.gate_scale;
    }
  });
  experts.put_back();
  gates.put_back();
}

void TopKRouter::backward(Context& context, AnyView h_TD, const RouterActivations& saved,
                          AnyView dgate_TK, const BalanceGradient& balance,
                          const UnitSegments& units, AnyView dh_TD) const {
  const ScratchScope scope(context.scratch());
  const AnyView dlogit = context.scratch().take(DType::kF32, saved.logit_TE.shape);
  router_topk_backward(context, saved.logit_TE, saved.score_TE, saved.expert_TK, saved.gate_TK,
                       saved.lse_T, dgate_TK, balance.dscore_GE, balance.group_offsets, balance.dz,
                       options_, dlogit);
  if (multiplier_ != 1.0f) scale(context, dlogit, multiplier_);
  linear_backward(context, dlogit, as_fp32(context, h_TD), units, *p_.weight, dh_TD,
                  {.add_RF = dh_TD});
}

std::unique_ptr<Router> make_softmax_router(const ModelShape& shape, const RouterParameters& p) {
  return std::make_unique<TopKRouter>(shape, p, Score::kSoftmax);
}

std::unique_ptr<Router> make_sigmoid_router(const ModelShape& shape, const RouterParameters& p) {
  return std::make_unique<TopKRouter>(shape, p, Score::kSigmoid);
}

}  // namespace degu
