// How rows are numbered on their way between ranks (kernels/api/permute.h), on the device.
#pragma once

#include <cstdint>
#include <span>

#include "tensor/context.h"

namespace degu::cuda {

void renumber(Context& context, AnyView index, std::span<const int32_t> number, AnyView out);
void interleave_rows(Context& context, std::span<const int64_t> counts_PeU, int64_t experts,
                     int64_t units, AnyView order_R, AnyView place_R);

}  // namespace degu::cuda
