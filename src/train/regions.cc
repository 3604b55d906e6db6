#include "train/regions.h"

#include <utility>

namespace degu {
namespace {

constexpr size_t kHeadLogitBytes = size_t{64} << 20;  // of fp32 logits alive at once

FlatLayout flat_layout(const ParameterRegion& region, ExpertRange experts, int shards) {
  std::vector<FlatMember> members;
  for (const Parameter* p : region.members) {
    FlatMember m{.piece_elements = p->value.elements(),
                 .rate_multiplier = p->spec.rate_multiplier,
                 .decay = p->spec.decay,
                 .trained = p->spec.role != ParameterRole::kState,
                 .name = p->spec.name};
    if (p->spec.role == ParameterRole::kExperts) {
      m.piece_elements = p->spec.shape[1] * p->spec.shape[2];
      m.pieces = experts.count;
      m.first_piece = experts.begin;
      m.all_pieces = p->spec.shape[0];
    }
    members.push_back(m);
  }
  return FlatLayout(std::move(members), shards);
}

}  // namespace

ExpertSpread expert_spread(const RunConfig& config, Communicator& group) {
  return {.group = &group,
          .unit_slots = config.train.reproducible,
          .headroom = config.cluster.headroom};
}

ExpertRange local_experts(const Layout& layout, const ModelShape& shape) {
  if (shape.moe.experts == 0) return {};
  const Range range = layout.experts(shape.moe.experts);
  return {range.begin, range.size()};
}

HeadChunks training_head_chunks(const StepPlan& plan, int64_t vocab) {
  return head_chunks(plan.units_per_micro, plan.micro_tokens(), vocab, kHeadLogitBytes);
}

TrainedRegions make_regions(Context& context, const RunConfig& config, const StepPlan& plan,
                            const Layout& layout, ParameterSet& parameters) {
  const bool tree = config.train.reproducible;
  const int64_t head_leaves =
      plan.micro_batches * training_head_chunks(plan, config.model.vocab).chunks;
  TrainedRegions result;
  for (ParameterRegion& region : parameters.regions()) {
    const bool experts = region.kind == RegionKind::kExperts;
    TrainedRegion state{.region = &region, .first_block = result.blocks};
    const int64_t slots = experts && tree ? layout.expert_parallel() : 1;
    auto make = [&](int64_t leaves) {
      state.gradients.push_back(
          std::make_unique<GradientRegion>(context, region, slots, leaves, tree));
    };
    const bool tied = region.kind == RegionKind::kEmbedding && config.model.tied_head;
    make(region.kind == RegionKind::kHead ? head_leaves : plan.micro_batches);
    if (tied) make(head_leaves);
    if (tied || region.kind == RegionKind::kHead) result.head_sink = state.gradients.back().get();

    const int shards = experts ? layout.edp_size() : layout.ranks();
    FlatLayout flat = flat_layout(region, parameters.experts(), shards);
    result.blocks += flat.all_blocks();
    state.adamw = std::make_unique<ShardedAdamW>(
        std::move(flat), experts ? layout.edp_rank() : layout.rank(), context.device(),
        moment_type(config.train.optimizer.moments), static_cast<uint64_t>(config.train.seed));
    result.all.push_back(std::move(state));
  }
  return result;
}

}  // namespace degu
