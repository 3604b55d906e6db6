// Routing by token identity (Roller et al. 2021, arXiv 2106.04426): the baseline without a learned
// router. The K experts of a vocabulary entry are K distinct ones drawn from a fixed random stream;
// gates are equal.
#pragma once

#include <vector>

#include "moe/router.h"

namespace degu {

class HashRouter : public Router {
 public:
  explicit HashRouter(const ModelShape& shape);

  bool causal() const override { return true; }
  bool batch_invariant() const override { return true; }
  void route(Context& context, AnyView h_TD, std::span<const int32_t> tokens_T,
             const RouterActivations& saved) const override;
  void replay(Context& context, AnyView replay_TK, const RouterActivations& saved) const override;
  void backward(Context&, AnyView, const RouterActivations&, AnyView, const BalanceGradient&,
                const UnitSegments&, AnyView) const override {}

 private:
  int64_t experts_;
  int64_t top_k_;
  float gate_;
  std::vector<int32_t> expert_VK_;
};

std::unique_ptr<Router> make_hash_router(const ModelShape&, const RouterParameters&);

}  // namespace degu
