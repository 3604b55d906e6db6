#include "moe/layer.h"

#include <algorithm>
#include <cmath>

#include "kernels/api/permute.h"
#include "kernels/api/swiglu.h"

namespace degu {
namespace {

Score score_of(RouterKind kind) {
  return kind == RouterKind::kSigmoid ? Score::kSigmoid : Score::kSoftmax;
}

}  // namespace

MoeLayer::MoeLayer(const ModelShape& shape, const MoeParameters& parameters,
                   const ExpertSpread& spread, std::span<const int32_t> slot_E)
    : shape_(shape),
      p_(parameters),
      router_(make_router(shape, parameters.router)),
      dispatch_(spread, shape.moe.experts, shape.moe.top_k, slot_E) {
  if (shape.moe.shared_experts > 0) shared_.emplace(parameters.shared);
}

ExpertActivations MoeLayer::take_experts(Arena& arena, DType type, int64_t tokens) const {
  const MoeShape& moe = shape_.moe;
  const int64_t received = dispatch_.most_rows(tokens);
  return {.x_RD = arena.take(type, {received, shape_.width}),
          .gate_RF = arena.take(type, {received, moe.expert_width}),
          .up_RF = arena.take(type, {received, moe.expert_width}),
          .act_RF = arena.take(type, {received, moe.expert_width}),
          .y_RD = arena.take(type, {tokens * moe.top_k, shape_.width})};
}

MoeActivations MoeLayer::take(Arena& arena, DType type, int64_t tokens,
                              const ExpertActivations* experts) const {
  const MoeShape& moe = shape_.moe;
  MoeActivations a;
  a.router = RouterActivations::take(arena, moe, tokens);
  a.dispatch = dispatch_.take(arena, tokens);
  a.experts = experts != nullptr ? *experts : take_experts(arena, type, tokens);
  if (shared_) {
    a.shared = FeedForwardActivations::take(arena, type, tokens,
                                            int64_t{moe.shared_experts} * moe.expert_width);
  }
  return a;
}

int64_t MoeLayer::capacity(const TokenGroups& groups) const {
  if (shape_.moe.capacity_factor == 0) return 0;
  const auto& offsets = groups.capacity_offsets;
  int64_t longest = 0;
  for (size_t g = 0; g + 1 < offsets.size(); ++g) {
    longest = std::max(longest, offsets[g + 1] - offsets[g]);
  }
  return static_cast<int64_t>(std::ceil(shape_.moe.capacity_factor * shape_.moe.top_k *
                                        static_cast<double>(longest) / shape_.moe.experts));
}

SharedInput MoeLayer::expert_input(Context& context, AnyView h_TD, const MoeActivations& saved,
                                   const DispatchRound& round) const {
  Arena& scratch = context.scratch();
  const DispatchState& state = saved.dispatch;
  const AnyView source = state.token_R.rows(round.first_sent, round.sent_rows);
  // Rows of the token side to rows of the expert side; with all experts here they are the same.
  const auto route = [&](AnyView rows_TD, AnyView expert_RD) {
    const AnyView sent =
        routes_locally()
            ? expert_RD
            : scratch.take(rows_TD.dtype, {std::max<int64_t>(round.sent_rows, 1), rows_TD.dim(1)});
    gather_rows(context, rows_TD, source, sent.rows(0, round.sent_rows));
    dispatch_.to_experts(context, sent, state, round, expert_RD);
  };
  if (multiplies_integers(*p_.gate) && multiplies_integers(*p_.up)) {
    // A token is quantized once, and travels as codes.
    const Activation h = Activation::take(scratch, h_TD.dim(0), h_TD.dim(1));
    quantize_rows(context, h_TD, h);
    const Activation x = Activation::take(scratch, std::max<int64_t>(round.rows, 1), h_TD.dim(1));
    route(h.values, x.values);
    route(h.scales, x.scales);
    return {.plain = {}, .quantized = x};
  }
  route(h_TD, saved.experts.x_RD);
  return share_input(context, saved.experts.x_RD.rows(0, round.rows), {p_.gate, p_.up});
}

void MoeLayer::forward(Context& context, AnyView h_TD, AnyView add_TD, const Batch& batch,
                       const TokenGroups& groups, const BalanceWeights& weights,
                       MoeActivations& saved, AnyView y_TD) const {
  const ScratchScope scope(context.scratch());
  const int64_t tokens = batch.tokens();
  const RouterActivations routed = saved.router.rows(tokens);
  DispatchState& state = saved.dispatch;

  router_->route(context, h_TD, batch.tokens_T, routed);
  if (saved.replay_TK) router_->replay(context, saved.replay_TK.rows(0, tokens), routed);
  if (saved.balance) {
    measure_balance(context, routed, score_of(shape_.moe.router), groups.balance_offsets, weights,
                    saved.balance.groups(groups.balance_groups()));
  }
  dispatch_.plan(context, routed.expert_TK, capacity(groups), groups.capacity_offsets, groups.units,
                 state);
  run_experts(context, h_TD, saved);
  if (shared_) {
    shared_->forward(context, h_TD, add_TD, saved.shared.rows(tokens), y_TD);
    add_TD = y_TD;
  }
  combine(context, saved.experts.y_RD, state.row_TK.rows(0, tokens), routed.gate_TK, add_TD, y_TD);
}

void MoeLayer::enter_experts(Context& context, AnyView h_TD, const MoeActivations& saved,
                             const DispatchRound& round) const {
  const ScratchScope scope(context.scratch());
  const ExpertActivations& a = saved.experts;
  const RowGroups rows = saved.dispatch.groups(round);
  dispatch_.begin(context, saved.dispatch, round);
  const SharedInput x = expert_input(context, h_TD, saved, round);
  expert_linear(context, x, *p_.gate, rows, a.gate_RF);
  expert_linear(context, x, *p_.up, rows, a.up_RF);
  swiglu(context, a.gate_RF, a.up_RF, a.act_RF, round.rows);
}

void MoeLayer::run_experts(Context& context, AnyView h_TD, const MoeActivations& saved) const {
  const ScratchScope scope(context.scratch());
  const DispatchState& state = saved.dispatch;
  const ExpertActivations& a = saved.experts;
  const AnyView y_expert =
      routes_locally() ? a.y_RD : context.scratch().take(h_TD.dtype, a.x_RD.shape);
  for (const DispatchRound& round : state.rounds) {
    enter_experts(context, h_TD, saved, round);
    expert_linear(context, a.act_RF, *p_.down, state.groups(round), y_expert);
    dispatch_.to_tokens(context, y_expert, state, round,
                        a.y_RD.rows(round.first_sent, round.sent_rows));
  }
}

void MoeLayer::experts_backward(Context& context, const UnitSegments& units,
                                const MoeActivations& saved, const DispatchRound& round,
                                AnyView dsent) const {
  Arena& scratch = context.scratch();
  const ScratchScope scope(scratch);
  const DispatchState& state = saved.dispatch;
  const ExpertActivations& a = saved.experts;
  const RowGroups rows = state.groups(round);
  const UnitSegments segments = dispatch_.segments(context, units, state, round);
  const AnyView dexpert = routes_locally() ? dsent : scratch.take(dsent.dtype, a.x_RD.shape);
  dispatch_.to_experts(context, dsent, state, round, dexpert);

  const AnyView dact = scratch.take(dsent.dtype, a.act_RF.shape);
  const AnyView dgate = scratch.take(dsent.dtype, a.act_RF.shape);
  expert_linear_backward(context, dexpert, a.act_RF, rows, segments, *p_.down, dact);
  // The gradient of `up` takes the place of dact's; that of x takes dexpert's.
  swiglu_backward(context, dact, a.gate_RF, a.up_RF, dgate, dact, round.rows);
  expert_linear_backward(context, dact, a.x_RD, rows, segments, *p_.up, dexpert);
  expert_linear_backward(context, dgate, a.x_RD, rows, segments, *p_.gate, dexpert,
                         {.add_RF = dexpert});
  dispatch_.to_tokens(context, dexpert, state, round, dsent);
}

void MoeLayer::backward(Context& context, AnyView dy_TD, AnyView h_TD, const TokenGroups& groups,
                        const BalanceWeights& weights, const MoeActivations& saved, AnyView dh_TD,
                        bool experts_again) const {
  Arena& scratch = context.scratch();
  const ScratchScope scope(scratch);
  const int64_t tokens = h_TD.dim(0);
  const DispatchState& state = saved.dispatch;
  if (experts_again) run_experts(context, h_TD, saved);
  const AnyView row_TK = state.row_TK.rows(0, tokens);
  const RouterActivations routed = saved.router.rows(tokens);

  const AnyView dgate_TK = scratch.take(DType::kF32, routed.gate_TK.shape);
  const AnyView dsent = scratch.take(dy_TD.dtype, saved.experts.y_RD.shape);
  combine_backward(context, dy_TD, saved.experts.y_RD, row_TK, routed.gate_TK, dsent, dgate_TK);
  // The last round's rows are there, those of others are made once more.
  for (size_t i = state.rounds.size(); i-- > 0;) {
    const DispatchRound& round = state.rounds[i];
    if (i + 1 < state.rounds.size()) {
      enter_experts(context, h_TD, saved, round);
      // What one rank sends to an expert is whole in one round and adds zeros in the others.
      for (Parameter* p : {p_.gate, p_.up, p_.down}) p->write = Write::kAdd;
    }
    experts_backward(context, groups.units, saved, round,
                     dsent.rows(round.first_sent, round.sent_rows));
  }
  combine(context, dsent, row_TK, AnyView{}, AnyView{}, dh_TD);

  const bool balanced = saved.balance && weights.aux_per_group > 0;
  const BalanceGradient balance{
      .dscore_GE = balanced ? saved.balance.groups(groups.balance_groups()).dscore_GE : AnyView{},
      .group_offsets = groups.balance_offsets,
      .dz = static_cast<float>(weights.z_per_token)};
  router_->backward(context, h_TD, routed, dgate_TK, balance, groups.units, dh_TD);
  if (shared_) {
    shared_->backward(context, dy_TD, h_TD, groups.units, saved.shared.rows(tokens), dh_TD, dh_TD);
  }
}

}  // namespace degu
