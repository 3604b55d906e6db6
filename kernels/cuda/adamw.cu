#include "kernels/tables/adamw.h"

#include <algorithm>
#include <cmath>

#include "kernels/common/step_scale.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/table.h"

namespace degu {
namespace {

using namespace degu::cuda;

// The step's constants, computed in double precision and rounded once, as on the CPU.
struct Factors {
  float beta1, beta2, one_minus_beta1, one_minus_beta2, m_correction, v_correction, eps, decay,
      minus_rate;
};

float correction(double beta, int64_t step) {
  return static_cast<float>(1.0 / (1.0 - std::pow(beta, static_cast<double>(step))));
}

Factors factors_of(const AdamWStep& s) {
  return {.beta1 = static_cast<float>(s.beta1),
          .beta2 = static_cast<float>(s.beta2),
          .one_minus_beta1 = static_cast<float>(1.0 - s.beta1),
          .one_minus_beta2 = static_cast<float>(1.0 - s.beta2),
          .m_correction = correction(s.beta1, s.step),
          .v_correction = correction(s.beta2, s.step),
          .eps = static_cast<float>(s.eps),
          .decay = static_cast<float>(s.weight_decay),
          .minus_rate = static_cast<float>(-s.learning_rate)};
}

// Fp32 moments are kept as they are; bf16 ones become numbers that a store does not round again.
template <int N>
__device__ void round_moments(const NoiseStream&, int64_t, const float*, float (&)[N],
                              float (&)[N]) {}
template <int N>
__device__ void round_moments(const NoiseStream& s, int64_t i, const bf16*, float (&m)[N],
                              float (&v)[N]) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const uint32_t word =
        noise_word(s.first + static_cast<uint32_t>(i + j), s.first_key, s.second_key);
    m[j] = to_float(stochastic_bf16(m[j], noise_of_m(word)));
    v[j] = to_float(stochastic_bf16(v[j], noise_of_v(word)));
  }
}

// M: how moments are held.
template <class M, class T>
struct Step {
  static constexpr int kN = 4;
  Factors f;
  NoiseStream noise;
  const float* scale;  // null: 1
  float* master;
  M* m;
  M* v;
  const float* grad;
  T* weight;  // null: none
  int64_t n;
  template <bool kVector>
  __device__ void at(int64_t i) const {
    const float factor = scale == nullptr ? 1.0f : *scale;
    if (isnan(factor)) return;
    float w[kN], first[kN], second[kN], g[kN];
    load<kVector>(master, i, n, w);
    load<kVector>(m, i, n, first);
    load<kVector>(v, i, n, second);
    load<kVector>(grad, i, n, g);
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      const float scaled = g[j] * factor;
      first[j] = fmaf(f.beta1, first[j], f.one_minus_beta1 * scaled);
      second[j] = fmaf(f.beta2, second[j], f.one_minus_beta2 * (scaled * scaled));
      const float direction =
          (first[j] * f.m_correction) / (sqrtf(second[j] * f.v_correction) + f.eps);
      w[j] = fmaf(f.minus_rate, fmaf(f.decay, w[j], direction), w[j]);
    }
    round_moments(noise, i, m, first, second);
    store<kVector>(m, i, n, first);
    store<kVector>(v, i, n, second);
    store<kVector>(master, i, n, w);
    if (weight != nullptr) store<kVector>(weight, i, n, w);
  }
};

template <class M, class T>
void step_typed(Context& context, const AdamWStep& options, const NoiseStream& noise,
                const float* scale, AnyView master, AnyView m, AnyView v, AnyView grad,
                AnyView weight) {
  using Pass = Step<M, T>;
  const Pass f{factors_of(options),
               noise,
               scale,
               static_cast<float*>(master.data),
               static_cast<M*>(m.data),
               static_cast<M*>(v.data),
               static_cast<const float*>(grad.data),
               static_cast<T*>(weight.data),
               master.elements()};
  if (f.n == 0) return;
  const unsigned blocks = blocks_for(f.n, int64_t{kThreads} * Pass::kN);
  if (vectored<T>(1, 0, {master.data, m.data, v.data, grad.data, weight.data})) {
    launch_kernel(context, "adamw", {blocks, kThreads}, &each_pack_kernel<true, Pass::kN, Pass>,
                  f.n, f);
  } else {
    launch_kernel(context, "adamw", {blocks, kThreads}, &each_pack_kernel<false, Pass::kN, Pass>,
                  f.n, f);
  }
}

template <class M>
void step_moments(Context& context, const AdamWStep& options, const NoiseStream& noise,
                  const float* scale, AnyView master, AnyView m, AnyView v, AnyView grad,
                  AnyView weight) {
  const auto of = weight.dtype == DType::kBF16 ? &step_typed<M, bf16> : &step_typed<M, float>;
  of(context, options, noise, scale, master, m, v, grad, weight);
}

void step(Context& context, const AdamWStep& options, const NoiseStream& noise, const float* scale,
          AnyView master, AnyView m, AnyView v, AnyView grad, AnyView weight) {
  const auto of = m.dtype == DType::kBF16 ? &step_moments<bf16> : &step_moments<float>;
  of(context, options, noise, scale, master, m, v, grad, weight);
}

// What an element adds: gradients their squares (exact in double), sums themselves.
__device__ double term(float x) {
  return static_cast<double>(x) * static_cast<double>(x);
}
__device__ double term(double x) {
  return x;
}

// Sixteen interleaved partial sums joined by halves: the CPU's order, so the CPU's bits. Half a
// warp takes one block of kNormBlock elements.
template <class T>
__global__ void block_sums_kernel(const T* x, int64_t n, int64_t blocks, double* sums) {
  constexpr int kSums = 16;
  const int64_t block = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kSums;
  const int lane = static_cast<int>(threadIdx.x) % kSums;
  double sum = 0.0;
  if (block < blocks) {
    const int64_t end = min(n, (block + 1) * kNormBlock);
#pragma unroll 8
    for (int64_t i = block * kNormBlock + lane; i < end; i += kSums) sum = sum + term(x[i]);
  }
#pragma unroll
  for (int half = kSums / 2; half > 0; half /= 2) {
    sum = sum + __shfl_down_sync(kAllLanes, sum, half, kSums);
  }
  if (lane == 0 && block < blocks) sums[block] = sum;
}

template <class T>
void all_blocks(Context& context, const char* op, const T* x, int64_t n, int64_t blocks,
                double* sums) {
  if (blocks == 0) return;
  launch_kernel(context, op, {blocks_for(blocks, kThreads / 16), kThreads}, &block_sums_kernel<T>,
                x, n, blocks, sums);
}

int64_t blocks_of(int64_t n) {
  return (n + kNormBlock - 1) / kNormBlock;
}

void all_square_sums(Context& context, AnyView grad, double* sums) {
  const int64_t n = grad.elements();
  all_blocks(context, "block_square_sums", static_cast<const float*>(grad.data), n, blocks_of(n),
             sums);
}

void sum_runs(Context& context, const double* sums, int64_t n, double* run_sums) {
  // One of none is zero.
  all_blocks(context, "sum_blocks", sums, n, std::max<int64_t>(blocks_of(n), 1), run_sums);
}

__global__ void gradient_scale_kernel(const double* square_sums, int64_t n, double clip,
                                      float* scale) {
  *scale = step_scale(sqrt(square_sums[0]), clip, all_finite(square_sums, n));
}

void scale_step(Context& context, const double* square_sums, int64_t n, double clip, float* scale) {
  launch_kernel(context, "gradient_scale", {1, 1}, &gradient_scale_kernel, square_sums, n, clip,
                scale);
}

}  // namespace

template <>
const AdamWKernels cuda::Table<AdamWKernels>::value = {&step, &all_square_sums, &sum_runs,
                                                       &scale_step};

}  // namespace degu
