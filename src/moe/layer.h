// The Mixture-of-Experts feed-forward: y = add + shared(h) + sum_k gate_k * expert_k(h).
#pragma once

#include <memory>
#include <optional>

#include "moe/balance.h"
#include "moe/dispatch.h"
#include "moe/router.h"
#include "nn/batch.h"
#include "nn/feed_forward.h"

namespace degu {

struct MoeParameters {
  RouterParameters router;
  Parameter* gate = nullptr;     // [e, F, D]: this rank's experts, by slot
  Parameter* up = nullptr;       // [e, F, D]
  Parameter* down = nullptr;     // [e, D, F]
  FeedForwardParameters shared;  // null without shared experts
};

// What the rows of routed experts leave: the most of a layer's memory. The expert side has room for
// one round (moe/dispatch.h); after several it holds the last one's rows.
struct ExpertActivations {
  AnyView x_RD;                    // expert side: inputs of this rank's experts
  AnyView gate_RF, up_RF, act_RF;  // expert side
  AnyView y_RD;                    // token side: what came back, sorted by expert

  // The expert side of one chunk.
  ExpertActivations of(const DispatchChunk& chunk) const;
};

struct MoeActivations {
  RouterActivations router;
  // int32 [T, K], set by the caller before a pass: tokens whose entry is not -1 take these experts,
  // best first, instead of the router's own choice (train/replay.h). Null: none do.
  AnyView replay_TK;
  DispatchState dispatch;
  ExpertActivations experts;
  FeedForwardActivations shared;
  BalanceActivations balance;
};

class MoeLayer {
 public:
  // `slot_E`: in which slots the experts of `parameters` lie (moe/expert_placement.h); empty: as
  // numbered.
  MoeLayer(const ModelShape& shape, const MoeParameters& parameters, const ExpertSpread& spread,
           std::span<const int32_t> slot_E = {});

  // `tokens`: the most in one pass. `experts`: memory that layers share; without it the layer has
  // its own. What the router measures has its place set by the caller, who reads it.
  MoeActivations take(Arena& arena, DType type, int64_t tokens,
                      const ExpertActivations* experts = nullptr) const;
  ExpertActivations take_experts(Arena& arena, DType type, int64_t tokens) const;
  const Router& router() const { return *router_; }
  // Between passes: ExpertSpread::chunks from now on.
  void set_exchange_chunks(int64_t chunks) { dispatch_.set_chunks(chunks); }

  // y may be add. Collective over the expert-parallel group.
  void forward(Context& context, AnyView h_TD, AnyView add_TD, const Batch& batch,
               const TokenGroups& groups, const BalanceWeights& weights, MoeActivations& saved,
               AnyView y_TD) const;
  // dh_TD: gradient of h; overwritten. `experts_again`: saved.experts holds another layer's by now
  // and is made once more.
  void backward(Context& context, AnyView dy_TD, AnyView h_TD, const TokenGroups& groups,
                const BalanceWeights& weights, const MoeActivations& saved, AnyView dh_TD,
                bool experts_again = false) const;

 private:
  // From the residual rows to saved.experts, by the routes in saved.dispatch.
  void run_experts(Context& context, AnyView h_TD, const MoeActivations& saved) const;
  // One round of it: up to act_RF, and with `y_expert`, rows of the expert side, to y_RD.
  void run_round(Context& context, AnyView h_TD, const MoeActivations& saved,
                 const DispatchRound& round, AnyView y_expert) const;
  // The products of one chunk up to act_RF.
  void enter_chunk(Context& context, const SharedInput& x, const MoeActivations& saved,
                   const DispatchChunk& chunk) const;
  // And its last one, to `y_expert`, rows of the expert side.
  void leave_chunk(Context& context, const MoeActivations& saved, const DispatchChunk& chunk,
                   AnyView y_expert) const;
  // dsent: gradient of the round's rows as they came back; becomes that of the rows as they left.
  void round_backward(Context& context, const UnitSegments& units, const MoeActivations& saved,
                      const DispatchRound& round, AnyView dsent) const;
  // dexpert: gradient of a chunk's results; becomes that of its inputs.
  void chunk_backward(Context& context, const UnitSegments& units, const MoeActivations& saved,
                      const DispatchChunk& chunk, AnyView dexpert) const;
  void add_to_gradients() const;
  int64_t capacity(const TokenGroups& groups) const;
  // The rows of h_TD that this rank's experts read, as codes: a token is quantized once, before its
  // rows travel.
  SharedInput quantized_input(Context& context, AnyView h_TD, const MoeActivations& saved,
                              const DispatchChunk& chunk) const;
  bool routes_locally() const { return dispatch_.ranks() == 1; }

  ModelShape shape_;
  MoeParameters p_;
  std::unique_ptr<Router> router_;
  Dispatch dispatch_;
  std::optional<FeedForward> shared_;
};

}  // namespace degu
