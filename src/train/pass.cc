#include "train/pass.h"

namespace degu {
namespace {

// Row offsets of groups of `sequences` packed sequences each.
void group_offsets(const SequenceBatch& data, int64_t sequences, std::vector<int64_t>& offsets) {
  offsets.clear();
  for (int64_t s = 0; s < data.sequences; s += sequences) {
    offsets.push_back(s * data.sequence_length);
  }
  offsets.push_back(data.tokens());
}

}  // namespace

Pass::Pass(Context& context, const Transformer& model, const StepPlan& plan, int64_t sequences,
           bool training)
    : context_(context), model_(model), plan_(plan), training_(training) {
  const int64_t tokens = sequences * plan.sequence_length;
  const int64_t groups = (sequences + plan.balance_sequences - 1) / plan.balance_sequences;
  Arena counter = Arena::measuring(context.device());
  layout(counter, context, model, plan, tokens, groups, training, nullptr);
  arena_ = Arena(counter.used(), context.device());
  layout(arena_, context, model, plan, tokens, groups, training, this);
}

void Pass::layout(Arena& arena, Context& context, const Transformer& model, const StepPlan& plan,
                  int64_t tokens, int64_t groups, bool training, Pass* pass) {
  const Keep keep = training ? kept_with(plan.recompute) : Keep::kNothing;
  Activations activations = model.take(arena, tokens, training ? groups : 0, keep);
  const DType type = activations.h_TD.dtype;
  std::optional<LocalKv> kv;
  if (!training || plan.attention == AttentionBy::kOwn) {
    kv.emplace(context, arena, model.shape(), type, tokens,
               shares_blocks(keep) ? 1 : model.shape().layers);
  }
  const AnyView loss = arena.take(DType::kF32, {tokens});
  const AnyView dh = training ? arena.take(type, {tokens, model.shape().width}) : AnyView{};
  if (pass == nullptr) return;
  pass->activations_ = std::move(activations);
  pass->kv_ = std::move(kv);
  pass->loss_T_ = loss;
  pass->dh_TD_ = dh;
}

void Pass::load(const SequenceBatch& data) {
  // Without gradients all rows are one unit, so that ranks of one pass may hold different numbers
  // of them.
  group_offsets(data, training_ ? plan_.unit_sequences : data.sequences, unit_offsets_);
  group_offsets(data, plan_.balance_sequences, balance_offsets_);
  group_offsets(data, plan_.capacity_sequences, capacity_offsets_);
  first_position_.assign(data.document_offsets.size() - 1, 0);
  batch_ = {.tokens_T = data.tokens_T,
            .positions_T = data.positions_T,
            .sequences = {.offsets = data.document_offsets, .first_position = first_position_},
            .kv_L = kv_ ? kv_->views() : std::span<const KvView>(),
            .packed_attention = !kv_};
  groups_ = {.units = {.offsets = unit_offsets_,
                       .groups = 1,
                       .slots = 1,
                       .units = static_cast<int64_t>(unit_offsets_.size()) - 1},
             .balance_offsets = balance_offsets_,
             .capacity_offsets = capacity_offsets_};
  targets_T_ = data.targets_T;
  if (kv_) kv_->assign(context_, batch_.sequences);
}

void Pass::forward(Context& context, const BalanceWeights& weights) {
  model_.forward(context, batch_, groups_, weights, activations_);
}

void Pass::backward(Context& context, const BalanceWeights& weights, AnyView dh_TD,
                    BlockSink* sink) {
  model_.backward(context, batch_, groups_, weights, activations_, dh_TD, sink);
}

void Pass::sequence_losses(std::span<double> out) const {
  sequence_losses(host_loss_T().as<const float>(), out);
}

void Pass::sequence_losses(View<const float> loss, std::span<double> out) const {
  for (size_t s = 0; s < out.size(); ++s) {
    double sum = 0;
    for (int64_t i = 0; i < plan_.sequence_length; ++i) {
      sum += static_cast<double>(loss[static_cast<int64_t>(s) * plan_.sequence_length + i]);
    }
    out[s] = sum;
  }
}

}  // namespace degu
