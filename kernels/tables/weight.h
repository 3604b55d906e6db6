// Entry points of kernels/api/weight.h: filled by each backend (CPU: per instruction set).
#pragma once

#include <span>

#include "kernels/api/weight.h"

namespace degu {

struct WeightKernels {
  size_t (*packed_bytes)(Scheme scheme, int64_t experts, int64_t outputs, int64_t inner);
  void (*pack)(Context& context, AnyView w_EFD, const PackedWeight& packed);
  void (*pack_codes)(Context& context, const QuantizedWeight& weight, const PackedWeight& packed);
  void (*unpack_rows)(Context& context, const PackedWeight& table_VD, const RowNumbers& rows_T,
                      AnyView y_TD);
};

}  // namespace degu
