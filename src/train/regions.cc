#include "train/regions.h"

#include <algorithm>
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

std::vector<int64_t> exchange_chunks(const RunConfig& config) {
  const ClusterConfig& c = config.cluster;
  if (c.exchange_chunks > 0) return {c.exchange_chunks};
  std::vector<int64_t> all = {1};
  const int64_t experts_here = config.model.moe.experts / c.expert_parallel;
  while (all.back() < 8 && 2 * all.back() <= experts_here) all.push_back(2 * all.back());
  return all;
}

ExpertSpread expert_spread(const RunConfig& config, Communicator& group) {
  return {.group = &group,
          .unit_slots = config.train.reproducible,
          .headroom = config.cluster.headroom,
          .chunks = exchange_chunks(config).back()};
}

ExpertRange local_experts(const Layout& layout, const ModelShape& shape) {
  if (shape.moe.experts == 0) return {};
  const Range range = layout.experts(shape.moe.experts);
  return {range.begin, range.size()};
}

HeadChunks training_head_chunks(const StepPlan& plan, int64_t vocab) {
  return head_chunks(plan.units_per_micro, plan.micro_tokens(), vocab, kHeadLogitBytes);
}

TrainedRegions::TrainedRegions(Context& context, const RunConfig& config, const StepPlan& plan,
                               const Layout& layout, ParameterSet& parameters) {
  for (const ParameterRegion& region : parameters.regions()) {
    if (!config.train.shard_gradients) {
      add_region(context, config, layout, parameters, region);
      continue;
    }
    for (ParameterRegion& part : split_by_block(region, config.model.layers)) {
      add_region(context, config, layout, parameters, std::move(part));
    }
  }
  kept_ = Arena::measuring(context.device());
  for (int i = 0; i < (config.train.overlap_reduction ? 2 : 1); ++i) {
    shared_.push_back(std::make_unique<GradientTurns>(Arena::measuring(context.device())));
  }
  make_gradients(context, config, plan, layout);
  kept_ = Arena(kept_.peak(), context.device());
  for (const auto& turns : shared_) {
    turns->memory() = Arena(turns->memory().peak(), context.device());
  }
  make_gradients(context, config, plan, layout);
}

void TrainedRegions::add_region(Context& context, const RunConfig& config, const Layout& layout,
                                const ParameterSet& parameters, ParameterRegion region) {
  const bool experts = region.kind == RegionKind::kExperts;
  TrainedRegion state{.region = std::make_unique<ParameterRegion>(std::move(region)),
                      .first_norm_block = norm_blocks_};
  state.opens = block_of(*state.region->members.back(), config.model.layers);
  state.closes = block_of(*state.region->members.front(), config.model.layers);
  const int shards = experts ? layout.edp_size() : layout.ranks();
  FlatLayout flat = flat_layout(*state.region, parameters.experts(), shards);
  norm_blocks_ += flat.all_blocks();
  state.adamw = std::make_unique<ShardedAdamW>(
      std::move(flat), experts ? layout.edp_rank() : layout.rank(), context.device(),
      moment_type(config.train.optimizer.moments), static_cast<uint64_t>(config.train.seed));
  all_.push_back(std::move(state));
}

void TrainedRegions::make_gradients(Context& context, const RunConfig& config, const StepPlan& plan,
                                    const Layout& layout) {
  const bool tree = config.train.reproducible;
  const int64_t chunks = training_head_chunks(plan, config.model.vocab).chunks;
  // In shared memory the dense part of a block and its experts lie side by side, and the embedding
  // and the head, which no block needs, in the same place.
  size_t dense_end = 0;
  // A backward pass goes from the head over the blocks to the embedding.
  const auto turn = [&](const TrainedRegion& state, bool of_head) -> GradientTurns& {
    const int steps = of_head                   ? 0
                      : state.opens == kNoBlock ? config.model.layers + 1
                                                : config.model.layers - state.opens;
    return *shared_[static_cast<size_t>(steps) % shared_.size()];
  };
  for (TrainedRegion& state : all_) {
    const RegionKind kind = state.region->kind;
    const bool experts = kind == RegionKind::kExperts;
    const int64_t slots = experts && tree ? layout.expert_parallel() : 1;
    const int shards = experts ? layout.edp_size() : layout.ranks();
    // What is summed over one rank has no shards, and is written where it is kept.
    const bool sharded = config.train.shard_gradients && (shards > 1 || slots > 1);
    const ShardPlace place{.layout = state.adamw->layout(),
                           .mine = state.adamw->range(),
                           .order = tree ? Order::kTree : Order::kAny};
    auto make = [&](int64_t leaves, bool of_head) {
      if (!sharded) {
        state.gradients.push_back(std::make_unique<WholeGradient>(
            context, *state.region, place, RegionLeaves{slots, leaves * plan.micro_batches, tree},
            kept_));
        return;
      }
      GradientTurns& shared = turn(state, of_head);
      shared.memory().release(experts ? dense_end : 0);
      state.gradients.push_back(std::make_unique<ShardedGradient>(
          context, *state.region, place, RegionLeaves{slots, leaves, tree}, plan.micro_batches,
          kept_, shared));
      if (kind == RegionKind::kDense) dense_end = std::max(dense_end, shared.memory().mark());
    };
    state.gradients.clear();
    const bool tied = kind == RegionKind::kEmbedding && config.model.tied_head;
    make(kind == RegionKind::kHead ? chunks : 1, kind == RegionKind::kHead);
    if (tied) make(chunks, true);
    if (tied || kind == RegionKind::kHead) head_sink_ = state.gradients.back().get();
  }
}

void TrainedRegions::reduce_over(const Mesh& mesh) {
  for (TrainedRegion& state : all_) {
    state.group = state.region->kind == RegionKind::kExperts ? &mesh.edp() : &mesh.dp();
    for (const auto& gradient : state.gradients) gradient->reduce_over(*state.group);
  }
}

void TrainedRegions::begin_block(int block) {
  for (TrainedRegion& state : all_) {
    if (state.region->kind == RegionKind::kHead || state.opens != block) continue;
    state.gradients.front()->begin_leaf();
  }
}

void TrainedRegions::end_block(int block) {
  for (TrainedRegion& state : all_) {
    if (state.region->kind == RegionKind::kHead || state.closes != block) continue;
    state.gradients.front()->end_leaf();
  }
}

size_t TrainedRegions::gradient_bytes() const {
  size_t sum = kept_.peak();
  for (const auto& turns : shared_) sum += turns->memory().peak();
  return sum;
}

size_t TrainedRegions::moment_bytes() const {
  size_t sum = 0;
  for (const TrainedRegion& state : all_)
    sum += state.adamw->m().bytes() + state.adamw->v().bytes();
  return sum;
}

}  // namespace degu
