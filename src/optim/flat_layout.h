// How a flat vector of parameters is cut: into members, into blocks for the gradient norm, into
// shards.
//
// A member is one tensor; a piece is the whole of it, or one expert's matrix. Blocks of kNormBlock
// elements are anchored at the start of each piece, and shards end where blocks end. So a block's
// sum of squares is the same number on every layout of ranks, and its index among all blocks of the
// model says in which order the sums are added.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace degu {

struct FlatMember {
  int64_t piece_elements = 0;
  int64_t pieces = 1;       // held here
  int64_t first_piece = 0;  // index of the first one held here
  int64_t all_pieces = 1;   // of the whole tensor
  double rate_multiplier = 1;
  bool decay = false;
  bool trained = true;  // false: state without a gradient
  std::string name;     // of the tensor
};

struct FlatRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t elements() const { return end - begin; }
};

class FlatLayout {
 public:
  // One shard per rank of the group that holds the same members.
  FlatLayout(std::vector<FlatMember> members, int shards);

  int64_t elements() const { return offsets_.back(); }
  int64_t all_blocks() const { return all_blocks_; }  // of the whole tensors, all experts
  FlatRange shard(int rank) const { return shards_[static_cast<size_t>(rank)]; }
  std::span<const int64_t> shard_elements() const { return shard_elements_; }

  // A run of elements of one member inside a shard.
  struct Run {
    FlatRange range;  // in the flat vector
    const FlatMember* member;
    int64_t member_offset;  // where the member begins in the flat vector
    int64_t
        first_block;  // index among all_blocks() of the run's first block (runs of one piece only)
  };
  // Runs of one piece each, in order: for the norm.
  std::vector<Run> piece_runs(int rank) const;
  // Runs of one member each, in order: for the update.
  std::vector<Run> member_runs(int rank) const;

 private:
  std::vector<FlatMember> members_;
  std::vector<int64_t> offsets_;       // of members
  std::vector<int64_t> block_starts_;  // of members, among all blocks
  int64_t all_blocks_ = 0;
  std::vector<FlatRange> shards_;
  std::vector<int64_t> shard_elements_;
};

}  // namespace degu
