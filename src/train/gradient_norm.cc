#include "train/gradient_norm.h"

#include "kernels/api/adamw.h"
#include "tensor/device.h"

namespace degu {

GradientNorm::GradientNorm(Context& context, const TrainedRegions& regions, const StepPlan& plan)
    : norm_blocks_(regions.norm_blocks()),
      blocks_per_pass_((plan.micro_tokens() + kNormBlock - 1) / kNormBlock),
      loss_blocks_(plan.micro_batches * blocks_per_pass_),
      blocks_(DType::kF64, {norm_blocks_ + loss_blocks_}, context.device()),
      totals_(DType::kF64, {2}, context.device()),
      scale_(DType::kF32, {1}, context.device()) {}

void GradientNorm::add_losses(Context& context, int64_t pass, AnyView loss_T) {
  block_square_sums(context, loss_T, loss_blocks().rows(pass * blocks_per_pass_, blocks_per_pass_));
}

void GradientNorm::measure(Context& context, Communicator& world,
                           std::vector<TrainedRegion>& regions, double clip) {
  const AnyView blocks = blocks_.view().rows(0, norm_blocks_);
  zero(context, blocks);
  for (TrainedRegion& state : regions) {
    state.adamw->square_sums(
        context, state.grad_shard,
        blocks.rows(state.first_norm_block, state.adamw->layout().all_blocks()));
  }
  // Each of the gradient's blocks comes from one rank, so any order is exact; of the losses it only
  // matters whether they are finite.
  world.all_reduce(context, blocks_, Reduce::kSum, Order::kAny).wait();
  sum_blocks(context, blocks, totals_.view().rows(0, 1));
  sum_blocks(context, loss_blocks(), totals_.view().rows(1, 1));
  gradient_scale(context, totals_, clip, scale_);
}

}  // namespace degu
