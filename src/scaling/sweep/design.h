// From a sweep's configuration to its list of runs.
#pragma once

#include <string>
#include <vector>

#include "scaling/sweep/config.h"
#include "shape/model_shape.h"

namespace degu::scaling {

struct PlannedRun {
  std::string name;   // unique within the sweep: "c4e11-d64-l2-e8k2-lr0.003-s1"
  ModelShape shape;   // resolved, unless `problem` says why it cannot be
  double budget = 0;  // training FLOPs
  double learning_rate = 0;
  int64_t seed = 1;
  double granularity = 1;
  std::string problem;  // why no model of this combination can be made; empty: it can
};

// Runs that one group trains after each other: alone, or, with shared trunks, those that differ in
// budget alone, the largest first.
using RunFamily = std::vector<PlannedRun>;

struct RunDefaults {
  ModelShape model;
  int64_t sequence_length = 128;
  double learning_rate = 0;
  int64_t seed = 1;
};

// What a run takes, in FLOPs that a machine could do at the rate it reaches on large models: orders
// runs and predicts the time left, no more.
double predicted_cost(const PlannedRun& run, int64_t sequence_length);

// The whole grid, the most expensive family first. A combination that cannot be (more experts
// visited than there are) is a run with a `problem`. ConfigError when the grid is empty or no run
// of it can be.
std::vector<RunFamily> design_sweep(const SweepConfig& config, const RunDefaults& defaults);

}  // namespace degu::scaling
