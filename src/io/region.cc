#include "io/region.h"

#include <algorithm>
#include <cstring>

namespace degu {

bool Region::inside() const {
  const Shape bounds = flat ? Shape{whole.elements()} : whole;
  if (offset.rank() != bounds.rank() || extent.rank() != bounds.rank()) return false;
  for (int i = 0; i < bounds.rank(); ++i) {
    if (offset[i] < 0 || extent[i] < 0 || extent[i] > bounds[i] - offset[i]) return false;
  }
  return true;
}

std::string Region::str() const {
  if (flat) {
    return fmt::format("elements [{}, {}) of {}", offset[0], offset[0] + extent[0], whole.str());
  }
  return fmt::format("{} at {} of {}", extent.str(), offset.str(), whole.str());
}

namespace {

// The innermost dimension that the box does not cover whole together with what lies below it is a
// run.
struct RunShape {
  int last = 0;       // that dimension
  int64_t inner = 1;  // elements of the whole below it
  int64_t count = 1;  // elements of a run
};

RunShape run_shape(const Region& region) {
  RunShape run;
  run.last = region.whole.rank() - 1;
  while (run.last > 0 && region.extent[run.last] == region.whole[run.last]) {
    run.inner *= region.whole[run.last--];
  }
  run.count = region.extent[run.last] * run.inner;
  return run;
}

}  // namespace

int64_t run_count(const Region& region) {
  if (region.elements() == 0) return 0;
  if (region.flat || region.whole.rank() == 0) return 1;
  return region.elements() / run_shape(region).count;
}

std::vector<Run> runs_of(const Region& region) {
  if (region.elements() == 0) return {};
  if (region.flat || region.whole.rank() == 0) {
    return {{region.flat ? region.offset[0] : 0, 0, region.elements()}};
  }
  const auto [last, inner, count] = run_shape(region);
  const int64_t runs = region.elements() / count;
  std::vector<Run> out;
  out.reserve(static_cast<size_t>(runs));
  for (int64_t run = 0; run < runs; ++run) {
    int64_t begin = region.offset[last] * inner;
    int64_t stride = inner * region.whole[last];
    int64_t index = run;
    for (int i = last - 1; i >= 0; --i) {
      begin += (region.offset[i] + index % region.extent[i]) * stride;
      index /= region.extent[i];
      stride *= region.whole[i];
    }
    out.push_back({begin, run * count, count});
  }
  return out;
}

int64_t copy_common(const Region& from, const std::byte* source, const Region& to,
                    std::byte* target, size_t element) {
  const std::vector<Run> have = runs_of(from);
  const std::vector<Run> want = runs_of(to);
  int64_t copied = 0;
  for (size_t i = 0, j = 0; i < have.size() && j < want.size();) {
    const int64_t have_end = have[i].whole_begin + have[i].count;
    const int64_t want_end = want[j].whole_begin + want[j].count;
    const int64_t begin = std::max(have[i].whole_begin, want[j].whole_begin);
    const int64_t end = std::min(have_end, want_end);
    if (begin < end) {
      const int64_t read = have[i].part_begin + begin - have[i].whole_begin;
      const int64_t write = want[j].part_begin + begin - want[j].whole_begin;
      std::memcpy(target + static_cast<size_t>(write) * element,
                  source + static_cast<size_t>(read) * element,
                  static_cast<size_t>(end - begin) * element);
      copied += end - begin;
    }
    if (have_end <= want_end) ++i;
    if (want_end <= have_end) ++j;
  }
  return copied;
}

}  // namespace degu
