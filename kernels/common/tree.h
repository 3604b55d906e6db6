// The fixed binary tree in which partial sums are joined, wherever a result must not depend on how
// work was split (docs/numerics.md).
//
// Leaves 0 … n-1 are joined in pairs (0,1), (2,3), … level by level; an odd last one is carried up.
// So leaves i < j first meet at the level of the highest bit in which i and j differ, for any n:
// the tree over an aligned power-of-two run of leaves is a subtree of every larger tree.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace degu {

// Buffers that a join over `leaves` leaves needs at once.
constexpr int tree_depth(int64_t leaves) {
  return leaves <= 0 ? 0 : static_cast<int>(std::bit_width(static_cast<uint64_t>(leaves)));
}

// Joins leaves as they come, in order of their indices, holding few partial results at once. Absent
// leaves count as neutral. Buffers are numbered from 0; the result ends in buffer 0.
class TreeStack {
 public:
  // The buffer to fill with leaf `index` (larger than those before). First calls join(into, from),
  // meaning buffer into = into + from with `into` covering the lower leaves, for what is complete.
  template <class Join>
  constexpr int push(int64_t index, Join&& join) {
    const auto leaf = static_cast<uint64_t>(index);
    // Two neighbours that meet below the level where the new leaf joins are complete.
    while (waiting_ >= 2 && std::bit_width(last(2) ^ last(1)) < std::bit_width(last(1) ^ leaf)) {
      pop(join);
    }
    last_[static_cast<std::size_t>(waiting_)] = leaf;
    return waiting_++;
  }
  // Joins what is left. Without any leaf, nothing is called and buffer 0 was never filled.
  template <class Join>
  constexpr void finish(Join&& join) {
    while (waiting_ > 1) pop(join);
  }

 private:
  constexpr uint64_t last(int from_top) const {
    return last_[static_cast<std::size_t>(waiting_ - from_top)];
  }
  template <class Join>
  constexpr void pop(Join&& join) {
    join(waiting_ - 2, waiting_ - 1);
    last_[static_cast<std::size_t>(waiting_ - 2)] = last(1);
    --waiting_;
  }

  // Last leaf under each waiting buffer. Not cleared: a stack is made for each row of a table.
  std::array<uint64_t, 65> last_;  // NOLINT
  int waiting_ = 0;
};

// The whole tree over leaves 0 … leaves-1: leaf(i, buffer) fills a buffer with leaf i, in order of
// i; join as above. Needs tree_depth(leaves) buffers; the result is in buffer 0.
template <class Leaf, class Join>
constexpr void tree_join(int64_t leaves, Leaf&& leaf, Join&& join) {
  int waiting = 0;
  for (int64_t i = 0; i < leaves; ++i) {
    leaf(i, waiting++);
    for (int64_t run = i + 1; run % 2 == 0; run /= 2, --waiting) join(waiting - 2, waiting - 1);
  }
  for (; waiting > 1; --waiting) join(waiting - 2, waiting - 1);
}

}  // namespace degu
