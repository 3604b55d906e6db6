#include "train/gradients.h"

#include <bit>
#include <utility>

#include "kernels/api/elementwise.h"

namespace degu {
namespace {

Arena own_memory(Context& context, const ParameterRegion& region, const RegionLeaves& leaves) {
  Arena counter = Arena::measuring(context.device());
  const GradientRegion measured(context, region, leaves, &counter);
  return Arena(counter.used(), context.device());
}

}  // namespace

void join(Context& context, AnyView left, AnyView right) {
  add(context, left, right, left);
}

int64_t LeafTree::levels(int64_t leaves, bool tree) {
  if (!tree) return 1;
  // Of the pairs, the last is never parked.
  return 1 + std::bit_width(static_cast<uint64_t>((leaves - 1) / 2));
}

LeafTree::LeafTree(Context& context, Arena& memory, int64_t elements, int64_t leaves, bool tree)
    : context_(context), leaves_(leaves), tree_(tree) {
  for (int64_t level = 0; level < levels(leaves, tree); ++level) {
    levels_.push_back(memory.take(DType::kF32, {elements}));
  }
}

Write LeafTree::write() const {
  const bool fresh = tree_ ? done_ % 2 == 0 : done_ == 0;
  return fresh ? Write::kOverwrite : Write::kAdd;
}

// Joins what is parked on `level` with the sum behind it.
void LeafTree::carry(size_t level) {
  join(context_, levels_[level], levels_[0]);
  std::swap(levels_[level], levels_[0]);
}

void LeafTree::push() {
  DEGU_DCHECK(done_ < leaves_);
  const auto pair = static_cast<uint64_t>(done_ / 2);  // level k is taken where bit k-1 is set
  const bool last = ++done_ == leaves_;
  if (!tree_ || (!last && done_ % 2 != 0)) return;
  size_t level = 1;
  for (uint64_t bits = pair; last ? bits != 0 : bits % 2 != 0; bits /= 2, ++level) {
    if (bits % 2 != 0) carry(level);
  }
  if (!last) std::swap(levels_[level], levels_[0]);
}

AnyView LeafTree::result() {
  DEGU_DCHECK(done_ == leaves_);
  done_ = 0;
  return levels_[0];
}

GradientRegion::GradientRegion(Context& context, const ParameterRegion& region,
                               const RegionLeaves& leaves, Arena* memory)
    : context_(context),
      region_(region),
      slots_(leaves.slots),
      own_(memory ? Arena() : own_memory(context, region, leaves)),
      tree_(context, memory ? *memory : own_, leaves.slots * region.elements(), leaves.leaves,
            leaves.tree) {
  if (slots_ > 1) joined_ = (memory ? *memory : own_).take(DType::kF32, {region.elements()});
}

void GradientRegion::begin_leaf() {
  for (size_t i = 0; i < region_.members.size(); ++i) {
    Parameter& p = *region_.members[i];
    const Shape& local = p.value.shape;
    const AnyView run = tree_.next().rows(slots_ * region_.offsets[i], slots_ * local.elements());
    p.gradient =
        slots_ == 1 ? run.reshaped(local) : run.reshaped({slots_, local[0], local[1], local[2]});
    p.write = tree_.write();
  }
}

void GradientRegion::end_leaf() {
  tree_.push();
}

AnyView GradientRegion::result() {
  const AnyView sum = tree_.result();
  if (slots_ == 1) return sum;
  for (size_t i = 0; i < region_.members.size(); ++i) {
    const int64_t elements = region_.members[i]->value.elements();
    const AnyView all = sum.rows(slots_ * region_.offsets[i], slots_ * elements);
    // The slots are neighbours in the tree over ranks: joined pair by pair, in place.
    for (int64_t width = 1; width < slots_; width *= 2) {
      for (int64_t s = 0; s + width < slots_; s += 2 * width) {
        join(context_, all.rows(s * elements, elements),
             all.rows((s + width) * elements, elements));
      }
    }
    cast(context_, all.rows(0, elements), joined_.rows(region_.offsets[i], elements));
  }
  return joined_;
}

}  // namespace degu
