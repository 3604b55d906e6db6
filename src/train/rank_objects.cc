#include "train/rank_objects.h"

#include "comm/sizing_comm.h"
#include "nn/head.h"

namespace degu {
namespace {

// On a device that only plans: more than any pass takes. Elsewhere nothing is taken.
constexpr size_t kPlannedSpace = size_t{1} << 46;

// Sequences of one document each.
SequenceBatch blank_batch(const StepPlan& plan) {
  SequenceBatch batch;
  batch.sequences = plan.micro_sequences;
  batch.sequence_length = plan.sequence_length;
  const auto tokens = static_cast<size_t>(batch.tokens());
  batch.tokens_T.assign(tokens, 0);
  batch.targets_T.assign(tokens, 0);
  for (int64_t s = 0; s < batch.sequences; ++s) {
    batch.document_offsets.push_back(s * batch.sequence_length);
    for (int64_t i = 0; i < batch.sequence_length; ++i) {
      batch.positions_T.push_back(static_cast<int32_t>(i));
    }
  }
  batch.document_offsets.push_back(batch.tokens());
  batch.counted_targets = batch.tokens();
  return batch;
}

}  // namespace

RankObjects::RankObjects(const RunConfig& config, const Layout& layout, DeviceType device)
    : context_({.threads = 1,
                .scratch_bytes = device == DeviceType::kPlan ? kPlannedSpace : 1,
                .device = device}),
      expert_group_(make_sizing_communicator(layout.ep_rank(), layout.expert_parallel())),
      plan_(plan_steps(config, layout)),
      parameters_(context_, config.model, activation_type(config.train.precision),
                  local_experts(layout, config.model), /*training=*/true),
      model_(parameters_, expert_spread(config, *expert_group_)),
      training_(context_, model_, plan_, plan_.micro_sequences, /*training=*/true),
      evaluation_(context_, model_, plan_, plan_.micro_sequences, /*training=*/false),
      regions_(context_, config, plan_, layout, parameters_),
      norm_(context_, regions_, plan_) {}

size_t RankObjects::rehearse() {
  DEGU_DCHECK(context_.device() == DeviceType::kPlan);
  for (TrainedRegion& state : regions_.all()) {
    // Whoever they are: on this device no exchange takes place.
    for (const auto& gradient : state.gradients) gradient->reduce_over(*expert_group_);
  }
  const SequenceBatch batch = blank_batch(plan_);
  const BalanceWeights weights{.aux_per_group = 1, .z_per_token = 1};
  training_.load(batch);
  training_.forward(context_, weights);
  head_loss_backward(context_, training_.h_TD(), parameters_.head(), model_.logit_multiplier(),
                     training_.targets(), 1.0f, training_.groups().units,
                     training_head_chunks(plan_, parameters_.shape().vocab), regions_.head_sink(),
                     training_.loss_T(), training_.dh_TD());
  training_.backward(context_, weights, training_.dh_TD(), &regions_);
  evaluation_.load(batch);
  evaluation_.forward(context_, {});
  head_loss(context_, evaluation_.h_TD(), parameters_.head(), model_.logit_multiplier(),
            evaluation_.targets(), evaluation_.loss_T());
  return context_.scratch().peak();
}

}  // namespace degu
