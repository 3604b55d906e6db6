// Entry points of kernels/api/permute.h: filled by each backend (CPU: per instruction set).
#pragma once

#include <span>

#include "tensor/context.h"

namespace degu {

struct PermuteKernels {
  // offsets_E [experts + 1] and dropped [1] are on the context's device.
  void (*route_plan)(Context&, AnyView expert_TK, int64_t experts, int64_t capacity,
                     std::span<const int64_t> group_offsets, int64_t* offsets_E, AnyView row_TK,
                     AnyView token_R, int64_t* dropped);
  void (*unit_offsets)(Context&, AnyView offsets_E, AnyView token_R, std::span<const int64_t> units,
                       AnyView offsets_EU);
  void (*renumber)(Context&, AnyView index, std::span<const int32_t> number, AnyView out);
  void (*interleave_rows)(Context&, std::span<const int64_t> counts_PeU, int64_t experts,
                          int64_t units, AnyView order_R, AnyView place_R);
  void (*gather_rows)(Context&, AnyView x_TD, AnyView source_R, AnyView y_RD);
  void (*combine)(Context&, AnyView x_RD, AnyView row_TK, AnyView gate_TK, AnyView add_TD,
                  AnyView y_TD);
  void (*combine_backward)(Context&, AnyView dy_TD, AnyView x_RD, AnyView row_TK, AnyView gate_TK,
                           AnyView dx_RD, AnyView dgate_TK);
};

}  // namespace degu
