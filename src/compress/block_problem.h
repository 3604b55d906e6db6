// One block of a model on its way to codes: its values, and what calibration measured of the inputs
// of its matrices.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "compress/method.h"
#include "model/parameters.h"
#include "tensor/tensor.h"

namespace degu {

// A *site* is an input that one or more matrices of a block read. Names are those of tensors
// without "blocks.N.".
struct Site {
  std::string name;
  std::vector<std::string> matrices;
  bool per_expert = false;  // each expert sees rows of its own
};

// Of block `layer`, in a fixed order; of what follows the last block (an untied head) below 0.
std::vector<Site> block_sites(const ModelShape& shape, int layer);

// What was measured at a site: one Hessian, or one for each expert of this rank.
struct SiteStatistics {
  Tensor hessian_NDD;         // fp32
  std::vector<int64_t> rows;  // [N]
  std::vector<char> usable;   // [N]: 0 where too little was seen to go by

  InputStatistics of(int64_t n) const;
};

struct BlockProblem {
  Communicator& world;
  const ModelShape& shape;
  int layer;
  ExpertRange experts;                   // whose values are on this rank
  std::map<std::string, Tensor> values;  // fp32, by name without "blocks.N."
  std::map<std::string, Scheme> schemes;
  std::map<std::string, SiteStatistics> statistics;  // by site

  AnyView value(const std::string& name) const { return values.at(name); }
  // Expert `n` of this rank, [F, D].
  AnyView expert_value(const std::string& name, int64_t n) const;
  Scheme scheme(const std::string& name) const { return schemes.at(name); }
};

}  // namespace degu
