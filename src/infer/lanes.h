// Where passes run: on this rank alone, or on all ranks of an expert-parallel group.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "infer/runner.h"

namespace degu {

// One lane per rank: its pages and its part of each pass. Experts are spread over the ranks, and
// every token's rows travel to them as in training; attention and the cache stay in the lane.
class Lanes {
 public:
  virtual ~Lanes() = default;
  virtual int count() const = 0;
  virtual Context& context() = 0;
  virtual const ModelShape& shape() const = 0;
  virtual const PassLimits& limits() const = 0;
  virtual int32_t pages() const = 0;  // per lane
  // One plan per lane, one output each. Views are valid until the next pass.
  virtual std::vector<PassOutput> run(std::span<const PassPlan> plans) = 0;
};

class LocalLane : public Lanes {
 public:
  LocalLane(Context& context, ModelRunner& runner) : context_(context), runner_(runner) {}
  int count() const override { return 1; }
  Context& context() override { return context_; }
  const ModelShape& shape() const override { return runner_.shape(); }
  const PassLimits& limits() const override { return runner_.limits(); }
  int32_t pages() const override { return runner_.memory().pages(); }
  std::vector<PassOutput> run(std::span<const PassPlan> plans) override {
    return {runner_.run(plans.front())};
  }

 private:
  Context& context_;
  ModelRunner& runner_;
};

// Rank 0 of the group holds the engine: it broadcasts each pass's plans, all ranks run theirs, and
// logits and experts come back to it. The others call `follow`, which returns when rank 0's
// GroupLanes is destroyed.
//
// A rank that dies shows as a CommError on the others at their next exchange.
class GroupLanes : public Lanes {
 public:
  // Rank 0 only. Pages and limits must be the same on all ranks.
  GroupLanes(Communicator& group, Context& context, ModelRunner& runner);
  // What it keeps for the logits and experts of all lanes.
  static size_t gather_bytes(const ModelShape& shape, const PassLimits& limits, int ranks);
  ~GroupLanes() override;
  int count() const override { return group_.size(); }
  Context& context() override { return context_; }
  const ModelShape& shape() const override { return runner_.shape(); }
  const PassLimits& limits() const override { return runner_.limits(); }
  int32_t pages() const override { return runner_.memory().pages(); }
  std::vector<PassOutput> run(std::span<const PassPlan> plans) override;

  // Every other rank: runs what rank 0 sends until it ends.
  static void follow(Communicator& group, Context& context, ModelRunner& runner);

 private:
  Communicator& group_;
  Context& context_;
  ModelRunner& runner_;
  Arena arena_;  // what all lanes bring
  AnyView logit_RV_;
  AnyView expert_LRK_;
};

}  // namespace degu
