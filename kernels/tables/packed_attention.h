// Entry points of kernels/api/packed_attention.h, of GPUs alone.
#pragma once

#include "kernels/api/packed_attention.h"

namespace degu {

struct PackedAttentionArgs {
  AnyView q_THA, k_TGA, v_TGA;
  const Sequences& sequences;
  float scale;
  AnyView out_THA, lse_TH;
  AnyView dout_THA, dq_THA, dk_TGA, dv_TGA;  // null in the forward pass
};

struct PackedAttentionKernels {
  void (*forward)(Context&, const PackedAttentionArgs&);
  void (*backward)(Context&, const PackedAttentionArgs&);
};

}  // namespace degu
