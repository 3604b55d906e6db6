// What a rank keeps for each region of its parameters while it trains: gradients, and its shard of
// the optimizer's state.
#pragma once

#include <memory>
#include <vector>

#include "comm/mesh.h"
#include "moe/dispatch.h"
#include "optim/sharded_adamw.h"
#include "train/gradients.h"
#include "train/step_plan.h"

namespace degu {

struct TrainedRegion {
  ParameterRegion* region = nullptr;
  std::vector<std::unique_ptr<GradientRegion>> gradients;  // two for a tied embedding
  std::unique_ptr<ShardedAdamW> adamw;
  int64_t first_block = 0;        // of its blocks among all regions'
  Communicator* group = nullptr;  // the ranks that hold the same members
  AnyView grad_shard;             // this step's
};

struct TrainedRegions {
  std::vector<TrainedRegion> all;
  LeafSink* head_sink = nullptr;  // where the head's gradients go
  int64_t blocks = 0;             // of all regions
};

// How training spreads experts over `group`, the expert-parallel one.
ExpertSpread expert_spread(const RunConfig& config, Communicator& group);
// The experts that this rank holds.
ExpertRange local_experts(const Layout& layout, const ModelShape& shape);
// How the head cuts the rows of one pass, so that its logits stay small.
HeadChunks training_head_chunks(const StepPlan& plan, int64_t vocab);
// Lays out what `layout`'s rank keeps; nothing is touched. Groups are left to the caller.
TrainedRegions make_regions(Context& context, const RunConfig& config, const StepPlan& plan,
                            const Layout& layout, ParameterSet& parameters);

}  // namespace degu
