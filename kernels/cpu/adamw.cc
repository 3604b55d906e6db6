#include "kernels/tables/adamw.h"

#include <algorithm>
#include <cmath>

#include "kernels/common/step_scale.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/sweep.h"
#include "kernels/cpu/word_vector.h"

namespace degu {
namespace {

// The step's constants, computed in double precision and rounded once.
struct Factors {
  Factors(const AdamWStep& s, float scale)
      : grad_scale(broadcast(scale)),
        beta1(broadcast(static_cast<float>(s.beta1))),
        beta2(broadcast(static_cast<float>(s.beta2))),
        one_minus_beta1(broadcast(static_cast<float>(1.0 - s.beta1))),
        one_minus_beta2(broadcast(static_cast<float>(1.0 - s.beta2))),
        m_correction(broadcast(correction(s.beta1, s.step))),
        v_correction(broadcast(correction(s.beta2, s.step))),
        eps(broadcast(static_cast<float>(s.eps))),
        decay(broadcast(static_cast<float>(s.weight_decay))),
        minus_rate(broadcast(static_cast<float>(-s.learning_rate))) {}

  static float correction(double beta, int64_t step) {
    return static_cast<float>(1.0 / (1.0 - std::pow(beta, static_cast<double>(step))));
  }

  VecF grad_scale, beta1, beta2, one_minus_beta1, one_minus_beta2, m_correction, v_correction, eps,
      decay, minus_rate;
};

inline VecF updated(const Factors& f, VecF master, VecF& m, VecF& v, VecF grad) {
  const VecF g = grad * f.grad_scale;
  m = fma(f.beta1, m, f.one_minus_beta1 * g);
  v = fma(f.beta2, v, f.one_minus_beta2 * (g * g));
  const VecF direction = (m * f.m_correction) / (sqrt(v * f.v_correction) + f.eps);
  return fma(f.minus_rate, fma(f.decay, master, direction), master);
}

// M: how moments are held.
template <class M>
struct Streams {
  float* master;
  M* m;
  M* v;
  const float* grad;
};

// Fp32 moments are kept as they are; bf16 ones are rounded with an element's own noise.
template <class... Count>
void keep(const Streams<float>& s, const NoiseVectors&, int64_t i, VecF m, VecF v, Count... count) {
  store(s.m + i, m, count...);
  store(s.v + i, v, count...);
}
template <class... Count>
void keep(const Streams<bf16>& s, const NoiseVectors& noise, int64_t i, VecF m, VecF v,
          Count... count) {
  const VecWord word = noise.at(i);
  store_stochastic(s.m + i, m, word & VecWord(0xffffu), count...);
  store_stochastic(s.v + i, v, shift_right<16>(word), count...);
}

// The step of elements i, i + 1, …; returns the new masters.
template <class M, class... Count>
VecF advance(const Factors& f, const Streams<M>& s, const NoiseVectors& noise, int64_t i,
             Count... count) {
  VecF m = load(s.m + i, count...), v = load(s.v + i, count...);
  const VecF w = updated(f, load(s.master + i, count...), m, v, load(s.grad + i, count...));
  keep(s, noise, i, m, v, count...);
  store(s.master + i, w, count...);
  return w;
}

template <bool kStream, class M, class T>
void step_pass(Context& context, const Factors& f, const NoiseVectors& noise, const Streams<M>& s,
               T* weight, int64_t n) {
  sweep(context, n, [&](int64_t begin, int64_t end) {
    each_vector(
        begin, end,
        [&](int64_t i) {
          const VecF w = advance(f, s, noise, i);
          if (weight != nullptr) put<kStream>(weight + i, w);
        },
        [&](int64_t i, int k) {
          const VecF w = advance(f, s, noise, i, k);
          if (weight != nullptr) store(weight + i, w, k);
        });
    if constexpr (kStream) stream_fence();
  });
}

template <class M, class T>
void step_typed(Context& context, const Factors& f, const NoiseVectors& noise, const Streams<M>& s,
                T* weight, int64_t n) {
  if (aligned_line(weight) && n * static_cast<int64_t>(sizeof(T)) >= kStreamBytes) {
    step_pass<true>(context, f, noise, s, weight, n);
  } else {
    step_pass<false>(context, f, noise, s, weight, n);
  }
}

template <class M>
void step_moments(Context& context, const Factors& f, const NoiseStream& noise, AnyView master,
                  AnyView m, AnyView v, AnyView grad, AnyView weight) {
  const NoiseVectors vectors(noise);
  const Streams<M> s{static_cast<float*>(master.data), static_cast<M*>(m.data),
                     static_cast<M*>(v.data), static_cast<const float*>(grad.data)};
  if (weight.dtype == DType::kBF16) {
    step_typed(context, f, vectors, s, static_cast<bf16*>(weight.data), master.elements());
  } else {
    step_typed(context, f, vectors, s, static_cast<float*>(weight.data), master.elements());
  }
}

void step(Context& context, const AdamWStep& options, const NoiseStream& noise, const float* scale,
          AnyView master, AnyView m, AnyView v, AnyView grad, AnyView weight) {
  const float factor = scale == nullptr ? 1.0f : *scale;
  if (std::isnan(factor)) return;
  const auto of = m.dtype == DType::kBF16 ? &step_moments<bf16> : &step_moments<float>;
  of(context, Factors(options, factor), noise, master, m, v, grad, weight);
}

// What an element adds: gradients their squares, sums themselves.
double term(float x) {
  return static_cast<double>(x) * static_cast<double>(x);
}
double term(double x) {
  return x;
}

// Sixteen interleaved partial sums on every instruction set, joined by halves: the same bits on
// all.
template <class T>
double block_sum(const T* x, int64_t n) {
  constexpr int64_t kSums = 16;
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int64_t j = 0; j < kSums; ++j) sums[j] += term(x[i + j]);
  }
  for (int64_t j = 0; i + j < n; ++j) sums[j] += term(x[i + j]);
  for (int64_t half = kSums / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) sums[j] += sums[j + half];
  }
  return sums[0];
}

template <class T>
void all_blocks(Context& context, const T* x, int64_t n, double* sums) {
  static_assert(kSweepElements % kNormBlock == 0);
  sweep(context, n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kNormBlock) {
      sums[i / kNormBlock] = block_sum(x + i, std::min(kNormBlock, end - i));
    }
  });
}

void all_square_sums(Context& context, AnyView grad, double* block_sums) {
  all_blocks(context, static_cast<const float*>(grad.data), grad.elements(), block_sums);
}

void sum_runs(Context& context, const double* sums, int64_t n, double* run_sums) {
  run_sums[0] = 0;  // also of none
  all_blocks(context, sums, n, run_sums);
}

void gradient_scale(Context&, const double* square_sums, int64_t n, double clip, float* scale) {
  *scale = step_scale(std::sqrt(square_sums[0]), clip, all_finite(square_sums, n));
}

}  // namespace

template <>
const AdamWKernels cpu::Table<AdamWKernels, cpu::kThisIsa>::value = {&step, &all_square_sums,
                                                                     &sum_runs, &gradient_scale};

}  // namespace degu
