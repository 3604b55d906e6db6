// How the rows of a token-major matrix are grouped: by expert, by sequence, by unit of reduction.
//
// The spans are host memory. A caller on an accelerator may name copies of them in its memory
// (`device_…`): operators there then read those and leave out a small upload each. They must hold
// the same numbers, except where RowGroups and UnitSegments say otherwise. Null on the CPU.
#pragma once

#include <concepts>
#include <cstdint>
#include <span>

#include "base/error.h"

namespace degu {

// Rows of group g (an expert; one group for a dense layer) are [offsets[g], offsets[g+1]); groups
// may be empty. offsets[0] is 0. With `device_offsets` the numbers on the device count, and the
// host's may be any upper bound of them: no kernel needs the host to know how many rows an expert
// has.
struct RowGroups {
  std::span<const int64_t> offsets;
  const int64_t* device_offsets = nullptr;

  int64_t groups() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t rows() const { return offsets.back(); }
  int64_t begin(int64_t g) const { return offsets[static_cast<size_t>(g)]; }
  int64_t end(int64_t g) const { return offsets[static_cast<size_t>(g) + 1]; }
};

// Where weight gradients take their partial sums. A *unit* is a fixed number of sequences; each
// gradient is one fp32 partial sum per unit, and partial sums are joined in a fixed binary tree
// over the unit's index, so that no layout of ranks changes a bit (docs/numerics.md).
//
// Rows are ordered by (group, slot, unit); rows of (g, s, u) are
// [offsets[i], offsets[i + 1]) with i = (g * slots + s) * units + u. A slot is an independent
// result: the units of one slot are an aligned power-of-two run that is joined in the operator.
struct UnitSegments {
  std::span<const int64_t> offsets;
  int64_t groups = 1;
  int64_t slots = 1;
  int64_t units = 1;                        // per slot
  const int64_t* device_offsets = nullptr;  // as RowGroups': the host's may be upper bounds

  int64_t rows() const { return offsets.back(); }
  int64_t begin(int64_t g, int64_t s, int64_t u) const {
    return offsets[static_cast<size_t>((g * slots + s) * units + u)];
  }
  int64_t end(int64_t g, int64_t s, int64_t u) const {
    return offsets[static_cast<size_t>((g * slots + s) * units + u) + 1];
  }
  bool consistent() const {
    return static_cast<int64_t>(offsets.size()) == groups * slots * units + 1;
  }
};

// Sequences of a ragged batch: rows [offsets[s], offsets[s+1]) are consecutive positions of
// sequence s, starting at first_position[s] (0 in training; the number of cached keys when
// serving).
struct Sequences {
  std::span<const int64_t> offsets;
  std::span<const int64_t> first_position;
  const int64_t* device_offsets = nullptr;
  const int64_t* device_first_position = nullptr;

  int64_t count() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t rows() const { return offsets.back(); }
  int64_t length(int64_t s) const {
    return offsets[static_cast<size_t>(s) + 1] - offsets[static_cast<size_t>(s)];
  }
};

// A number for each row: its token, or its position. With `device` the numbers there count; the
// host's are as many and may be any that the operator takes.
struct RowNumbers {
  template <class Range>
  requires std::convertible_to<const Range&, std::span<const int32_t>> RowNumbers(
      const Range& numbers)  // NOLINT: used wherever numbers of the host are
      : host(numbers) {}
  RowNumbers(std::span<const int32_t> numbers, const int32_t* there)
      : host(numbers), device(there) {}

  std::span<const int32_t> host;
  const int32_t* device = nullptr;

  size_t size() const { return host.size(); }
  bool empty() const { return host.empty(); }
};

// Writes results over the output, or adds them to it (one fp32 addition per element).
enum class Write { kOverwrite, kAdd };

}  // namespace degu
