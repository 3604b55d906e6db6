#include "train/step_gradient.h"

namespace degu {

Work StepGradient::reduce(AnyView all, AnyView out) {
  DEGU_DCHECK(group_ != nullptr);
  return group_->reduce_scatter(context_, all, place_.layout.shard_elements(), out, Reduce::kSum,
                                place_.order);
}

AnyView WholeGradient::shard() {
  const AnyView all = sum_.result();
  reduce(all, own_part(all)).wait();
  return own_part(all);
}

void GradientTurns::vacate() {
  for (ShardedGradient* gradient : reduced_) gradient->finish();
  reduced_.clear();
}

ShardedGradient::ShardedGradient(Context& context, const ParameterRegion& region,
                                 const ShardPlace& place, const RegionLeaves& leaves,
                                 int64_t passes, Arena& kept, GradientTurns& shared)
    : StepGradient(context, place),
      leaves_(leaves.leaves),
      shared_(shared),
      of_pass_(context, region, leaves, &shared.memory()),
      shards_(context, kept, shard_elements(), passes, leaves.tree) {}

void ShardedGradient::begin_leaf() {
  if (done_ == 0) shared_.vacate();
  of_pass_.begin_leaf();
}

void ShardedGradient::end_leaf() {
  of_pass_.end_leaf();
  if (++done_ < leaves_) return;
  done_ = 0;
  const AnyView all = of_pass_.result();
  reduced_ = shards_.write() == Write::kOverwrite ? shards_.next() : own_part(all);
  reduction_ = reduce(all, reduced_);
  shared_.occupy(*this);
}

void ShardedGradient::finish() {
  if (!reduced_) return;
  reduction_.wait();
  if (shards_.write() == Write::kAdd) join(context(), shards_.next(), reduced_);
  shards_.push();
  reduced_ = {};
}

AnyView ShardedGradient::shard() {
  finish();
  return shards_.result();
}

}  // namespace degu
