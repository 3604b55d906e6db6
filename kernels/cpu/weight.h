// Entry points per instruction set; contracts in kernels/api/weight.h.
#pragma once

#include "kernels/api/weight.h"
#include "kernels/cpu/isa.h"

namespace degu::cpu {

struct WeightKernels {
  size_t (*packed_bytes)(Scheme scheme, int64_t experts, int64_t outputs, int64_t inner);
  void (*pack)(Context& context, AnyView w_EFD, const PackedWeight& packed);
  void (*pack_codes)(Context& context, const QuantizedWeight& weight, const PackedWeight& packed);
};

}  // namespace degu::cpu
