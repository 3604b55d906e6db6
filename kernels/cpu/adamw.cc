#include "kernels/tables/adamw.h"

#include "kernels/cpu/isa.h"
#include "kernels/cpu/sweep.h"

namespace degu {
namespace {

// The step's constants, computed in double precision and rounded once.
struct Factors {
  explicit Factors(const AdamWStep& s)
      : grad_scale(broadcast(s.grad_scale)),
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

struct Streams {
  float* master;
  float* m;
  float* v;
  const float* grad;
};

template <bool kStream, class T>
void step_pass(Context& context, const Factors& f, const Streams& s, T* weight, int64_t n) {
  sweep(context, n, [&](int64_t begin, int64_t end) {
    each_vector(
        begin, end,
        [&](int64_t i) {
          VecF m = load(s.m + i), v = load(s.v + i);
          const VecF w = updated(f, load(s.master + i), m, v, load(s.grad + i));
          store(s.m + i, m);
          store(s.v + i, v);
          store(s.master + i, w);
          if (weight != nullptr) put<kStream>(weight + i, w);
        },
        [&](int64_t i, int k) {
          VecF m = load(s.m + i, k), v = load(s.v + i, k);
          const VecF w = updated(f, load(s.master + i, k), m, v, load(s.grad + i, k));
          store(s.m + i, m, k);
          store(s.v + i, v, k);
          store(s.master + i, w, k);
          if (weight != nullptr) store(weight + i, w, k);
        });
    if constexpr (kStream) stream_fence();
  });
}

template <class T>
void step_typed(Context& context, const Factors& f, const Streams& s, T* weight, int64_t n) {
  if (aligned_line(weight) && n * static_cast<int64_t>(sizeof(T)) >= kStreamBytes) {
    step_pass<true>(context, f, s, weight, n);
  } else {
    step_pass<false>(context, f, s, weight, n);
  }
}

void step(Context& context, const AdamWStep& options, AnyView master, AnyView m, AnyView v,
          AnyView grad, AnyView weight) {
  const Factors factors(options);
  const Streams streams{static_cast<float*>(master.data), static_cast<float*>(m.data),
                        static_cast<float*>(v.data), static_cast<const float*>(grad.data)};
  if (weight.dtype == DType::kBF16) {
    step_typed(context, factors, streams, static_cast<bf16*>(weight.data), master.elements());
  } else {
    step_typed(context, factors, streams, static_cast<float*>(weight.data), master.elements());
  }
}

// Sixteen interleaved partial sums on every instruction set, joined by halves: the same bits on
// all.
double square_sum(const float* x, int64_t n) {
  constexpr int64_t kSums = 16;
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int64_t j = 0; j < kSums; ++j) {
      const auto value = static_cast<double>(x[i + j]);
      sums[j] += value * value;
    }
  }
  for (int64_t j = 0; i + j < n; ++j) {
    const auto value = static_cast<double>(x[i + j]);
    sums[j] += value * value;
  }
  for (int64_t half = kSums / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) sums[j] += sums[j + half];
  }
  return sums[0];
}

void all_square_sums(Context& context, AnyView grad, double* block_sums) {
  static_assert(kSweepElements % kNormBlock == 0);
  const auto* g = static_cast<const float*>(grad.data);
  sweep(context, grad.elements(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kNormBlock) {
      block_sums[i / kNormBlock] = square_sum(g + i, std::min(kNormBlock, end - i));
    }
  });
}

}  // namespace

template <>
const AdamWKernels cpu::Table<AdamWKernels, cpu::kThisIsa>::value = {&step, &all_square_sums};

}  // namespace degu
