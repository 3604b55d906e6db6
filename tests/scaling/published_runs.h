// The published runs as selections, chosen as their papers did.
#pragma once

#include <string>

#include "scaling/laws/law.h"
#include "scaling/selection.h"

namespace degu::scaling {

inline Selection chinchilla_runs(const std::string& path, int drop_highest_loss) {
  SelectionOptions options;
  options.columns = {{"N", "Model Size"}, {"C", "Training FLOP"}, {"L", "loss"}};
  options.drop_highest_loss = drop_highest_loss;
  options.dense_only = true;
  return select_runs(RunTable::read(path), options);
}

// `router`: S-Base, RL-R or Hash, whose rows are joined with the dense ones.
inline Selection clark_runs(const std::string& path, const std::string& router) {
  SelectionOptions options;
  options.columns = {{"N", "dense_parameter_count"},
                     {"L", "loss_validation"},
                     {"E", "num_experts"},
                     {"K", "k"},
                     {"D", "1.3e11"}};
  options.where = {"routing_frequency == 0.5", "k == 1", "seed == 42"};
  for (const std::string other : {"S-Base", "RL-R", "Hash"})
    if (other != router) options.where.push_back("router_type != " + other);
  options.last_by = "hyper_id";
  options.last_order = "step";
  options.n_definition = ParameterCount::kActiveNoEmbedding;
  return select_runs(RunTable::read(path), options);
}

}  // namespace degu::scaling
