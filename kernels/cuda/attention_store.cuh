// Pages of keys and values on the GPU (layout: kernels/cuda/attention_tiles.cuh).
#pragma once

#include "kernels/api/attention.h"

namespace degu::cuda {

size_t attention_page_bytes(DType dtype, int64_t kv_heads, int64_t head_width);
void attention_store(Context& context, AnyView k_TGA, AnyView v_TGA, const Sequences& sequences,
                     const KvView& kv);

}  // namespace degu::cuda
