// Entry points of kernels/api/permute.h per instruction set.
#pragma once

#include <span>

#include "kernels/cpu/isa.h"
#include "tensor/context.h"

namespace degu {

struct PermuteKernels {
  int64_t (*route_plan)(Context&, AnyView expert_TK, int64_t experts, int64_t capacity,
                        std::span<const int64_t> group_offsets, std::span<int64_t> offsets_E,
                        AnyView row_TK, AnyView token_R);
  void (*gather_rows)(Context&, AnyView x_TD, AnyView source_R, AnyView y_RD);
  void (*combine)(Context&, AnyView x_RD, AnyView row_TK, AnyView gate_TK, AnyView add_TD,
                  AnyView y_TD);
  void (*combine_backward)(Context&, AnyView dy_TD, AnyView x_RD, AnyView row_TK, AnyView gate_TK,
                           AnyView dx_RD, AnyView dgate_TK);
};

}  // namespace degu
