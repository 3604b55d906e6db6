// What `degu bench layer` times: one Mixture-of-Experts layer alone, with weights and tokens that
// look random. A layer is the router, the dispatch of rows to experts, the experts' SwiGLU and the
// sum of what they answer.
#pragma once

#include <vector>

#include "cli/kernel_bench.h"

namespace degu {

// The default is the layer of OLMoE (Muennighoff et al. 2024, arXiv 2409.02060) at 16k tokens.
struct LayerSize {
  int64_t tokens = 16384;
  int width = 2048;
  int experts = 64;
  int top_k = 8;
  int expert_width = 1024;
};

// In bf16 as in training, without a balancing loss: "forward", and "forward + backward" up to the
// gradients of the input and of every weight (fp32 sums, in no promised order). Work counts matrix
// products, as shape/accounting.h does; rows per second of a case are rate * tokens / work. Both
// share one layer. ConfigError when the sizes do not fit together.
std::vector<KernelCase> layer_cases(Context& context, const LayerSize& size);

}  // namespace degu
