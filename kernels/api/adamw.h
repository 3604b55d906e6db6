// AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) on fp32 master weights, the gradient norm, and
// what the norm makes of a step.
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
  // What rounds bf16 moments: element i of a call takes the number of (seed, tensor, step,
  // first_element + i), its place in the whole tensor. So the bits do not depend on how a tensor is
  // cut into calls. Fp32 moments need none of these.
  uint64_t seed = 0;
  std::string_view tensor;  // its name
  int64_t first_element = 0;
};

// master, grad: fp32, n elements. m, v: both fp32 or both bf16 [n]. weight: fp32 or bf16 [n],
// receives the rounded master (null: no). scale: fp32 [1] (null: 1); NaN: the step is skipped, and
// nothing is written.
//   g = scale * grad;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   master -= lr * ( (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * master )
void adamw(Context& context, const AdamWStep& step, AnyView scale, AnyView master, AnyView m,
           AnyView v, AnyView grad, AnyView weight);

// Elements per partial sum of the gradient norm. Blocks are anchored at the start of each parameter
// (of each expert's matrix), so their sums are the same on every layout of ranks.
inline constexpr int64_t kNormBlock = 1024;

// block_sums[i] = sum of grad[j]^2 for j in block i: fp64, ceil(n / kNormBlock) of them.
void block_square_sums(Context& context, AnyView grad, AnyView block_sums);

// sum[0] = the sum of block_sums [n], both fp64, in an order that n alone decides: runs of
// kNormBlock are summed, then runs of their sums, until one is left.
void sum_blocks(Context& context, AnyView block_sums, AnyView sum);

// What a step multiplies its gradient with (adamw's scale, fp32 [1]), without the host's knowing:
//   norm = sqrt(square_sums[0]);  scale = clip / norm where clip > 0 and norm > clip, else 1
// and NaN where one of square_sums (fp64, at least one: the gradient's, and whatever else has to be
// finite) is not finite.
void gradient_scale(Context& context, AnyView square_sums, double clip, AnyView scale);

}  // namespace degu
