// Partial sums joined in the fixed tree of kernels/common/tree.h, columns in parallel.
#pragma once

#include <cstdint>

#include "kernels/api/rows.h"
#include "tensor/context.h"

namespace degu::cuda {

// out[g, c] = tree over l in [first[g], first[g + 1]) of leaves[l, c]; no leaf gives +0. With kAdd
// one further addition: out + result. All pointers are on the device; first has groups + 1 numbers.
void join_tree(Context& context, const float* leaves, const int64_t* first, int64_t groups,
               int64_t width, float* out, Write write);

}  // namespace degu::cuda
