// The `sweep:` part of a sweep's YAML: which models are trained, at which budgets. The rest of the
// file (model, data, train, cluster) is the run configuration that all members share.
//
// The grid is budgets × sizes × members × learning rates × seeds. Each run trains for the tokens
// that make its exact FLOPs (shape/accounting.h) the budget's.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/fields.h"

namespace degu::scaling {

struct SweepSize {
  int64_t width = 0;
  int64_t layers = 0;
  std::vector<double> budgets;  // empty: all

  void fields(Fields& f) {
    f("width", width, "residual width D");
    f("layers", layers, "blocks");
    f("budgets", budgets, "budgets at which this size is trained; empty: all");
  }
};

// What the feed-forward of a size is made of.
struct SweepMember {
  std::string name = "dense";
  int64_t experts = 0;  // 0: dense
  int64_t top_k = 2;
  double granularity = 2;  // expert width = ffn_width / granularity
  int64_t shared_experts = 0;
  int64_t middle = 0;

  void fields(Fields& f) {
    f("name", name, "stands in the names of runs");
    f("experts", experts, "routed experts per block; 0: dense");
    f("top_k", top_k, "experts each token visits");
    f("granularity", granularity, "dense feed-forward width over expert width");
    f("shared_experts", shared_experts, "experts that every token visits");
    f("middle", middle, "only this many middle sizes of each budget; 0: all of them");
  }
};

// Sizes made from budgets: a ladder of shapes around the number of active parameters at which a
// budget gives `tokens_per_parameter`.
struct IsoFlopDesign {
  int64_t sizes_per_budget = 0;      // 0: no design, `sizes` is used
  double span = 6;                   // largest size over smallest, in parameters
  double tokens_per_parameter = 20;  // at the middle of the ladder
  int64_t width_multiple = 16;
  double width_per_layer = 32;  // aspect: layers is about width over this

  void fields(Fields& f) {
    f("sizes_per_budget", sizes_per_budget, "sizes generated for each budget; 0: `sizes` is used");
    f("span", span, "largest over smallest generated size, in parameters");
    f("tokens_per_parameter", tokens_per_parameter, "at the middle of the generated sizes");
    f("width_multiple", width_multiple, "generated widths are multiples of this");
    f("width_per_layer", width_per_layer, "generated depth is about width over this");
  }
};

struct SweepConfig {
  std::vector<double> budgets;
  std::vector<SweepSize> sizes;
  IsoFlopDesign isoflop;
  std::vector<SweepMember> members;    // empty: dense alone
  std::vector<double> learning_rates;  // empty: the run configuration's
  std::vector<int64_t> seeds;          // empty: the run configuration's
  int64_t head_width = 32;
  int64_t ranks_per_run = 1;
  bool share_trunks = false;

  void fields(Fields& f) {
    f("budgets", budgets, "training FLOPs of each isoFLOP group");
    f("sizes", sizes, "shapes of the grid");
    f("isoflop", isoflop, "shapes generated from the budgets, instead of sizes");
    f("members", members, "feed-forwards each size is trained with; empty: dense");
    f("learning_rates", learning_rates,
      "peak learning rates; empty: train.optimizer.learning_rate");
    f("seeds", seeds, "seeds of initial weights and data order; empty: train.seed");
    f("head_width", head_width, "heads = width / head_width");
    f("ranks_per_run", ranks_per_run, "ranks that train one run together");
    f("share_trunks", share_trunks,
      "with a wsd schedule: runs that differ in budget alone share the steps before their decay");
  }
  void check() const;
};

}  // namespace degu::scaling
