// What a rank keeps for each region of its parameters while it trains: gradients, and its shard of
// the optimizer's state.
#pragma once

#include <memory>
#include <vector>

#include "comm/mesh.h"
#include "model/transformer.h"
#include "moe/dispatch.h"
#include "optim/sharded_adamw.h"
#include "train/step_gradient.h"
#include "train/step_plan.h"

namespace degu {

struct TrainedRegion {
  // A region of the ParameterSet; with train.shard_gradients what one block has of it.
  std::unique_ptr<ParameterRegion> region;
  // The backward pass goes from the model's last block down: this region's gradients are written
  // from block `opens` to block `closes`.
  int opens = kNoBlock, closes = kNoBlock;
  std::vector<std::unique_ptr<StepGradient>>
      gradients;  // two for a tied embedding, the head's last
  std::unique_ptr<ShardedAdamW> adamw;
  int64_t first_norm_block = 0;   // of its blocks among all regions'
  Communicator* group = nullptr;  // the ranks that hold the same members
  AnyView grad_shard;             // this step's
};

class TrainedRegions : public BlockSink {
 public:
  // Lays out what `layout`'s rank keeps; nothing is touched.
  TrainedRegions(Context& context, const RunConfig& config, const StepPlan& plan,
                 const Layout& layout, ParameterSet& parameters);
  // Before the first step: over which ranks each region is summed.
  void reduce_over(const Mesh& mesh);

  std::vector<TrainedRegion>& all() { return all_; }
  const std::vector<TrainedRegion>& all() const { return all_; }
  int64_t norm_blocks() const { return norm_blocks_; }
  LeafSink& head_sink() { return *head_sink_; }  // where the head's gradients go
  // The leaves of a pass: what the backward pass writes. With train.shard_gradients collective.
  void begin_block(int block) override;
  void end_block(int block) override;

  size_t gradient_bytes() const;
  size_t moment_bytes() const;

 private:
  void add_region(Context& context, const RunConfig& config, const Layout& layout,
                  const ParameterSet& parameters, ParameterRegion region);
  // Takes gradients from kept_ and shared_: run once to measure, then to lay them out.
  void make_gradients(Context& context, const RunConfig& config, const StepPlan& plan,
                      const Layout& layout);

  Arena kept_;  // taken by gradients for the step
  // Taken by gradients of different blocks, whole ones of one pass: blocks that follow one another
  // take them in turns.
  std::vector<std::unique_ptr<GradientTurns>> shared_;
  std::vector<TrainedRegion> all_;
  int64_t norm_blocks_ = 0;
  LeafSink* head_sink_ = nullptr;
};

// What cluster.exchange_chunks allows, ascending: its value alone, or those to choose from.
std::vector<int64_t> exchange_chunks(const RunConfig& config);
// How training spreads experts over `group`, the expert-parallel one: in as many chunks as may be
// wanted, for they take the most memory.
ExpertSpread expert_spread(const RunConfig& config, Communicator& group);
// The experts that this rank holds.
ExpertRange local_experts(const Layout& layout, const ModelShape& shape);
// How the head cuts the rows of one pass, so that its logits stay small.
HeadChunks training_head_chunks(const StepPlan& plan, int64_t vocab);

}  // namespace degu
