// The route plan of kernels/api/permute.h and its units on the device.
#pragma once

#include <cstdint>
#include <span>

#include "tensor/context.h"

namespace degu::cuda {

void route_plan(Context& context, AnyView expert_TK, int64_t experts, int64_t capacity,
                std::span<const int64_t> group_offsets, int64_t* offsets_E, AnyView row_TK,
                AnyView token_R, int64_t* dropped);
void unit_offsets(Context& context, AnyView offsets_E, AnyView token_R,
                  std::span<const int64_t> units, AnyView offsets_EU);

}  // namespace degu::cuda
