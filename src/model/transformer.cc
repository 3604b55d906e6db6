#include "model/transformer.h"

#include <algorithm>

#include "kernels/api/embedding.h"
#include "kernels/api/rmsnorm.h"
#include "tensor/device.h"

namespace degu {
namespace {

AttentionParameters attention_parameters(ParameterSet& all, const std::string& block) {
  const std::string name = block + "attention.";
  return {.norm = &all.get(block + "attention_norm"),
          .wq = &all.get(name + "wq"),
          .wk = &all.get(name + "wk"),
          .wv = &all.get(name + "wv"),
          .wo = &all.get(name + "wo"),
          .q_norm = all.find(name + "q_norm"),
          .k_norm = all.find(name + "k_norm")};
}

FeedForwardParameters feed_forward_parameters(ParameterSet& all, const std::string& prefix) {
  return {.gate = all.find(prefix + "gate"),
          .up = all.find(prefix + "up"),
          .down = all.find(prefix + "down")};
}

MoeParameters moe_parameters(ParameterSet& all, const std::string& prefix) {
  return {
      .router = {.weight = all.find(prefix + "router"), .bias = all.find(prefix + "router_bias")},
      .gate = &all.get(prefix + "gate"),
      .up = &all.get(prefix + "up"),
      .down = &all.get(prefix + "down"),
      .shared = feed_forward_parameters(all, prefix + "shared_")};
}

}  // namespace

BalanceNumbers::BalanceNumbers(Downloads& downloads, const Activations& saved, int64_t groups)
    : groups_(groups) {
  if (!saved.balance_loss_L2G) return;
  loss_L2G_ = downloads.add(saved.balance_loss_L2G);
  load_LE_ = downloads.add(saved.balance_load_LE);
  for (const BlockActivations& block : saved.blocks) {
    if (!block.moe.balance) continue;
    const DispatchState& dispatch = block.moe.dispatch;
    layers_.push_back({dispatch.dropped, static_cast<int64_t>(dispatch.rounds.size()) - 1});
  }
}

std::vector<BalanceRecord> BalanceNumbers::records() const {
  std::vector<BalanceRecord> records;
  for (const Layer& layer : layers_) {
    const auto l = static_cast<int64_t>(records.size());
    const double* aux = loss_L2G_.as<const double>().row(l);
    const double* z = aux + loss_L2G_.dim(2);
    const int64_t* load = load_LE_.as<const int64_t>().row(l);
    records.push_back({.aux_G = {aux, aux + groups_},
                       .z_G = {z, z + groups_},
                       .load_E = {load, load + load_LE_.dim(1)},
                       .dropped = layer.dropped,
                       .extra_rounds = layer.extra_rounds});
  }
  return records;
}

std::vector<BalanceRecord> balance_records(Context& context, const Activations& saved,
                                           int64_t groups) {
  Downloads downloads(context);
  const BalanceNumbers numbers(downloads, saved, groups);
  downloads.wait();
  return numbers.records();
}

Transformer::Transformer(ParameterSet& parameters, const ExpertSpread& spread)
    : shape_(parameters.shape()), parameters_(parameters) {
  for (int layer = 0; layer < shape_.layers; ++layer) {
    const std::string name = "blocks." + std::to_string(layer) + ".";
    Block block{.attention = AttentionLayer(shape_, attention_parameters(parameters, name)),
                .ffn_norm = &parameters.get(name + "ffn_norm"),
                .dense = std::nullopt,
                .moe = nullptr};
    if (shape_.is_moe_layer(layer)) {
      block.moe = std::make_unique<MoeLayer>(shape_, moe_parameters(parameters, name + "moe."),
                                             spread, parameters.placement().slots(layer));
    } else {
      block.dense.emplace(feed_forward_parameters(parameters, name + "ffn."));
    }
    blocks_.push_back(std::move(block));
  }
}

int64_t Transformer::moe_layers() const {
  return std::count_if(blocks_.begin(), blocks_.end(),
                       [](const Block& block) { return block.moe != nullptr; });
}

float Transformer::logit_multiplier() const {
  if (shape_.mup_base_width == 0) return 1.0f;
  return static_cast<float>(shape_.mup_base_width) / static_cast<float>(shape_.width);
}

void Transformer::set_exchange_chunks(int64_t chunks) {
  for (Block& block : blocks_) {
    if (block.moe) block.moe->set_exchange_chunks(chunks);
  }
}

Activations Transformer::take(Arena& arena, int64_t tokens, int64_t balance_groups,
                              Keep keep) const {
  const DType type = parameters_.activation();
  const Shape stream{tokens, shape_.width};
  Activations saved;
  saved.keep = keep;
  saved.x_LTD.push_back(arena.take(type, stream));
  for (size_t l = 0; l < blocks_.size(); ++l) {
    saved.x_LTD.push_back(keep == Keep::kNothing ? saved.x_LTD.front() : arena.take(type, stream));
  }
  take_blocks(arena, type, tokens, saved);
  take_balance(arena, balance_groups, saved);
  saved.inv_T = arena.take(DType::kF32, {tokens});
  saved.h_TD = arena.take(type, stream);
  return saved;
}

void Transformer::take_balance(Arena& arena, int64_t groups, Activations& saved) const {
  const int64_t layers = moe_layers();
  if (groups == 0 || layers == 0) return;
  const int64_t experts = shape_.moe.experts;
  saved.balance_loss_L2G = arena.take(DType::kF64, {layers, 2, groups});
  saved.balance_load_LE = arena.take(DType::kI64, {layers, experts});
  const AnyView losses = saved.balance_loss_L2G.reshaped({2 * layers, groups});
  int64_t layer = 0;
  for (size_t l = 0; l < blocks_.size(); ++l) {
    if (!blocks_[l].moe) continue;
    saved.blocks[l].moe.balance = {
        .aux_G = losses.rows(2 * layer, 1).reshaped({groups}),
        .z_G = losses.rows(2 * layer + 1, 1).reshaped({groups}),
        .load_E = saved.balance_load_LE.rows(layer, 1).reshaped({experts}),
        .dscore_GE = arena.take(DType::kF32, {groups, experts})};
    ++layer;
  }
}

void Transformer::take_blocks(Arena& arena, DType type, int64_t tokens, Activations& saved) const {
  const bool share_blocks = shares_blocks(saved.keep);
  const Shape routes{tokens, shape_.moe.top_k};
  if (share_blocks && moe_layers() > 0) {
    // Read after the pass, so not in the memory that blocks share.
    saved.expert_LTK = arena.take(DType::kI32, {moe_layers(), routes[0], routes[1]});
  }
  std::optional<ExpertActivations> experts;  // shared by the layers when they alone are
  int64_t moe_layer = 0;
  for (const Block& block : blocks_) {
    if (block.moe && saved.keep == Keep::kAllButExperts && !experts) {
      experts = block.moe->take_experts(arena, type, tokens);
    }
  }
  const size_t start = arena.mark();
  size_t end = start;
  for (size_t l = 0; l < blocks_.size(); ++l) {
    if (share_blocks) arena.release(start);
    const Block& block = blocks_[l];
    BlockActivations& a = saved.blocks.emplace_back();
    a.attention = AttentionActivations::take(arena, shape_, type, tokens);
    a.x_mid_TD = arena.take(type, {tokens, shape_.width});
    a.inv_T = arena.take(DType::kF32, {tokens});
    a.h_TD = arena.take(type, {tokens, shape_.width});
    if (block.moe) {
      a.moe = block.moe->take(arena, type, tokens, experts ? &*experts : nullptr);
      if (share_blocks) {
        a.moe.router.expert_TK = saved.expert_LTK.rows(moe_layer, 1).reshaped(routes);
      }
      ++moe_layer;
    }
    if (block.dense) a.dense = FeedForwardActivations::take(arena, type, tokens, shape_.ffn_width);
    end = std::max(end, arena.mark());
  }
  arena.release(end);
}

void Transformer::forward(Context& context, const Batch& batch, const TokenGroups& groups,
                          const BalanceWeights& weights, Activations& saved) const {
  auto rows = [&](AnyView view) { return view.rows(0, batch.tokens()); };
  embed(context, parameters_.get("embedding"), batch.token_rows(), rows(saved.x_LTD[0]));
  for (size_t l = 0; l < blocks_.size(); ++l) {
    forward_block(context, l, batch, groups, weights, saved);
  }
  rmsnorm(context, rows(saved.x_LTD.back()), parameters_.get("final_norm").value, shape_.norm_eps,
          rows(saved.h_TD), rows(saved.inv_T));
}

void Transformer::forward_block(Context& context, size_t layer, const Batch& batch,
                                const TokenGroups& groups, const BalanceWeights& weights,
                                Activations& saved) const {
  const int64_t tokens = batch.tokens();
  auto rows = [&](AnyView view) { return view.rows(0, tokens); };
  const Block& block = blocks_[layer];
  BlockActivations& a = saved.blocks[layer];
  const AnyView x = rows(saved.x_LTD[layer]);
  const AnyView x_mid = rows(a.x_mid_TD);
  const AnyView y = rows(saved.x_LTD[layer + 1]);
  block.attention.forward(context, x, batch, batch.kv(layer), a.attention.rows(tokens), x_mid);
  rmsnorm(context, x_mid, block.ffn_norm->value, shape_.norm_eps, rows(a.h_TD), rows(a.inv_T));
  if (block.moe) {
    block.moe->forward(context, rows(a.h_TD), x_mid, batch, groups, weights, a.moe, y);
  } else {
    block.dense->forward(context, rows(a.h_TD), x_mid, a.dense.rows(tokens), y);
  }
}

void Transformer::backward(Context& context, const Batch& batch, const TokenGroups& groups,
                           const BalanceWeights& weights, Activations& saved, AnyView dh_TD,
                           BlockSink* sink) const {
  if (saved.keep == Keep::kNothing) {
    throw ShapeError("a backward pass after a forward pass that kept nothing for it");
  }
  const ScratchScope scope(context.scratch());
  auto rows = [&](AnyView view) { return view.rows(0, batch.tokens()); };
  const AnyView dx = dh_TD;  // the residual stream's gradient, in place throughout
  const AnyView dh = context.scratch().take(dh_TD.dtype, dh_TD.shape);

  for (size_t l = blocks_.size(); l-- > 0;) {
    if (sink) sink->begin_block(static_cast<int>(l));
    if (l + 1 == blocks_.size()) {
      Parameter& last = parameters_.get("final_norm");
      rmsnorm_backward(context, dh_TD, rows(saved.x_LTD.back()), last.value, rows(saved.inv_T),
                       groups.units, AnyView{}, dx, last.gradient, last.write);
    }
    backward_block(context, l, batch, groups, weights, saved, dx, dh);
    if (sink) sink->end_block(static_cast<int>(l));
  }
  if (sink) sink->begin_block(kNoBlock);
  Parameter& table = parameters_.get("embedding");
  embedding_backward(context, dx, batch.tokens_T, groups.units, table.gradient, table.write);
  if (sink) sink->end_block(kNoBlock);
}

void Transformer::backward_block(Context& context, size_t layer, const Batch& batch,
                                 const TokenGroups& groups, const BalanceWeights& weights,
                                 Activations& saved, AnyView dx, AnyView dh) const {
  const int64_t tokens = batch.tokens();
  const UnitSegments& units = groups.units;
  auto rows = [&](AnyView view) { return view.rows(0, tokens); };
  const Block& block = blocks_[layer];
  BlockActivations& a = saved.blocks[layer];
  // The last block's activations, and the last layer's experts', are still in the shared memory.
  const bool last = layer + 1 == blocks_.size();
  if (saved.keep == Keep::kStream && !last) {
    forward_block(context, layer, batch, groups, weights, saved);
  }
  if (block.moe) {
    const bool experts_again = saved.keep == Keep::kAllButExperts && !last;
    block.moe->backward(context, dx, rows(a.h_TD), groups, weights, a.moe, dh, experts_again);
  } else {
    block.dense->backward(context, dx, rows(a.h_TD), units, a.dense.rows(tokens), AnyView{}, dh);
  }
  rmsnorm_backward(context, dh, rows(a.x_mid_TD), block.ffn_norm->value, rows(a.inv_T), units, dx,
                   dx, block.ffn_norm->gradient, block.ffn_norm->write);
  block.attention.backward(context, dx, rows(saved.x_LTD[layer]), batch, batch.kv(layer), units,
                           a.attention.rows(tokens), dx);
}

}  // namespace degu
