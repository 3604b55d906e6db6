// SwiGLU (Shazeer 2020, arXiv 2002.05202): act = silu(gate) * up, silu(v) = v / (1 + exp(-v)).
#pragma once

#include "tensor/context.h"

namespace degu {

// gate_RF, up_RF, act_RF: fp32 or bf16, one type; act may be gate or up. Only the first `rows`
// rows.
void swiglu(Context& context, AnyView gate_RF, AnyView up_RF, AnyView act_RF, int64_t rows);

// dgate = dact * up * silu'(gate);   dup = dact * silu(gate).
// dgate may be gate; dup may be up or dact.
void swiglu_backward(Context& context, AnyView dact_RF, AnyView gate_RF, AnyView up_RF,
                     AnyView dgate_RF, AnyView dup_RF, int64_t rows);

}  // namespace degu
