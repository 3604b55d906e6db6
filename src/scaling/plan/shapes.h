// Real model shapes around a sweep's: what the planner chooses among. Costs are exact
// (shape/accounting.h), not 6 N D.
#pragma once

#include <cstdint>
#include <vector>

#include "scaling/laws/multipliers.h"
#include "shape/accounting.h"

namespace degu::scaling {

// Width and depth of a run in the table.
struct SizeSeen {
  int64_t width = 0;
  int64_t layers = 0;
};

struct ShapeSpace {
  ModelShape base;             // everything but width, depth, heads and experts is kept from it
  std::vector<SizeSeen> seen;  // the sweep's sizes; empty: the base's own
  int64_t sequence = 128;
  double grow = 8;  // widths up to this factor beyond the largest seen
};

struct ShapeOption {
  ModelShape shape;  // resolved
  ExpertGroup group;
  int group_index = 0;  // in the fit
  double n = 0;         // under the law's definition
  double total = 0, active = 0;
  double train_flops = 0;      // per token
  double inference_flops = 0;  // per token: the forward pass
  double train_bytes = 0;      // weights, gradients, optimizer on one rank
  double serve_bytes = 0;      // weights, and keys and values of one sequence
  double aspect = 0;           // |ln| of (width/depth over the sweep's own at this width)
};

// All shapes of the space for one group: widths in steps of a head, depths whose width per layer is
// within the range seen (and a third beyond). Heads keep their width, key/value heads their share.
std::vector<ShapeOption> enumerate_shapes(const ShapeSpace& space, const ExpertGroup& group,
                                          int group_index, ParameterCount definition);

}  // namespace degu::scaling
