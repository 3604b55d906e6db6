#include "compress/block_problem.h"

namespace degu {

std::vector<Site> block_sites(const ModelShape& shape, int layer) {
  if (layer < 0) return {{.name = "head", .matrices = {"head"}}};
  std::vector<Site> sites = {
      {.name = "attention", .matrices = {"attention.wq", "attention.wk", "attention.wv"}},
      {.name = "attention.out", .matrices = {"attention.wo"}}};
  if (!shape.is_moe_layer(layer)) {
    sites.push_back({.name = "ffn", .matrices = {"ffn.gate", "ffn.up"}});
    sites.push_back({.name = "ffn.act", .matrices = {"ffn.down"}});
    return sites;
  }
  sites.push_back({.name = "experts", .matrices = {"moe.gate", "moe.up"}, .per_expert = true});
  sites.push_back({.name = "experts.act", .matrices = {"moe.down"}, .per_expert = true});
  if (shape.moe.shared_experts > 0) {
    sites.push_back({.name = "shared", .matrices = {"moe.shared_gate", "moe.shared_up"}});
    sites.push_back({.name = "shared.act", .matrices = {"moe.shared_down"}});
  }
  return sites;
}

InputStatistics SiteStatistics::of(int64_t n) const {
  const int64_t inner = hessian_NDD.shape()[1];
  return {.hessian_DD = hessian_NDD.view().rows(n, 1).reshaped({inner, inner}),
          .rows = rows[static_cast<size_t>(n)]};
}

AnyView BlockProblem::expert_value(const std::string& name, int64_t n) const {
  const AnyView all = values.at(name);
  return all.rows(n, 1).reshaped({all.dim(1), all.dim(2)});
}

}  // namespace degu
