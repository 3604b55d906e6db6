// Parts of a tensor: boxes and flat ranges, and how one is copied from another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tensor/view.h"

namespace degu {

// Some elements of a dense, row-major tensor of shape `whole`: either the box at `offset` of shape
// `extent` (all of whole's rank), or, when `flat`, elements [offset[0], offset[0] + extent[0]) of
// the tensor read as one line. A part is stored densely, in row-major order of itself.
struct Region {
  Shape whole;
  bool flat = false;
  Shape offset;
  Shape extent;

  static Region box(Shape whole, Shape offset, Shape extent) {
    return {whole, false, offset, extent};
  }
  static Region range(Shape whole, int64_t begin, int64_t count) {
    return {whole, true, {begin}, {count}};
  }
  static Region all(Shape whole) { return range(whole, 0, whole.elements()); }

  int64_t elements() const { return extent.elements(); }
  bool inside() const;      // within the bounds of `whole`
  std::string str() const;  // "[0, 4] + [2, 8] of [2, 16]"
  friend bool operator==(const Region&, const Region&) = default;
};

// A run of elements that is contiguous in the tensor and in the part alike.
struct Run {
  int64_t whole_begin = 0;
  int64_t part_begin = 0;
  int64_t count = 0;
};

// The region as the fewest runs, ascending.
int64_t run_count(const Region& region);
std::vector<Run> runs_of(const Region& region);

// Copies what `from` and `to` have in common (same whole, `element` bytes each) and returns the
// number of elements copied.
int64_t copy_common(const Region& from, const std::byte* source, const Region& to,
                    std::byte* target, size_t element);

}  // namespace degu
