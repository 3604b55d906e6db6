#include "cli/plan_placement.h"

#include <fmt/ranges.h>

#include "infer/placement_file.h"
#include "io/atomic_file.h"

namespace degu {
namespace {

using Json = nlohmann::ordered_json;

// Experts of each rank in one block.
std::vector<std::vector<int32_t>> rank_experts(const PlannedPlacement& plan, int block) {
  const std::vector<int32_t> expert_S =
      plan.placement.experts_by_slot(block, plan.shape.moe.experts);
  const auto each = static_cast<std::ptrdiff_t>(expert_S.size()) / plan.ranks;
  std::vector<std::vector<int32_t>> ranks;
  for (std::ptrdiff_t r = 0; r < plan.ranks; ++r) {
    ranks.emplace_back(expert_S.begin() + r * each, expert_S.begin() + (r + 1) * each);
  }
  return ranks;
}

// Rows of all layers that each rank's experts take, as shares of all.
std::vector<double> rank_shares(const PlannedPlacement& plan, const ExpertPlacement& placement) {
  std::vector<double> shares(static_cast<size_t>(plan.ranks), 0);
  double all = 0;
  for (size_t l = 0; l < plan.known.rows_LE.size(); ++l) {
    const std::vector<int64_t>& rows_E = plan.known.rows_LE[l];
    if (rows_E.empty()) continue;
    const auto slot_E = placement.slots(static_cast<int>(l));
    const std::vector<int64_t> rows_P = rank_rows(rows_E, slot_E, plan.ranks);
    for (size_t r = 0; r < rows_P.size(); ++r) {
      shares[r] += static_cast<double>(rows_P[r]);
      all += static_cast<double>(rows_P[r]);
    }
  }
  for (double& share : shares) share = all > 0 ? share / all : 0;
  return shares;
}

}  // namespace

PlannedPlacement plan_placement(const ModelShape& shape, int ranks, const std::string& name,
                                ExpertFrequencies known) {
  PlannedPlacement plan{
      .shape = shape, .ranks = ranks, .name = name, .known = std::move(known), .placement = {}};
  if (name == "auto") {
    plan.placement = place_by_rows(plan.known.rows_LE, ranks);
  } else if (name != "contiguous") {
    plan.placement = read_placement(name, shape).placement;
  }
  return plan;
}

nlohmann::ordered_json placement_json(const PlannedPlacement& plan) {
  Json out = {
      {"frequencies", plan.known.source},
      {"placement", plan.name},
      {"imbalance",
       {{"contiguous", imbalance(plan.known.rows_LE, {}, plan.ranks)},
        {"placed", imbalance(plan.known.rows_LE, plan.placement, plan.ranks)}}},
      {"share_of_rows",
       {{"contiguous", rank_shares(plan, {})}, {"placed", rank_shares(plan, plan.placement)}}},
      {"layers", Json::array()}};
  for (size_t l = 0; l < plan.known.rows_LE.size(); ++l) {
    const std::vector<int64_t>& rows_E = plan.known.rows_LE[l];
    if (rows_E.empty()) continue;
    const int block = static_cast<int>(l);
    out["layers"].push_back(
        {{"layer", block},
         {"rows", rows_E},
         {"imbalance",
          {{"contiguous", imbalance(rows_E, {}, plan.ranks)},
           {"placed", imbalance(rows_E, plan.placement.slots(block), plan.ranks)}}},
         {"experts", rank_experts(plan, block)}});
  }
  return out;
}

void print_placement(const PlannedPlacement& plan) {
  fmt::print(
      "\nexperts by {}; rows of the busiest rank over the mean\n{:>5} {:>12} {:>12}  experts of "
      "rank 0 | 1 …\n",
      plan.known.source, "layer", "contiguous", plan.name.size() > 12 ? "placed" : plan.name);
  for (size_t l = 0; l < plan.known.rows_LE.size(); ++l) {
    const std::vector<int64_t>& rows_E = plan.known.rows_LE[l];
    if (rows_E.empty()) continue;
    const int block = static_cast<int>(l);
    std::vector<std::string> ranks;
    for (const std::vector<int32_t>& experts : rank_experts(plan, block)) {
      ranks.push_back(fmt::format("{}", fmt::join(experts, " ")));
    }
    fmt::print("{:>5} {:>12.3f} {:>12.3f}  {}\n", block, imbalance(rows_E, {}, plan.ranks),
               imbalance(rows_E, plan.placement.slots(block), plan.ranks), fmt::join(ranks, " | "));
  }
  fmt::print("{:>5} {:>12.3f} {:>12.3f}\n", "all", imbalance(plan.known.rows_LE, {}, plan.ranks),
             imbalance(plan.known.rows_LE, plan.placement, plan.ranks));
  const std::vector<double> before = rank_shares(plan, {});
  const std::vector<double> after = rank_shares(plan, plan.placement);
  for (size_t r = 0; r < before.size(); ++r) {
    fmt::print("rank {}: {:.1f} % of the rows with contiguous runs, {:.1f} % as placed\n", r,
               100 * before[r], 100 * after[r]);
  }
}

void write_placement(const PlannedPlacement& plan, const std::string& path) {
  write_file_atomic(
      path, placement_text(
                {.ranks = plan.ranks, .source = plan.known.source, .placement = plan.placement},
                plan.shape));
}

}  // namespace degu
