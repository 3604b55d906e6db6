// Learned top-k routing over softmax scores (Shazeer et al. 2017, arXiv 1701.06538) or sigmoid
// scores (DeepSeek-AI 2024, arXiv 2412.19437). Logits, scores and gates are fp32.
#pragma once

#include "moe/router.h"

namespace degu {

class TopKRouter : public Router {
 public:
  TopKRouter(const ModelShape& shape, const RouterParameters& parameters, Score score);

  bool causal() const override { return true; }
  bool batch_invariant() const override { return true; }
  void route(Context& context, AnyView h_TD, std::span<const int32_t> tokens_T,
             const RouterActivations& saved) const override;
  void replay(Context& context, AnyView replay_TK, const RouterActivations& saved) const override;
  void backward(Context& context, AnyView h_TD, const RouterActivations& saved, AnyView dgate_TK,
                const BalanceGradient& balance, const UnitSegments& units,
                AnyView dh_TD) const override;

 private:
  RouterOptions options_;
  RouterParameters p_;
  float multiplier_;  // muP: base width / width
};

std::unique_ptr<Router> make_softmax_router(const ModelShape&, const RouterParameters&);
std::unique_ptr<Router> make_sigmoid_router(const ModelShape&, const RouterParameters&);

}  // namespace degu
