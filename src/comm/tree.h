// The one binary tree in which sums over units and ranks are taken.
//
// Over leaves 0 … n-1: level by level, neighbours (2i, 2i+1) are added, left + right; a last one
// without a partner moves up unchanged. n = 5: ((0+1)+(2+3))+4. Leaves [a·2^k, (a+1)·2^k) form a
// subtree, so a rank may sum its own aligned run and the ranks' results may be summed by the same
// rule: the bits are those of the tree over all leaves.
//
// A stream of leaves is summed in this order with a binary counter: after leaf i (from 0) arrives,
// the newest partial sums are merged tree_merges(i) times; at the end what is left is merged from
// the right.
#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "tensor/dtype.h"

namespace degu {

// How many times the two newest partial sums merge once leaf `index` has been pushed.
constexpr int tree_merges(int64_t index) {
  return std::countr_one(static_cast<uint64_t>(index));
}

// dst[i] = reduction over s of sources[s][i], 0 <= i < elements, in tree order. Types as in
// communicator.h; bf16 is widened to fp32, reduced, and rounded once. dst may be one of the
// sources.
void tree_reduce(Reduce reduce, DType type, std::span<const void* const> sources, void* dst,
                 int64_t elements);

// Tree sum of a stream of numbers: losses, counts and norms of units that arrive in index order.
class TreeSum {
 public:
  void push(double value) {
    stack_.push_back(value);
    for (int merges = tree_merges(leaves_++); merges > 0; --merges) merge();
  }
  double finish() {
    while (stack_.size() > 1) merge();
    const double total = stack_.empty() ? 0.0 : stack_.back();
    stack_.clear();
    leaves_ = 0;
    return total;
  }

 private:
  void merge() {
    const double right = stack_.back();
    stack_.pop_back();
    stack_.back() += right;
  }
  std::vector<double> stack_;
  int64_t leaves_ = 0;
};

}  // namespace degu
