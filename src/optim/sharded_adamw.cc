#include "optim/sharded_adamw.h"

#include <utility>

namespace degu {
namespace {

AnyView part(AnyView flat, FlatRange range, int64_t origin) {
  return flat.rows(range.begin - origin, range.elements());
}

}  // namespace

ShardedAdamW::ShardedAdamW(FlatLayout layout, int rank, DeviceType device, DType moments,
                           uint64_t seed)
    : layout_(std::move(layout)),
      rank_(rank),
      seed_(seed),
      m_(moments, {range().elements()}, device),
      v_(moments, {range().elements()}, device) {}

void ShardedAdamW::square_sums(Context& context, AnyView grad_shard, AnyView all_blocks) const {
  for (const FlatLayout::Run& run : layout_.piece_runs(rank_)) {
    if (!run.member->trained) continue;
    const int64_t blocks = (run.range.elements() + kNormBlock - 1) / kNormBlock;
    block_square_sums(context, part(grad_shard, run.range, range().begin),
                      all_blocks.rows(run.first_block, blocks));
  }
}

void ShardedAdamW::step(Context& context, const AdamWStep& hyper, AnyView scale, AnyView values,
                        AnyView grad_shard) {
  for (const FlatLayout::Run& run : layout_.member_runs(rank_)) {
    if (!run.member->trained) continue;
    AdamWStep own = hyper;
    own.learning_rate *= run.member->rate_multiplier;
    if (!run.member->decay) own.weight_decay = 0;
    own.seed = seed_;
    own.tensor = run.member->name;
    own.first_element =
        run.member->first_piece * run.member->piece_elements + run.range.begin - run.member_offset;
    const int64_t origin = range().begin;
    adamw(context, own, scale, part(values, run.range, 0), part(m_, run.range, origin),
          part(v_, run.range, origin), part(grad_shard, run.range, origin), AnyView{});
  }
}

}  // namespace degu
