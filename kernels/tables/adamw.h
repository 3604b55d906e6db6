// Entry points of kernels/api/adamw.h: filled by each backend (CPU: per instruction set).
#pragma once

#include <span>

#include "kernels/api/adamw.h"
#include "kernels/common/stochastic_rounding.h"

namespace degu {

struct AdamWKernels {
  // `noise` rounds bf16 moments; of fp32 ones nobody looks at it.
  void (*step)(Context&, const AdamWStep&, const NoiseStream& noise, const float* scale,
               AnyView master, AnyView m, AnyView v, AnyView grad, AnyView weight);
  void (*block_square_sums)(Context&, AnyView grad, double* block_sums);
  // One level: run_sums[i] = the sum of run i of kNormBlock sums.
  void (*sum_runs)(Context&, const double* sums, int64_t n, double* run_sums);
  void (*gradient_scale)(Context&, const double* square_sums, int64_t n, double clip, float* scale);
};

}  // namespace degu
