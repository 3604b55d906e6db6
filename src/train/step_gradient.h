// From the leaves of a step to this rank's shard of one region's gradient, summed over the ranks
// that hold the region.
#pragma once

#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "optim/flat_layout.h"
#include "train/gradients.h"

namespace degu {

// Which elements of the sum each rank of the group keeps. The layout outlives its users.
struct ShardPlace {
  const FlatLayout& layout;
  FlatRange mine;
  Order order;  // of the sum over ranks
};

class StepGradient : public LeafSink {
 public:
  StepGradient(Context& context, const ShardPlace& place) : context_(context), place_(place) {}
  // The ranks that hold the same members; before the first leaf. end_leaf and shard are collective
  // over it.
  void reduce_over(Communicator& group) { group_ = &group; }
  // After the step's last leaf: this rank's shard of the sum, until the next leaf.
  virtual AnyView shard() = 0;

 protected:
  Context& context() const { return context_; }
  int64_t shard_elements() const { return place_.mine.elements(); }
  AnyView own_part(AnyView all) const { return all.rows(place_.mine.begin, shard_elements()); }
  // This rank's shard of the sum of the ranks' `all`, to `out`: own_part(all), or memory apart.
  Work reduce(AnyView all, AnyView out);

 private:
  Context& context_;
  ShardPlace place_;
  Communicator* group_ = nullptr;
};

// Keeps the whole sum of this rank's leaves until the end of the step and reduces that.
class WholeGradient : public StepGradient {
 public:
  // `leaves`: of the step; `kept`: memory for the step.
  WholeGradient(Context& context, const ParameterRegion& region, const ShardPlace& place,
                const RegionLeaves& leaves, Arena& kept)
      : StepGradient(context, place), sum_(context, region, leaves, &kept) {}

  void begin_leaf() override { sum_.begin_leaf(); }
  void end_leaf() override { sum_.end_leaf(); }
  AnyView shard() override;

 private:
  GradientRegion sum_;
};

class ShardedGradient;

// Memory that several gradients use in turns, each from the first leaf of a pass until its sum is
// reduced over the ranks.
class GradientTurns {
 public:
  explicit GradientTurns(Arena memory) : memory_(std::move(memory)) {}
  Arena& memory() { return memory_; }
  // Waits for the reductions that still read the memory.
  void vacate();
  // `gradient` is being reduced.
  void occupy(ShardedGradient& gradient) { reduced_.push_back(&gradient); }

 private:
  Arena memory_;
  std::vector<ShardedGradient*> reduced_;
};

// Reduces each pass's sum when its last leaf is there, and joins the passes' shards
// (train.shard_gradients; ZeRO stage 2). For units in UnitOrder::kPassMajor. The reduction goes on
// beside what is computed, until its memory is wanted by the next or `shard` is called.
class ShardedGradient : public StepGradient {
 public:
  // `leaves`: of one pass; `kept`: memory for the step; `shared`, which outlives the gradient:
  // where a pass's sum lies.
  ShardedGradient(Context& context, const ParameterRegion& region, const ShardPlace& place,
                  const RegionLeaves& leaves, int64_t passes, Arena& kept, GradientTurns& shared);

  void begin_leaf() override;
  void end_leaf() override;
  AnyView shard() override;
  // Waits for the reduction that is under way, if there is one.
  void finish();

 private:
  int64_t leaves_;
  int64_t done_ = 0;  // of the present pass
  GradientTurns& shared_;
  GradientRegion of_pass_;
  LeafTree shards_;
  AnyView reduced_;  // where the shard comes to lie; null when nothing is under way
  Work reduction_;
};

}  // namespace degu
