// Causal grouped-query attention of whole sequences whose keys and values are rows of the batch,
// and its gradients, by the GPU vendor's library (cuDNN): the formula of kernels/api/attention.h
// for training runs that need not be reproducible.
//
// The order of sums is the library's. Results are near attention()'s and not the same bits; those
// of a sequence may depend on what else is in the batch, and gradients may differ from run to run.
//
// bf16 on a GPU of a build with cuDNN; elsewhere a DeviceError says what to do. The first call with
// another number of sequences (rounded up to a power of two), longest sequence (to 256) or number
// of rows plans the work anew, which takes the host a while.
#pragma once

#include "kernels/api/rows.h"
#include "tensor/context.h"

namespace degu {

// Whether this build has cuDNN.
bool packed_attention_built();

// out_THA[t, h] = sum_j p_j * v_j,  p = softmax_j(scale * q_THA[t, h] · k_j) over the rows j <= t
// of t's sequence; head h reads key/value head h / (H / G). lse_TH as in attention(), fp32.
// Sequences start at position 0.
void packed_attention(Context& context, AnyView q_THA, AnyView k_TGA, AnyView v_TGA,
                      const Sequences& sequences, float scale, AnyView out_THA, AnyView lse_TH);

// dq, dk and dv are overwritten.
void packed_attention_backward(Context& context, AnyView q_THA, AnyView k_TGA, AnyView v_TGA,
                               const Sequences& sequences, float scale, AnyView out_THA,
                               AnyView lse_TH, AnyView dout_THA, AnyView dq_THA, AnyView dk_TGA,
                               AnyView dv_TGA);

}  // namespace degu
