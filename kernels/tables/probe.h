// Entry points of kernels/api/probe.h: filled by each backend (CPU: per instruction set).
#pragma once

#include <cstddef>
#include <span>

#include "kernels/api/probe.h"

namespace degu {

struct ProbeKernels {
  // Operations per second over `rounds` rounds of register arithmetic on the whole device.
  double (*arithmetic)(Context& context, DType type, int64_t rounds);
  // Bytes per second of one pass over streams whose memory is memory[i], in one of `ways` ways. Way
  // 0 is also the one that touches the memory first.
  double (*pass)(Context& context, std::span<const ProbeStream> streams, std::byte* const* memory,
                 int way);
  int ways;
};

}  // namespace degu
