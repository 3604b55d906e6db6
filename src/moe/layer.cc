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

ExpertActivations ExpertActivations::of(const DispatchChunk& chunk) const {
  const auto rows = [&](AnyView view) { return view.rows(chunk.first_row, chunk.rows); };
  return {.x_RD = rows(x_RD),
          .gate_RF = rows(gate_RF),
          .up_RF = rows(up_RF),
          .act_RF = rows(act_RF),
          .y_RD = {}};
}

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

SharedInput MoeLayer::quantized_input(Context& context, AnyView h_TD, const MoeActivations& saved,
                                      const DispatchChunk& chunk) const {
  Arena& scratch = context.scratch();
  const DispatchState& state = saved.dispatch;
  const AnyView source = state.token_R.rows(chunk.first_sent, chunk.sent_rows);
  const Activation h = Activation::take(scratch, h_TD.dim(0), h_TD.dim(1));
  quantize_rows(context, h_TD, h);
  const Activation x = Activation::take(scratch, std::max<int64_t>(chunk.rows, 1), h_TD.dim(1));
  // With all experts here the rows of the token side are those of the expert side.
  const auto route = [&](AnyView rows_TD, AnyView expert_RD) {
    const AnyView sent = routes_locally()
                             ? expert_RD
                             : scratch.take(rows_TD.dtype, {chunk.sent_rows, rows_TD.dim(1)});
    gather_rows(context, rows_TD, source, sent.rows(0, chunk.sent_rows));
    dispatch_.to_experts(context, sent, state, chunk, expert_RD.rows(0, chunk.rows));
  };
  route(h.values, x.values);
  route(h.scales, x.scales);
  return {.plain = {}, .quantized = x};
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
  dispatch_.plan(context, routed.expert_TK, capacity(groups), groups.capacity_offsets, groups.units,
                 state, [&] {
                   if (saved.balance) {
                     measure_balance(context, routed, score_of(shape_.moe.router),
                                     groups.balance_offsets, weights,
                                     saved.balance.groups(groups.balance_groups()));
                   }
                   if (!shared_) return;
                   shared_->forward(context, h_TD, add_TD, saved.shared.rows(tokens), y_TD);
                   add_TD = y_TD;
                 });
  run_experts(context, h_TD, saved);
  combine(context, saved.experts.y_RD, state.row_TK.rows(0, tokens), routed.gate_TK, add_TD, y_TD);
}

void MoeLayer::enter_chunk(Context& context, const SharedInput& x, const MoeActivations& saved,
                           const DispatchChunk& chunk) const {
  const ExpertActivations a = saved.experts.of(chunk);
  const RowGroups rows = saved.dispatch.groups(chunk);
  expert_linear(context, x, *p_.gate, rows, a.gate_RF);
  expert_linear(context, x, *p_.up, rows, a.up_RF);
  swiglu(context, a.gate_RF, a.up_RF, a.act_RF, chunk.rows);
}

void MoeLayer::leave_chunk(Context& context, const MoeActivations& saved,
                           const DispatchChunk& chunk, AnyView y_expert) const {
  expert_linear(context, saved.experts.of(chunk).act_RF, *p_.down, saved.dispatch.groups(chunk),
                y_expert.rows(chunk.first_row, chunk.rows));
}

void MoeLayer::run_round(Context& context, AnyView h_TD, const MoeActivations& saved,
                         const DispatchRound& round, AnyView y_expert) const {
  Arena& scratch = context.scratch();
  const ScratchScope scope(scratch);
  const DispatchState& state = saved.dispatch;
  const ExpertActivations& a = saved.experts;
  const AnyView answers = a.y_RD.rows(round.first_sent, round.sent_rows);
  dispatch_.begin(context, state, round);
  if (multiplies_integers(*p_.gate) && multiplies_integers(*p_.up)) {
    const DispatchChunk& all = state.only_chunk();  // of a model that is served
    {
      const ScratchScope of_input(scratch);
      enter_chunk(context, quantized_input(context, h_TD, saved, all), saved, all);
    }
    leave_chunk(context, saved, all, y_expert);
    return dispatch_.to_tokens(context, y_expert, state, all, answers);
  }
  const AnyView sent =
      routes_locally() ? a.x_RD : scratch.take(h_TD.dtype, {round.sent_rows, h_TD.dim(1)});
  gather_rows(context, h_TD, state.token_R.rows(round.first_sent, round.sent_rows),
              sent.rows(0, round.sent_rows));
  const RoundRows rows{.sent_RD = sent, .in_RD = a.x_RD, .out_RD = y_expert, .answer_RD = answers};
  dispatch_.travel(context, state, round, rows, [&](const DispatchChunk& chunk) {
    {
      const ScratchScope of_input(scratch);
      const SharedInput x = share_input(context, a.of(chunk).x_RD, {p_.gate, p_.up});
      enter_chunk(context, x, saved, chunk);
    }
    if (y_expert) leave_chunk(context, saved, chunk, y_expert);
  });
}

void MoeLayer::run_experts(Context& context, AnyView h_TD, const MoeActivations& saved) const {
  const ScratchScope scope(context.scratch());
  const ExpertActivations& a = saved.experts;
  const AnyView y_expert =
      routes_locally() ? a.y_RD : context.scratch().take(h_TD.dtype, a.x_RD.shape);
  for (const DispatchRound& round : saved.dispatch.rounds) {
    run_round(context, h_TD, saved, round, y_expert);
  }
}

void MoeLayer::chunk_backward(Context& context, const UnitSegments& units,
                              const MoeActivations& saved, const DispatchChunk& chunk,
                              AnyView dexpert) const {
  Arena& scratch = context.scratch();
  const ScratchScope scope(scratch);
  const ExpertActivations a = saved.experts.of(chunk);
  const RowGroups rows = saved.dispatch.groups(chunk);
  const UnitSegments segments = dispatch_.segments(context, units, saved.dispatch, chunk);
  // For as many rows as there can be, which one chunk may have.
  const Shape most = saved.experts.act_RF.shape;
  const AnyView dact = scratch.take(dexpert.dtype, most).rows(0, chunk.rows);
  const AnyView dgate = scratch.take(dexpert.dtype, most).rows(0, chunk.rows);
  expert_linear_backward(context, dexpert, a.act_RF, rows, segments, *p_.down, dact);
  // The gradient of `up` takes the place of dact's; that of x takes dexpert's.
  swiglu_backward(context, dact, a.gate_RF, a.up_RF, dgate, dact, chunk.rows);
  expert_linear_backward(context, dact, a.x_RD, rows, segments, *p_.up, dexpert);
  expert_linear_backward(context, dgate, a.x_RD, rows, segments, *p_.gate, dexpert,
                         {.add_RF = dexpert});
}

void MoeLayer::round_backward(Context& context, const UnitSegments& units,
                              const MoeActivations& saved, const DispatchRound& round,
                              AnyView dsent) const {
  const ScratchScope scope(context.scratch());
  const AnyView dexpert =
      routes_locally() ? dsent : context.scratch().take(dsent.dtype, saved.experts.x_RD.shape);
  const RoundRows rows{.sent_RD = dsent, .in_RD = dexpert, .out_RD = dexpert, .answer_RD = dsent};
  dispatch_.travel(context, saved.dispatch, round, rows, [&](const DispatchChunk& chunk) {
    if (&chunk != &round.chunks.front()) add_to_gradients();
    chunk_backward(context, units, saved, chunk, dexpert.rows(chunk.first_row, chunk.rows));
  });
}

// What one rank sends to an expert is whole in one chunk of one round and adds zeros in the others.
void MoeLayer::add_to_gradients() const {
  for (Parameter* p : {p_.gate, p_.up, p_.down}) p->write = Write::kAdd;
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
      run_round(context, h_TD, saved, round, AnyView{});
      add_to_gradients();
    }
    round_backward(context, groups.units, saved, round,
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
