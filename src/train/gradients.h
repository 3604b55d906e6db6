// Gradients of one region, summed over the leaves of a step in a fixed binary tree.
//
// A leaf is what one backward pass (or one chunk of the head's) contributes: the tree sum of an
// aligned power-of-two run of units. Leaves arrive in order and are joined like the digits of a
// binary counter, so that the step's sum is one binary tree over units however many passes made it.
#pragma once

#include <vector>

#include "model/parameters.h"
#include "nn/head.h"
#include "tensor/tensor.h"

namespace degu {

class GradientRegion : public LeafSink {
 public:
  // `slots`: separate results per leaf (moe/dispatch.h), joined by `result`. `leaves` per step;
  // with `tree` it is a power of two, without it leaves are simply added up.
  GradientRegion(Context& context, const ParameterRegion& region, int64_t slots, int64_t leaves,
                 bool tree);

  void begin_leaf() override;
  void end_leaf() override;
  // After the step's last leaf: the flat sum, [elements]. Starts the next step.
  AnyView result();
  size_t bytes() const;

 private:
  void join(AnyView left, AnyView right);

  Context& context_;
  const ParameterRegion& region_;
  int64_t slots_;
  int64_t leaves_;
  bool tree_;
  int64_t done_ = 0;
  std::vector<Tensor> levels_;  // [0] takes leaves and their pairs; [k] parks a sum of 2^k leaves
  Tensor joined_;               // with several slots
};

}  // namespace degu
