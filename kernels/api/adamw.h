// AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) on fp32 master weights, and the gradient norm.
//
// Moments are held in fp32, or in bf16 for half their memory. A step takes at most the share 1 - b2
// of v away, less than half the distance to the next bf16 number (2^-9 to 2^-8 of v) once b2 passes
// 0.998: rounded to nearest, v would never fall, and not rise to the mean either. So bf16 moments
// are read and updated in fp32, the weights move by the unrounded result, and what is kept is
// rounded up or down at random, right on average (kernels/common/stochastic_rounding.h; for bf16 in
// training: Zamirai et al. 2020, arXiv 2010.06192).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

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
  // What rounds bf16 moments: element i of a call takes the number of (seed, tensor, step,
  // first_element + i), its place in the whole tensor. So the bits do not depend on how a tensor is
  // cut into calls. Fp32 moments need none of these.
  uint64_t seed = 0;
  std::string_view tensor;  // its name
  int64_t first_element = 0;
};

// master, grad: fp32, n elements. m, v: both fp32 or both bf16 [n]. weight: fp32 or bf16 [n],
// receives the rounded master (null: no).
//   g = grad_scale * grad;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   master -= lr * ( (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * master )
void adamw(Context& context, const AdamWStep& step, AnyView master, AnyView m, AnyView v,
           AnyView grad, AnyView weight);

// Elements per partial sum of the gradient norm. Blocks are anchored at the start of each parameter
// (of each expert's matrix), so their sums are the same on every layout of ranks.
inline constexpr int64_t kNormBlock = 1024;

// block_sums[i] = sum of grad[j]^2 for j in block i: fp64, ceil(n / kNormBlock) of them.
void block_square_sums(Context& context, AnyView grad, AnyView block_sums);

}  // namespace degu
