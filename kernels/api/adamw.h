// AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) on fp32 master weights, and the gradient norm.
#pragma once

#include <span>

#include "tensor/context.h"

namespace degu {

struct AdamWStep {
  double learning_rate = 0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;  // decoupled: w -= learning_rate * weight_decay * w
  int64_t step = 1;         // from 1, for the bias correction
  float grad_scale = 1;     // multiplies the gradient first (clipping, averaging)
};

// master, m, v, grad: fp32, n elements. weight: fp32 or bf16 [n], receives the rounded master
// (null: no).
//   g = grad_scale * grad;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   master -= lr * ( (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * master )
void adamw(Context& context, const AdamWStep& step, AnyView master, AnyView m, AnyView v,
           AnyView grad, AnyView weight);

// Elements per partial sum of the gradient norm. Blocks are anchored at the start of each parameter
// (of each expert's matrix), so their sums are the same on every layout of ranks.
inline constexpr int64_t kNormBlock = 1024;

// block_sums[i] = sum of grad[j]^2 for j in block i (double precision); ceil(n / kNormBlock) of
// them.
// On an accelerator this form waits for the device once (counted); the one below does not.
void block_square_sums(Context& context, AnyView grad, std::span<double> block_sums);

// The same into fp64 memory of the context's device.
void block_square_sums(Context& context, AnyView grad, AnyView block_sums);

}  // namespace degu
