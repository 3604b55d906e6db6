// Checkpoints of random values, and what models loaded from checkpoints compute.
#pragma once

#include <nlohmann/json.hpp>

#include "comm/communicator.h"
#include "compress/quantize.h"
#include "config/yaml.h"
#include "model/transformer.h"
#include "tests/model/tiny_model.h"
#include "tests/support/kernel_testing.h"

namespace degu::testing {

inline ContextOptions options(int threads = 2) {
  return {.threads = threads, .scratch_bytes = size_t{256} << 20};
}

// Widths that the scale groups do not divide, a shared expert, a dense layer.
inline ModelShape odd_shape(bool tied = true) {
  const ModelShape shape{.vocab = 67,
                         .width = 40,
                         .layers = 3,
                         .heads = 2,
                         .kv_heads = 1,
                         .head_width = 18,
                         .ffn_width = 52,
                         .tied_head = tied,
                         .init_std = 0.15,
                         .moe = {.experts = 4,
                                 .top_k = 2,
                                 .expert_width = 36,
                                 .shared_experts = 1,
                                 .first_dense_layers = 1}};
  return shape.resolved();
}

struct ConfigFile {
  ModelShape model;
  void fields(Fields& f) { f("model", model, ""); }
};

// A checkpoint of random fp32 values.
inline void write_checkpoint(const std::string& folder, const ModelShape& shape) {
  Context context(options());
  ParameterSet parameters(context, shape, DType::kBF16, {0, shape.moe.experts}, true);
  parameters.initialise(context, 1);
  const std::unique_ptr<Communicator> self = make_self_communicator();
  CheckpointWriter writer(*self, folder, {{"next_step", 3}});
  for (const auto& p : parameters.all()) {
    writer.add(std::string(kModelPrefix) + p->spec.name, p->value);
  }
  writer.attach("config.yaml", to_yaml(ConfigFile{shape}));
  writer.commit();
}

// fp32 logits of a batch.
inline Tensor logits(Context& context, const std::string& folder, const TinyBatch& data, Keep keep,
                     Communicator* group = nullptr, DType type = DType::kBF16) {
  CheckpointReader reader(folder);
  const ModelShape shape = checkpoint_shape(reader);
  const int64_t here = shape.moe.experts / (group == nullptr ? 1 : group->size());
  const int64_t first = group == nullptr ? 0 : here * group->rank();
  const auto parameters = load_for_inference(context, reader, shape, type, {first, here});
  const Transformer model(*parameters, {.group = group});
  Arena arena(size_t{64} << 20);
  const auto tokens = static_cast<int64_t>(data.tokens.size());
  Activations saved = model.take(arena, tokens, 4, keep);
  LocalKv kv(context, arena, shape, type, tokens, shape.layers);
  const Batch batch = data.view(kv.views());
  kv.assign(context, batch.sequences);
  model.forward(context, batch, data.groups(), {}, saved);
  Tensor out(DType::kF32, {tokens, shape.vocab});
  head_logits(context, saved.h_TD.rows(0, tokens), parameters->head(), model.logit_multiplier(),
              out);
  return out;
}

inline double worst_difference(const AnyView& a, const AnyView& b) {
  double worst = 0;
  for (int64_t i = 0; i < a.elements(); ++i) {
    worst = std::max(worst, std::fabs(element(a, i) - element(b, i)));
  }
  return worst;
}

}  // namespace degu::testing
