// The norm of a step's gradient over all ranks, and what the update makes of it: measured where the
// gradients lie, so that the host need not know it before the update.
#pragma once

#include <vector>

#include "comm/communicator.h"
#include "tensor/tensor.h"
#include "train/regions.h"
#include "train/step_plan.h"

namespace degu {

class GradientNorm {
 public:
  GradientNorm(Context& context, const TrainedRegions& regions, const StepPlan& plan);

  // Of a pass, fp32: a step whose losses are not all finite is skipped.
  void add_losses(Context& context, int64_t pass, AnyView loss_T);
  // Once the gradients are reduced. Collective; the same bits on every rank and layout.
  void measure(Context& context, Communicator& world, std::vector<TrainedRegion>& regions,
               double clip);

  // What adamw multiplies the gradient with, fp32 [1]: NaN when the step is to be skipped.
  AnyView scale() const { return scale_; }
  // fp64 [2]: of the whole gradient, the norm squared; of the losses, a number that is finite when
  // they are.
  AnyView square_sums() const { return totals_; }

  size_t bytes() const { return blocks_.bytes(); }

 private:
  AnyView loss_blocks() const { return blocks_.view().rows(norm_blocks_, loss_blocks_); }

  int64_t norm_blocks_, blocks_per_pass_, loss_blocks_;
  Tensor blocks_;  // sums of squares: of all regions' blocks, then of the passes' losses
  Tensor totals_;
  Tensor scale_;
};

}  // namespace degu
