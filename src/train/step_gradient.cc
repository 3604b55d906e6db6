#include "train/step_gradient.h"

namespace degu {

void StepGradient::reduce(AnyView all, AnyView out) {
  DEGU_DCHECK(group_ != nullptr);
  group_->reduce_scatter(context_, all, place_.layout.shard_elements(), out, Reduce::kSum,
                         place_.order);
}

AnyView WholeGradient::shard() {
  const AnyView all = sum_.result();
  reduce(all, own_part(all));
  return own_part(all);
}

ShardedGradient::ShardedGradient(Context& context, const ParameterRegion& region,
                                 const ShardPlace& place, const RegionLeaves& leaves,
                                 int64_t passes, Arena& kept, Arena& shared)
    : StepGradient(context, place),
      leaves_(leaves.leaves),
      of_pass_(context, region, leaves, &shared),
      shards_(context, kept, shard_elements(), passes, leaves.tree) {}

void ShardedGradient::end_leaf() {
  of_pass_.end_leaf();
  if (++done_ < leaves_) return;
  done_ = 0;
  const AnyView all = of_pass_.result();
  if (shards_.write() == Write::kOverwrite) {
    reduce(all, shards_.next());
  } else {
    reduce(all, own_part(all));
    join(context(), shards_.next(), own_part(all));
  }
  shards_.push();
}

}  // namespace degu
