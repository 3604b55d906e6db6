#include "optim/sharded_adamw.h"

#include <utility>

namespace degu {
namespace {

AnyView part(AnyView flat, FlatRange range, int64_t origin) {
  return flat.rows(range.begin - origin, range.elements());
}

}  // namespace

ShardedAdamW::ShardedAdamW(FlatLayout layout, int rank, DeviceType device)
    : layout_(std::move(layout)),
      rank_(rank),
      m_(DType::kF32, {range().elements()}, device),
      v_(DType::kF32, {range().elements()}, device) {}

void ShardedAdamW::square_sums(Context& context, AnyView grad_shard,
                               std::span<double> all_blocks) const {
  for (const FlatLayout::Run& run : layout_.piece_runs(rank_)) {
    if (!run.member->trained) continue;
    const int64_t blocks = (run.range.elements() + kNormBlock - 1) / kNormBlock;
    block_square_sums(
        context, part(grad_shard, run.range, range().begin),
        all_blocks.subspan(static_cast<size_t>(run.first_block), static_cast<size_t>(blocks)));
  }
}

void ShardedAdamW::step(Context& context, const AdamWStep& hyper, AnyView values,
                        AnyView grad_shard) {
  for (const FlatLayout::Run& run : layout_.member_runs(rank_)) {
    if (!run.member->trained) continue;
    AdamWStep own = hyper;
    own.learning_rate *= run.member->rate_multiplier;
    if (!run.member->decay) own.weight_decay = 0;
    const int64_t origin = range().begin;
    adamw(context, own, part(values, run.range, 0), part(m_, run.range, origin),
          part(v_, run.range, origin), part(grad_shard, run.range, origin), AnyView{});
  }
}

}  // namespace degu
