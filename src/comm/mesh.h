// Named axes over the ranks of a job, and the arithmetic of who holds what. It lives here only.
//
//   dp   all ranks: attention, dense layers and data are split or reduced over it
//   ep   a contiguous group of `expert_parallel` ranks: the experts of a layer are sharded in it
//   edp  the ranks that hold the same experts, one of each ep group: expert gradients are reduced
//   over it
//
//   rank   0   1   2   3        expert_parallel 2: ep groups {0,1} {2,3}, edp groups {0,2} {1,3}
//
// A step's batch is U units (sequences, or a fixed number of them), which go to R ranks and their M
// micro-batches in runs of U/(R·M):
//
// rank-major: rank r holds units [r·U/R, (r+1)·U/R), each of its micro-batches a run of them; for
// sums that each rank takes over its micro-batches first. pass-major: the ranks' micro-batches m
// hold units [m·U/M, (m+1)·U/M), each rank a run of them; for sums taken over the ranks first.
//
//   8 units, 2 ranks, 2 micro-batches    rank-major: 0 1 | 2 3   4 5 | 6 7
//                                        pass-major: 0 1 | 4 5   2 3 | 6 7
//
// With runs of a power of two (`aligned`) every sum over units is the same binary tree in every
// layout (comm/tree.h).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>

#include "comm/communicator.h"

namespace degu {

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  bool contains(int64_t i) const { return i >= begin && i < end; }
  friend bool operator==(const Range&, const Range&) = default;
};

enum class UnitOrder : uint8_t { kRankMajor, kPassMajor };

// The layout as seen by one rank; no communication.
class Layout {
 public:
  // ConfigError unless expert_parallel divides ranks.
  Layout(int rank, int ranks, int expert_parallel);

  int rank() const { return rank_; }
  int ranks() const { return ranks_; }
  int expert_parallel() const { return expert_parallel_; }
  int ep_rank() const { return rank_ % expert_parallel_; }
  int ep_group() const { return rank_ / expert_parallel_; }
  int edp_rank() const { return ep_group(); }
  int edp_size() const { return ranks_ / expert_parallel_; }

  // Experts of a layer of `experts` that this rank holds. ConfigError unless expert_parallel
  // divides them.
  Range experts(int64_t experts) const;
  int owner_of_expert(int64_t experts, int64_t expert) const;  // as a rank of the ep group

  // Units of a step of `units` in `micro_batches` per rank. ConfigError unless they divide evenly.
  Range units(int64_t units) const;
  Range units(int64_t units, int64_t micro_batches, int64_t micro_batch,
              UnitOrder order = UnitOrder::kRankMajor) const;
  // Whether the runs, and those of an ep group, are subtrees of the tree over units, so that the
  // layout leaves no trace in the bits.
  bool aligned(int64_t units, int64_t micro_batches, UnitOrder order = UnitOrder::kRankMajor) const;

  // Even shards of a flat buffer, whole cache lines each except the last ones (ZeRO-1 over this
  // rank's group of `parts`): part p of `elements`.
  static Range shard(int64_t elements, int parts, int part);

 private:
  int rank_;
  int ranks_;
  int expert_parallel_;
};

// How rows travel between the ranks of an ep group that spans several nodes.
enum class AllToAll : uint8_t { kAuto, kDirect, kTwoStage };
constexpr auto enum_names(AllToAll) {
  return std::array<std::string_view, 3>{"auto", "direct", "two_stage"};
}

class Mesh {
 public:
  // `way`: kAuto takes two stages (comm/two_stage_comm.h) in each ep group whose ranks lie on
  // several nodes, equally many and more than one on each; kTwoStage is a ConfigError where a group
  // does not. With several nodes rank 0 logs which it is. Collective over `world`, which must
  // outlive the mesh.
  Mesh(Communicator& world, int expert_parallel, AllToAll way = AllToAll::kAuto);

  const Layout& layout() const { return layout_; }
  Communicator& dp() const { return world_; }
  Communicator& ep() const { return *ep_; }
  Communicator& edp() const { return *edp_; }
  // Whether rows travel in two stages in this rank's ep group.
  bool two_stage() const { return two_stage_; }

 private:
  Communicator& world_;
  Layout layout_;
  bool two_stage_ = false;
  std::unique_ptr<Communicator> ep_;
  std::unique_ptr<Communicator> edp_;
};

}  // namespace degu
