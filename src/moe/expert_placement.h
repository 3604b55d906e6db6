// Which rank of an expert-parallel group holds which experts of each MoE layer.
//
// A layer's E experts lie in E slots, of which rank r of R holds [r E/R, (r+1) E/R). Rows travel to
// slots; routers, gates, routes and counts speak of experts. A row's result does not depend on
// where its expert lies or on the other rows there, so every placement gives the same bits
// (docs/numerics.md); what changes is how long the busiest rank works.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "shape/model_shape.h"

namespace degu {

// Routed rows of each expert, by block; empty for dense blocks.
using ExpertRows = std::vector<std::vector<int64_t>>;

struct ExpertPlacement {
  // The slot of each expert, by block. Empty, or an empty block: expert e lies in slot e.
  std::vector<std::vector<int32_t>> slot_LE;

  bool contiguous() const;
  std::span<const int32_t> slots(int block) const;  // empty: expert e in slot e
  // The expert in each slot.
  std::vector<int32_t> experts_by_slot(int block, int64_t experts) const;
};

// ConfigError naming block and value unless each table that is there orders the experts of an MoE
// block of `shape`.
void check_placement(const ExpertPlacement& placement, const ModelShape& shape);

// Layer by layer, as ranks wait for each other in each: experts in the order of their rows, each to
// the rank with the fewest that still has room (Graham's longest processing time first, with E/R
// places per rank), then exchanges between the busiest rank and others while they help. Where that
// is no better than contiguous runs these stay. Within a rank by number. Dense blocks are empty.
// `ranks` divides the experts.
ExpertPlacement place_by_rows(const ExpertRows& rows_LE, int ranks);

// Rows of one layer that go to each rank.
std::vector<int64_t> rank_rows(std::span<const int64_t> rows_E, std::span<const int32_t> slot_E,
                               int ranks);

// The busiest rank's rows over the mean: how much longer a layer takes than with even ranks, where
// its rows decide. 1 without rows.
double imbalance(std::span<const int64_t> rows_E, std::span<const int32_t> slot_E, int ranks);
// Of all layers one after another: their busiest ranks' rows over their means, summed before
// dividing.
double imbalance(const ExpertRows& rows_LE, const ExpertPlacement& placement, int ranks);

}  // namespace degu
