// Gradients of one region, summed over leaves in a fixed binary tree.
//
// A leaf is what one backward pass (or one chunk of the head's) contributes: the tree sum of an
// aligned power-of-two run of units. Leaves arrive in order and are joined like the digits of a
// binary counter, so that the sum is one binary tree over units however many leaves made it.
#pragma once

#include <vector>

#include "model/parameters.h"
#include "nn/head.h"
#include "tensor/tensor.h"

namespace degu {

// left += right, elementwise.
void join(Context& context, AnyView left, AnyView right);

// Flat vectors of one length that arrive one after the other, summed in the tree of comm/tree.h
// (`tree`), or simply added up.
class LeafTree {
 public:
  // How many vectors are in memory at once.
  static int64_t levels(int64_t leaves, bool tree);
  // Takes levels(leaves, tree) fp32 vectors of `elements` from `memory`.
  LeafTree(Context& context, Arena& memory, int64_t elements, int64_t leaves, bool tree);

  // Where the next leaf is written, or added to what is there.
  AnyView next() const { return levels_[0]; }
  Write write() const;
  void push();  // the leaf is there
  // After the last leaf: the sum, until the next leaf is written, which starts anew.
  AnyView result();

 private:
  void carry(size_t level);

  Context& context_;
  int64_t leaves_;
  bool tree_;
  int64_t done_ = 0;
  std::vector<AnyView> levels_;  // [0] takes leaves and their pairs; [k] parks a sum of 2^k leaves
};

// What a region's sum is made of.
struct RegionLeaves {
  int64_t slots = 1;  // separate results per leaf (moe/dispatch.h), joined by `result`
  int64_t leaves = 1;
  bool tree = true;
};

class GradientRegion : public LeafSink {
 public:
  // Takes its vectors from `memory`, which another may use between `result` and the next leaf;
  // null: from memory of its own. The region outlives it.
  GradientRegion(Context& context, const ParameterRegion& region, const RegionLeaves& leaves,
                 Arena* memory = nullptr);

  void begin_leaf() override;
  void end_leaf() override;
  // After the last leaf: the flat sum, [elements]. The next leaf starts anew.
  AnyView result();

 private:
  Context& context_;
  const ParameterRegion& region_;
  int64_t slots_;
  Arena own_;
  LeafTree tree_;
  AnyView joined_;  // with several slots
};

}  // namespace degu
