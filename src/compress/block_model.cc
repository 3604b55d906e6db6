#include "compress/block_model.h"

#include <cstring>

namespace degu {
namespace {

ModelShape one_block(ModelShape shape, int layer) {
  if (!shape.is_moe_layer(layer)) shape.moe = {};
  shape.moe.first_dense_layers = 0;
  shape.layers = 1;
  // Then nothing but the block is packed; the tables of embedding and head stay address space.
  shape.tied_head = false;
  return shape;
}

// The name in the whole model, or "" for what is no part of the block.
std::string whole_name(const std::string& name, int layer) {
  const std::string one = block_prefix(0);
  return name.starts_with(one) ? block_prefix(layer) + name.substr(one.size()) : std::string();
}

}  // namespace

std::string block_prefix(int layer) {
  return "blocks." + std::to_string(layer) + ".";
}

BlockModel::BlockModel(Context& context, CheckpointReader& reader, const ModelShape& shape,
                       int layer, ExpertRange experts, Communicator* group,
                       const SchemeOf& scheme_of, int64_t most_tokens) {
  const ModelShape block = one_block(shape, layer);
  const SchemeOf scheme_here = [&](const ParameterSpec& spec) {
    ParameterSpec whole = spec;
    whole.name = whole_name(spec.name, layer);
    return whole.name.empty() ? Scheme::kBf16 : scheme_of(whole);
  };
  const bool routed = block.moe.experts > 0;
  parameters_ = std::make_unique<ParameterSet>(context, block, DType::kBF16,
                                               routed ? experts : ExpertRange{}, scheme_here);
  load_parameters(
      context, reader, scheme_here,
      [&](const ParameterSpec& spec) {
        const std::string name = whole_name(spec.name, layer);
        return name.empty() ? name : std::string(kModelPrefix) + name;
      },
      *parameters_);
  model_ =
      std::make_unique<Transformer>(*parameters_, ExpertSpread{.group = routed ? group : nullptr});
  Arena counter = Arena::measuring();
  layout(counter, context, *model_, most_tokens, nullptr);
  arena_ = Arena(counter.used());
  layout(arena_, context, *model_, most_tokens, this);
}

void BlockModel::layout(Arena& arena, Context& context, const Transformer& model, int64_t tokens,
                        BlockModel* owner) {
  Activations activations = model.take(arena, tokens, /*balance_groups=*/0, Keep::kAll);
  auto kv = std::make_unique<LocalKv>(context, arena, model.shape(), DType::kBF16, tokens, 1);
  if (owner == nullptr) return;
  owner->activations_ = std::move(activations);
  owner->kv_ = std::move(kv);
}

void BlockModel::forward(Context& context, const SequenceBatch& batch, AnyView x_TD) {
  first_position_.assign(batch.document_offsets.size() - 1, 0);
  row_offsets_ = {0, batch.tokens()};
  const Batch view{
      .tokens_T = batch.tokens_T,
      .positions_T = batch.positions_T,
      .sequences = {.offsets = batch.document_offsets, .first_position = first_position_},
      .kv_L = kv_->views()};
  kv_->assign(context, view.sequences);
  const TokenGroups groups{.units = {.offsets = row_offsets_, .groups = 1, .slots = 1, .units = 1},
                           .balance_offsets = row_offsets_,
                           .capacity_offsets = row_offsets_};
  if (x_TD.bytes() > 0) std::memcpy(activations_.x_LTD[0].data, x_TD.data, x_TD.bytes());
  model_->forward_block(context, 0, view, groups, {}, activations_);
}

}  // namespace degu
