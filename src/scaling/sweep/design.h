// From a sweep's configuration to its list of runs.
#pragma once

#include <string>
#include <vector>

#include "scaling/sweep/config.h"
#include "shape/model_shape.h"

namespace degu::scaling {

struct PlannedRun {
  std::string name;   // unique within the sweep: "c4e11-d64-l2-e8k2-lr0.003-s1"
  ModelShape shape;   // resolved
  double budget = 0;  // training FLOPs
  double learning_rate = 0;
  int64_t seed = 1;
  double granularity = 1;
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

// The whole grid, the most expensive family first. ConfigError for an empty or impossible grid,
// naming the size.
std::vector<RunFamily> design_sweep(const SweepConfig& config, const RunDefaults& defaults);

}  // namespace degu::scaling
