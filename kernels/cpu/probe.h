// Entry points of kernels/api/probe.h per instruction set.
#pragma once

#include <cstddef>

#include "kernels/api/probe.h"
#include "kernels/cpu/isa.h"

namespace degu {

// Adds a value that depends on all the work to `sink`, so that none of it can be left out.
struct ProbeKernels {
  // `rounds` rounds of register arithmetic on this thread; returns the operations done.
  double (*arithmetic)(DType type, int64_t rounds, float* sink);
  // Reads, updates or writes `bytes` (a multiple of 64) at a line-aligned address.
  void (*move)(StreamKind kind, bool non_temporal, std::byte* at, int64_t bytes, float* sink);
};

}  // namespace degu
