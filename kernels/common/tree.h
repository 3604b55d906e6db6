// The fixed binary tree in which partial sums are joined, wherever a result must not depend on how work
// was split (docs/numerics.md).
//
// Leaves 0 … n-1 are joined in pairs (0,1), (2,3), … level by level; an odd last one is carried up. So
// leaves i < j first meet at the level of the highest bit in which i and j differ, for any n: the tree
// over an aligned power-of-two run of leaves is a subtree of every larger tree.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace degu {

// Buffers that a join over `leaves` leaves needs at once.
constexpr int tree_depth(int64_t leaves) {
  return leaves <= 0 ? 0 : static_cast<int>(std::bit_width(static_cast<uint64_t>(leaves)));
}

// Joins the leaves with indices index_of(0) < index_of(1) < … < index_of(present - 1), absent ones being
// neutral. leaf(i, buffer) fills a buffer with the i-th present leaf; join(into, from) is into = into +
// from, `into` covering the lower leaves. Buffers are numbered from 0; the result is in buffer 0 (nothing
// is called when `present` is 0). Leaves are filled in order.
template <class IndexOf, class Leaf, class Join>
constexpr void tree_join_sparse(int64_t present, IndexOf&& index_of, Leaf&& leaf, Join&& join) {
  std::array<int64_t, 65> last{};  // last leaf under each waiting buffer
  int waiting = 0;
  for (int64_t i = 0; i < present; ++i) {
    const int64_t index = index_of(i);
    // Two neighbours that meet below the level where the new leaf joins are complete: join them now.
    while (waiting >= 2) {
      const auto below = static_cast<uint64_t>(last[static_cast<size_t>(waiting - 2)]);
      const auto top = static_cast<uint64_t>(last[static_cast<size_t>(waiting - 1)]);
      if (std::bit_width(below ^ top) >= std::bit_width(top ^ static_cast<uint64_t>(index))) break;
      join(waiting - 2, waiting - 1);
      last[static_cast<size_t>(waiting - 2)] = last[static_cast<size_t>(waiting - 1)];
      --waiting;
    }
    leaf(i, waiting);
    last[static_cast<size_t>(waiting++)] = index;
  }
  for (; waiting > 1; --waiting) join(waiting - 2, waiting - 1);
}

// The same with all leaves present: needs tree_depth(leaves) buffers.
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
