// Entry points of kernels/api/attention.h: filled by each backend (CPU: per instruction set).
#pragma once

#include "kernels/api/attention.h"

namespace degu {

struct AttentionKernels {
  size_t (*page_bytes)(DType dtype, int64_t kv_heads, int64_t head_width);
  void (*store)(Context& context, AnyView k_TGA, AnyView v_TGA, const Sequences& sequences,
                const KvView& kv);
  void (*forward)(Context& context, AnyView q_THA, const KvView& kv, const Sequences& sequences,
                  float scale, AnyView out_THA, AnyView lse_TH);
};

struct AttentionBackwardKernels {
  void (*backward)(Context& context, AnyView q_THA, const KvView& kv, const Sequences& sequences,
                   float scale, AnyView out_THA, AnyView lse_TH, AnyView dout_THA, AnyView dq_THA,
                   AnyView dk_TGA, AnyView dv_TGA);
};

}  // namespace degu
