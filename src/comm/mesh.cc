#include "comm/mesh.h"

#include <algorithm>
#include <bit>

namespace degu {
namespace {

constexpr int64_t kShardAlign = 16;  // fp32 elements of a cache line

// Run of `count` leaves at a multiple of `count` among `total` leaves.
bool is_subtree(int64_t count, int64_t total) {
  return count == total || std::has_single_bit(static_cast<uint64_t>(count));
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

Mesh::Mesh(Communicator& world, int expert_parallel)
    : world_(world), layout_(world.rank(), world.size(), expert_parallel) {
  ep_ = world.split(layout_.ep_group(), world.rank());
  edp_ = world.split(layout_.ep_rank(), world.rank());
}

}  // namespace degu
