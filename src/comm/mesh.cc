#include "comm/mesh.h"

#include <algorithm>
#include <bit>
#include <span>
#include <string>
#include <vector>

#include "base/log.h"
#include "comm/nodes.h"
#include "comm/two_stage_comm.h"

namespace degu {
namespace {

constexpr int64_t kShardAlign = 16;  // fp32 elements of a cache line

// Run of `count` leaves at a multiple of `count` among `total` leaves.
bool is_subtree(int64_t count, int64_t total) {
  return count == total || std::has_single_bit(static_cast<uint64_t>(count));
}

// The ep groups of a world and what keeps each from two stages; the same on all ranks.
struct GroupsOnNodes {
  GroupsOnNodes(const Layout& layout, std::vector<int> node_of_rank)
      : ranks(layout.expert_parallel()), nodes(std::move(node_of_rank)) {
    for (int g = 0; g < layout.edp_size(); ++g) obstacles.push_back(two_stage_obstacle(of(g)));
  }
  std::span<const int> of(int group) const {
    return std::span(nodes).subspan(static_cast<size_t>(group) * static_cast<size_t>(ranks),
                                    static_cast<size_t>(ranks));
  }
  bool possible(int group) const { return obstacles[static_cast<size_t>(group)].empty(); }
  int64_t all() const { return static_cast<int64_t>(obstacles.size()); }
  int64_t all_possible() const { return std::count(obstacles.begin(), obstacles.end(), ""); }
  // "expert group of ranks 0 to 3: all are on one node", of the first group in the way.
  std::string first_obstacle() const {
    int group = 0;
    while (possible(group)) ++group;
    return fmt::format("expert group of ranks {} to {}: {}", group * ranks, (group + 1) * ranks - 1,
                       obstacles[static_cast<size_t>(group)]);
  }

  int ranks;
  std::vector<int> nodes;
  std::vector<std::string> obstacles;
};

std::string describe(const GroupsOnNodes& groups, AllToAll way) {
  if (way == AllToAll::kDirect) return "directly between ranks (cluster.all_to_all: direct)";
  const int64_t possible = groups.all_possible();
  if (possible == 0) return "directly between ranks; " + groups.first_obstacle();
  if (possible == groups.all()) return "in two stages, within nodes and across them";
  return fmt::format("in two stages in {} of {} expert groups, else directly; {}", possible,
                     groups.all(), groups.first_obstacle());
}

}  // namespace

Layout::Layout(int rank, int ranks, int expert_parallel)
    : rank_(rank), ranks_(ranks), expert_parallel_(expert_parallel) {
  if (expert_parallel < 1 || ranks % expert_parallel != 0) {
    throw ConfigError("expert_parallel {}: must divide the number of ranks, {}", expert_parallel,
                      ranks);
  }
}

Range Layout::experts(int64_t experts) const {
  if (experts % expert_parallel_ != 0) {
    throw ConfigError("experts {}: must be a multiple of expert_parallel, {}", experts,
                      expert_parallel_);
  }
  const int64_t each = experts / expert_parallel_;
  return {each * ep_rank(), each * (ep_rank() + 1)};
}

int Layout::owner_of_expert(int64_t experts, int64_t expert) const {
  return static_cast<int>(expert / (experts / expert_parallel_));
}

Range Layout::units(int64_t units) const {
  return this->units(units, 1, 0);
}

Range Layout::units(int64_t units, int64_t micro_batches, int64_t micro_batch,
                    UnitOrder order) const {
  const int64_t parts = ranks_ * micro_batches;
  if (micro_batches < 1 || units < 1 || units % parts != 0) {
    throw ConfigError("batch of {} units: must be a multiple of ranks x micro-batches, {} x {}",
                      units, ranks_, micro_batches);
  }
  const int64_t each = units / parts;
  const int64_t run = order == UnitOrder::kRankMajor ? rank_ * micro_batches + micro_batch
                                                     : micro_batch * ranks_ + rank_;
  const int64_t begin = each * run;
  return {begin, begin + each};
}

bool Layout::aligned(int64_t units, int64_t micro_batches, UnitOrder order) const {
  if (units % (ranks_ * micro_batches) != 0) return false;
  // Slots of experts' gradients are joined within the ep group first.
  if (!is_subtree(expert_parallel_, ranks_)) return false;
  const int64_t first_sums = order == UnitOrder::kRankMajor ? ranks_ : micro_batches;
  return is_subtree(units / first_sums, units) &&
         is_subtree(units / (ranks_ * micro_batches), units);
}

Range Layout::shard(int64_t elements, int parts, int part) {
  const int64_t even = (elements + parts - 1) / parts;
  const int64_t each = (even + kShardAlign - 1) / kShardAlign * kShardAlign;
  return {std::min(elements, each * part), std::min(elements, each * (part + 1))};
}

Mesh::Mesh(Communicator& world, int expert_parallel, AllToAll way)
    : world_(world), layout_(world.rank(), world.size(), expert_parallel) {
  ep_ = world.split(layout_.ep_group(), world.rank());
  edp_ = world.split(layout_.ep_rank(), world.rank());
  if (expert_parallel == 1) {
    if (way != AllToAll::kTwoStage) return;
    throw ConfigError(
        "cluster.all_to_all is two_stage, but with cluster.expert_parallel 1 no rows travel; use "
        "auto, or spread the experts");
  }
  const GroupsOnNodes groups(layout_, exchange_nodes(world));
  const int nodes = count_nodes(groups.nodes);
  if (way == AllToAll::kTwoStage && groups.all_possible() < groups.all()) {
    throw ConfigError(
        "cluster.all_to_all is two_stage, which is impossible in the {}; use auto or direct, or "
        "let each group span nodes with equally many ranks, two or more, on each",
        groups.first_obstacle());
  }
  if (nodes > 1 && world.rank() == 0) {
    log_info("{} nodes: experts' rows travel {}", nodes, describe(groups, way));
  }
  two_stage_ = way != AllToAll::kDirect && groups.possible(layout_.ep_group());
  if (two_stage_) ep_ = make_two_stage_communicator(std::move(ep_), groups.of(layout_.ep_group()));
}

}  // namespace degu
