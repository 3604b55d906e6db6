#include "kernels/tables/swiglu.h"

#include <type_traits>

#include "kernels/cpu/duo.h"
#include "kernels/cpu/int_vector.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/sweep.h"

namespace degu {
namespace {

// Below this the sigmoid is below 2e-38 and silu counts as silu(kLeast), -1e-36; its reciprocal
// stays a normal number.
constexpr float kLeast = -87.0f;

// Vectors that go through the chain of operations side by side: one alone would wait for each step.
inline constexpr int kTogether = 4;
using Vecs = VecF[kTogether];

// 1 / a within 2^-16 for a and 1 / a normal: the exponent negated in the bits, then two steps of
// Newton's. The processors' own estimates differ between makers.
inline VecF fast_reciprocal(VecF a) {
  const VecF negative = zero() - a;
  VecF y = float_of_bits(broadcast_int(0x7ef127ea) - word_bits(a));
  for (int step = 0; step < 2; ++step) y = fma(y, fma(negative, y, broadcast(1.0f)), y);
  return y;
}

// s = 1 / (1 + e^-v) for v >= kLeast. fp32: within a few ulp. bf16: e^-v and the quotient within
// 2^-13, far inside the 2^-9 that rounding to bf16 takes, at half the cost.
template <class T>
[[gnu::always_inline]] inline void sigmoid(const Vecs& v, Vecs& s) {
  const VecF one = broadcast(1.0f);
  if constexpr (std::is_same_v<T, float>) {
    for (int j = 0; j < kTogether; ++j) {
      const VecF sum = one + exp(zero() - v[j]);
      const VecF y = fast_reciprocal(sum);
      s[j] = fma(y, fma(zero() - sum, y, one), y);
    }
  } else {
    // 2^x, x = n + r with |r| <= 1/2; 2^r by the polynomial that is exact at five Chebyshev points,
    // relative error below 4e-6.
    constexpr float kCoefficients[] = {0.0559219755f, 0.240223497f, 0.693121016f, 1.0f};
    Vecs n, r;
    for (int j = 0; j < kTogether; ++j)
      r[j] = max(broadcast(-125.0f), v[j] * broadcast(-1.44269504f));
    for (int j = 0; j < kTogether; ++j) n[j] = round_nearest(r[j]);
    for (int j = 0; j < kTogether; ++j) r[j] = r[j] - n[j];
    for (int j = 0; j < kTogether; ++j) s[j] = broadcast(0.00966636837f);
    for (float coefficient : kCoefficients) {
      for (int j = 0; j < kTogether; ++j) s[j] = fma(s[j], r[j], broadcast(coefficient));
    }
    for (int j = 0; j < kTogether; ++j) s[j] = one + scale_by_power(s[j], n[j]);
    for (int j = 0; j < kTogether; ++j) s[j] = fast_reciprocal(s[j]);
  }
}

template <class T>
void load_all(const T* p, Vecs& v) {
  for (int j = 0; j < kTogether; j += 2) {
    const Duo duo = load_duo(p + j * VecF::kLanes);
    v[j] = duo.a;
    v[j + 1] = duo.b;
  }
}
template <bool kStream, class T>
void put_all(T* p, const Vecs& v) {
  for (int j = 0; j < kTogether; j += 2) put<kStream>(p + j * VecF::kLanes, Duo{v[j], v[j + 1]});
}

// full(i) for each run of kTogether vectors of [begin, end), then part(i, lanes) for what is left.
template <class Full, class Part>
void each_run(int64_t begin, int64_t end, Full&& full, Part&& part) {
  constexpr int64_t kRun = kTogether * VecF::kLanes;
  int64_t i = begin;
  for (; i + kRun <= end; i += kRun) full(i);
  for (; i < end; i += VecF::kLanes) {
    part(i, static_cast<int>(std::min<int64_t>(VecF::kLanes, end - i)));
  }
}

template <class T>
[[gnu::always_inline]] inline void activations(const Vecs& gate, const Vecs& up, Vecs& act) {
  Vecs v, s;
  for (int j = 0; j < kTogether; ++j)
    v[j] = max(broadcast(kLeast), gate[j]);  // NaN as second stays
  sigmoid<T>(v, s);
  for (int j = 0; j < kTogether; ++j) act[j] = v[j] * s[j] * up[j];
}

template <bool kStream, class T>
void forward_pass(Context& context, const T* gate, const T* up, T* act, int64_t n) {
  sweep(context, n, [&](int64_t begin, int64_t end) {
    Vecs g, u, a;
    each_run(
        begin, end,
        [&](int64_t i) {
          load_all(gate + i, g);
          load_all(up + i, u);
          activations<T>(g, u, a);
          put_all<kStream>(act + i, a);
        },
        [&](int64_t i, int k) {
          for (VecF& each : g) each = load(gate + i, k);
          for (VecF& each : u) each = load(up + i, k);
          activations<T>(g, u, a);
          store(act + i, a[0], k);
        });
    if constexpr (kStream) stream_fence();
  });
}

template <class T>
void forward_typed(Context& context, AnyView gate, AnyView up, AnyView act, int64_t n) {
  const auto* g = static_cast<const T*>(gate.data);
  const auto* u = static_cast<const T*>(up.data);
  auto* a = static_cast<T*>(act.data);
  const bool past_caches =
      a != g && a != u && aligned_line(a) && n * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
  past_caches ? forward_pass<true>(context, g, u, a, n) : forward_pass<false>(context, g, u, a, n);
}

void forward(Context& context, AnyView gate, AnyView up, AnyView act, int64_t n) {
  gate.dtype == DType::kBF16 ? forward_typed<bf16>(context, gate, up, act, n)
                             : forward_typed<float>(context, gate, up, act, n);
}

// silu(g) = g s with s = 1 / (1 + e^-g);   silu'(g) = s (1 + g (1 - s)) = s + silu(g) (1 - s)
template <class T>
[[gnu::always_inline]] inline void gradients(const Vecs& dact, const Vecs& gate, const Vecs& up,
                                             Vecs& dgate, Vecs& dup) {
  Vecs v, s;
  for (int j = 0; j < kTogether; ++j) v[j] = max(broadcast(kLeast), gate[j]);
  sigmoid<T>(v, s);
  for (int j = 0; j < kTogether; ++j) {
    const VecF silu = v[j] * s[j];
    dup[j] = dact[j] * silu;
    dgate[j] = dact[j] * up[j] * fma(silu, broadcast(1.0f) - s[j], s[j]);
  }
}

template <bool kStream, class T>
void backward_pass(Context& context, const T* dact, const T* gate, const T* up, T* dgate, T* dup,
                   int64_t n) {
  sweep(context, n, [&](int64_t begin, int64_t end) {
    Vecs d, g, u, dg, du;
    each_run(
        begin, end,
        [&](int64_t i) {
          load_all(dact + i, d);
          load_all(gate + i, g);
          load_all(up + i, u);
          gradients<T>(d, g, u, dg, du);
          put_all<kStream>(dgate + i, dg);
          put_all<kStream>(dup + i, du);
        },
        [&](int64_t i, int k) {
          for (VecF& each : d) each = load(dact + i, k);
          for (VecF& each : g) each = load(gate + i, k);
          for (VecF& each : u) each = load(up + i, k);
          gradients<T>(d, g, u, dg, du);
          store(dgate + i, dg[0], k);
          store(dup + i, du[0], k);
        });
    if constexpr (kStream) stream_fence();
  });
}

template <class T>
void backward_typed(Context& context, AnyView dact, AnyView gate, AnyView up, AnyView dgate,
                    AnyView dup, int64_t n) {
  const auto* d = static_cast<const T*>(dact.data);
  const auto* g = static_cast<const T*>(gate.data);
  const auto* u = static_cast<const T*>(up.data);
  auto* dg = static_cast<T*>(dgate.data);
  auto* du = static_cast<T*>(dup.data);
  const auto reused = [&](const T* p) { return p == d || p == g || p == u; };
  const bool past_caches = !reused(dg) && !reused(du) && aligned_line(dg) && aligned_line(du) &&
                           n * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
  past_caches ? backward_pass<true>(context, d, g, u, dg, du, n)
              : backward_pass<false>(context, d, g, u, dg, du, n);
}

void backward(Context& context, AnyView dact, AnyView gate, AnyView up, AnyView dgate, AnyView dup,
              int64_t n) {
  gate.dtype == DType::kBF16 ? backward_typed<bf16>(context, dact, gate, up, dgate, dup, n)
                             : backward_typed<float>(context, dact, gate, up, dgate, dup, n);
}

}  // namespace

template <>
const SwigluKernels cpu::Table<SwigluKernels, cpu::kThisIsa>::value = {&forward, &backward};

}  // namespace degu
