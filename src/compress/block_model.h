// One block of a checkpoint's model, run on its own: the model's own forward pass, one layer's
// weights in memory.
#pragma once

#include <memory>
#include <string>

#include "data/reader.h"
#include "model/load.h"
#include "model/transformer.h"

namespace degu {

// "blocks.0.moe.up" of a model of one block ↔ "blocks.3.moe.up" of the whole one.
std::string block_prefix(int layer);

class BlockModel {
 public:
  // Reads block `layer` of the model `shape` from `reader`, tensors held in the schemes that
  // `scheme_of` names (by their names in the whole model). Experts are spread over `group` (null:
  // all here). Memory for passes of `most_tokens`, of which every rank of the group brings some.
  BlockModel(Context& context, CheckpointReader& reader, const ModelShape& shape, int layer,
             ExpertRange experts, Communicator* group, const SchemeOf& scheme_of,
             int64_t most_tokens);

  // x_TD is copied; leaves everything that the pass computed in activations(). Collective over the
  // group.
  void forward(Context& context, const SequenceBatch& batch, AnyView x_TD);
  const BlockActivations& activations() const { return activations_.blocks.front(); }
  AnyView output(int64_t tokens) const { return activations_.x_LTD[1].rows(0, tokens); }
  ParameterSet& parameters() { return *parameters_; }

 private:
  static void layout(Arena& arena, Context& context, const Transformer& model, int64_t tokens,
                     BlockModel* owner);

  std::unique_ptr<ParameterSet> parameters_;
  std::unique_ptr<Transformer> model_;
  Arena arena_;
  Activations activations_;
  std::unique_ptr<LocalKv> kv_;
  std::vector<int64_t> first_position_, row_offsets_;
};

}  // namespace degu
