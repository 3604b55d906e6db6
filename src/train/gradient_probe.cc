#include "train/gradient_probe.h"

#include <numeric>

#include "kernels/api/elementwise.h"
#include "train/gradients.h"
#include "train/pass.h"
#include "train/trainer.h"

namespace degu {
namespace {

SequenceBatch packed(View<const int32_t> tokens_NS) {
  SequenceBatch batch;
  batch.sequences = tokens_NS.dim(0);
  batch.sequence_length = tokens_NS.dim(1) - 1;
  for (int64_t n = 0; n < batch.sequences; ++n) {
    batch.document_offsets.push_back(n * batch.sequence_length);
    for (int64_t i = 0; i < batch.sequence_length; ++i) {
      batch.tokens_T.push_back(tokens_NS(n, i));
      batch.targets_T.push_back(tokens_NS(n, i + 1));
      batch.positions_T.push_back(static_cast<int32_t>(i));
    }
  }
  batch.document_offsets.push_back(batch.tokens());
  batch.counted_targets = batch.tokens();
  return batch;
}

}  // namespace

GradientProbe probe_gradients(const RunConfig& original, CheckpointReader& checkpoint,
                              View<const int32_t> tokens_NS, Context& context) {
  const StepPlan trained = plan_steps(original, Layout(0, 1, 1));
  RunConfig config = original;
  config.data.sequence_length = tokens_NS.dim(1) - 1;
  config.train.batch_sequences = tokens_NS.dim(0);
  config.train.micro_batch_sequences = 0;
  config.train.unit_sequences = trained.unit_sequences;
  config.train.reproducible = false;  // any number of units
  const StepPlan plan = plan_steps(config, Layout(0, 1, 1));

  ParameterSet parameters(context, config.model, activation_type(config.train.precision),
                          {0, config.model.moe.experts}, /*training=*/true);
  load_values(context, checkpoint, parameters);
  parameters.pack(context);
  const Transformer model(parameters);
  Pass pass(context, model, plan, plan.micro_sequences, /*training=*/true);

  const RegionLeaves once{.tree = false};
  std::vector<std::unique_ptr<GradientRegion>> sinks;
  GradientRegion* head = nullptr;
  GradientRegion* tied = nullptr;
  for (const ParameterRegion& region : parameters.regions()) {
    sinks.push_back(std::make_unique<GradientRegion>(context, region, once));
    if (region.kind == RegionKind::kHead) head = sinks.back().get();
  }
  std::unique_ptr<GradientRegion> tied_head;
  for (const ParameterRegion& region : parameters.regions()) {
    if (region.kind != RegionKind::kEmbedding || !config.model.tied_head) continue;
    tied_head = std::make_unique<GradientRegion>(context, region, once);
    tied = head = tied_head.get();
  }

  const SequenceBatch batch = packed(tokens_NS);
  const auto counted = static_cast<float>(batch.counted_targets);
  const BalanceWeights weights{
      .aux_per_group = config.train.balance.aux_loss / static_cast<double>(plan.balance_groups()),
      .z_per_token = config.train.balance.z_loss / static_cast<double>(plan.tokens_per_step())};
  pass.load(batch);
  pass.forward(context, weights);
  const HeadChunks whole{.units_per_chunk = plan.units_per_micro, .chunks = 1};
  head_loss_backward(context, pass.h_TD(), parameters.head(), model.logit_multiplier(),
                     pass.targets(), 1.0f / counted, pass.groups().units, whole, *head,
                     pass.loss_T(), pass.dh_TD());
  for (const auto& sink : sinks) {
    if (sink.get() != head) sink->begin_leaf();
  }
  pass.backward(context, weights, pass.dh_TD());
  for (const auto& sink : sinks) {
    if (sink.get() != head) sink->end_leaf();
  }

  GradientProbe probe;
  std::vector<double> sums(static_cast<size_t>(plan.micro_sequences));
  pass.sequence_losses(sums);
  probe.loss = std::accumulate(sums.begin(), sums.end(), 0.0) / static_cast<double>(counted);
  for (const BalanceRecord& record :
       balance_records(context, pass.activations(), pass.groups().balance_groups())) {
    for (double aux : record.aux_G) probe.aux_loss += weights.aux_per_group * aux;
    for (double z : record.z_G) probe.z_loss += weights.z_per_token * z;
  }
  for (size_t r = 0; r < parameters.regions().size(); ++r) {
    const ParameterRegion& region = parameters.regions()[r];
    const AnyView flat = sinks[r]->result();
    if (tied != nullptr && region.kind == RegionKind::kEmbedding) {
      add(context, flat, tied->result(), flat);
    }
    for (size_t i = 0; i < region.members.size(); ++i) {
      const Parameter& p = *region.members[i];
      if (p.spec.role == ParameterRole::kState) continue;
      Tensor gradient(DType::kF32, p.spec.shape);
      copy(context, flat.rows(region.offsets[i], p.spec.shape.elements()), gradient);
      probe.gradients.emplace_back(p.spec.name, std::move(gradient));
    }
  }
  return probe;
}

}  // namespace degu
