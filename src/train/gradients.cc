#include "train/gradients.h"

#include <utility>

#include "kernels/api/elementwise.h"

namespace degu {
namespace {

int levels_for(int64_t leaves) {
  int levels = 1;
  while ((int64_t{2} << (levels - 1)) < leaves) ++levels;  // the last pair is never parked
  return levels;
}

}  // namespace

GradientRegion::GradientRegion(Context& context, const ParameterRegion& region, int64_t slots,
                               int64_t leaves, bool tree)
    : context_(context), region_(region), slots_(slots), leaves_(leaves), tree_(tree) {
  const int levels = tree ? levels_for(leaves) : 1;
  for (int level = 0; level < levels; ++level) {
    levels_.emplace_back(DType::kF32, Shape{slots * region.elements()}, context.device());
  }
  if (slots > 1) joined_ = Tensor(DType::kF32, {region.elements()}, context.device());
}

size_t GradientRegion::bytes() const {
  size_t sum = joined_ ? joined_.bytes() : 0;
  for (const Tensor& level : levels_) sum += level.bytes();
  return sum;
}

void GradientRegion::begin_leaf() {
  const bool fresh = tree_ ? done_ % 2 == 0 : done_ == 0;
  for (size_t i = 0; i < region_.members.size(); ++i) {
    Parameter& p = *region_.members[i];
    const Shape& local = p.value.shape;
    const AnyView run =
        levels_[0].view().rows(slots_ * region_.offsets[i], slots_ * local.elements());
    p.gradient =
        slots_ == 1 ? run.reshaped(local) : run.reshaped({slots_, local[0], local[1], local[2]});
    p.write = fresh ? Write::kOverwrite : Write::kAdd;
  }
}

void GradientRegion::end_leaf() {
  ++done_;
  DEGU_DCHECK(done_ <= leaves_);
  if (!tree_ || done_ == leaves_ || done_ % 2 != 0) {
    // The last leaf completes every level that waits for it.
    if (tree_ && done_ == leaves_) {
      for (size_t level = 1; level < levels_.size(); ++level) {
        join(levels_[level], levels_[0]);
        std::swap(levels_[level], levels_[0]);
      }
    }
    return;
  }
  int64_t nodes = done_ / 2;
  for (size_t level = 1;; ++level, nodes /= 2) {
    if (nodes % 2 != 0) {
      std::swap(levels_[level], levels_[0]);
      return;
    }
    join(levels_[level], levels_[0]);
    std::swap(levels_[level], levels_[0]);
  }
}

// left += right
void GradientRegion::join(AnyView left, AnyView right) {
  add(context_, left, right, left);
}

AnyView GradientRegion::result() {
  DEGU_DCHECK(done_ == leaves_);
  done_ = 0;
  if (slots_ == 1) return levels_[0];
  for (size_t i = 0; i < region_.members.size(); ++i) {
    const int64_t elements = region_.members[i]->value.elements();
    const AnyView all = levels_[0].view().rows(slots_ * region_.offsets[i], slots_ * elements);
    // The slots are neighbours in the tree over ranks: joined pair by pair, in place.
    for (int64_t width = 1; width < slots_; width *= 2) {
      for (int64_t s = 0; s + width < slots_; s += 2 * width) {
        join(all.rows(s * elements, elements), all.rows((s + width) * elements, elements));
      }
    }
    cast(context_, all.rows(0, elements), joined_.view().rows(region_.offsets[i], elements));
  }
  return joined_;
}

}  // namespace degu
