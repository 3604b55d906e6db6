// How a token finds its experts. A member is one file in src/moe/routers/ and one line in
// registry.cc.
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "kernels/api/router.h"
#include "nn/linear.h"
#include "shape/model_shape.h"

namespace degu {

struct RouterActivations {
  AnyView logit_TE;   // fp32
  AnyView score_TE;   // fp32
  AnyView expert_TK;  // int32, best first
  AnyView gate_TK;    // fp32
  AnyView lse_T;      // fp32

  static RouterActivations take(Arena& arena, const MoeShape& moe, int64_t tokens);
  RouterActivations rows(int64_t count) const;
};

// Gradients that reach the router from the balancing losses (moe/balance.h).
struct BalanceGradient {
  AnyView dscore_GE;  // fp32; null: no auxiliary loss
  std::span<const int64_t> group_offsets;
  float dz = 0;  // weight of lse^2 of one token
};

struct RouterParameters {
  Parameter* weight = nullptr;  // [E, D]; null for routers without one
  Parameter* bias = nullptr;    // [E], state of bias balancing; null without it
};

class Router {
 public:
  virtual ~Router() = default;

  // Does a token's choice depend on earlier tokens and itself alone? On that token's own sequence
  // alone, whoever shares the batch? Serving refuses routers that say no.
  virtual bool causal() const = 0;
  virtual bool batch_invariant() const = 0;

  // Fills all of `saved` for the tokens with normalised residual h_TD.
  virtual void route(Context& context, AnyView h_TD, std::span<const int32_t> tokens_T,
                     const RouterActivations& saved) const = 0;
  // After `route`: tokens whose row of replay_TK does not begin with -1 take the experts in it,
  // with the gates that this router gives to those; whoever replays its own choice keeps the same
  // bits.
  virtual void replay(Context& context, AnyView replay_TK,
                      const RouterActivations& saved) const = 0;
  // Adds the gradient of h to dh_TD and writes that of the router's weights.
  virtual void backward(Context& context, AnyView h_TD, const RouterActivations& saved,
                        AnyView dgate_TK, const BalanceGradient& balance, const UnitSegments& units,
                        AnyView dh_TD) const = 0;
};

// The member that shape.moe.router names.
std::unique_ptr<Router> make_router(const ModelShape& shape, const RouterParameters& parameters);

}  // namespace degu
