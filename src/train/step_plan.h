// The arithmetic of a run, derived once from its configuration: how long it is and how a step is
// cut.
#pragma once

#include <cstdint>

#include "comm/mesh.h"
#include "optim/schedule.h"
#include "train/train_config.h"

namespace degu {

struct StepPlan {
  int64_t steps = 0;
  int64_t batch_sequences = 0;
  int64_t sequence_length = 0;
  int64_t unit_sequences = 0;
  int64_t units = 0;            // per step, over all ranks
  int64_t micro_batches = 1;    // passes per rank and step
  int64_t micro_sequences = 0;  // per pass and rank
  int64_t units_per_micro = 0;
  UnitOrder unit_order = UnitOrder::kRankMajor;
  int64_t balance_sequences = 0;   // per balance group
  int64_t capacity_sequences = 0;  // per capacity group
  Recompute recompute = Recompute::kNone;
  AttentionBy attention = AttentionBy::kOwn;
  Schedule schedule;

  int64_t tokens_per_step() const { return batch_sequences * sequence_length; }
  int64_t micro_tokens() const { return micro_sequences * sequence_length; }
  int64_t balance_groups() const { return batch_sequences / balance_sequences; }
};

// ConfigError naming the fields that do not divide, or, with `reproducible`, a layout whose ranks
// do not hold aligned power-of-two runs of units.
StepPlan plan_steps(const RunConfig& config, const Layout& layout);

}  // namespace degu
