#include "kernels/cpu/swiglu.h"

#include "kernels/cpu/sweep.h"

namespace degu {
namespace {

inline VecF sigmoid(VecF v) {
  const VecF one = broadcast(1.0f);
  return one / (one + exp(zero() - v));
}

template <bool kStream, class T>
void forward_pass(Context& context, const T* gate, const T* up, T* act, int64_t n) {
  const auto value = [](VecF g, VecF u) { return g * sigmoid(g) * u; };
  sweep(context, n, [&](int64_t begin, int64_t end) {
    each_vector(
        begin, end, [&](int64_t i) { put<kStream>(act + i, value(load(gate + i), load(up + i))); },
        [&](int64_t i, int k) { store(act + i, value(load(gate + i, k), load(up + i, k)), k); });
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
template <bool kStream, class T>
void backward_pass(Context& context, const T* dact, const T* gate, const T* up, T* dgate, T* dup,
                   int64_t n) {
  const auto gradients = [](VecF d, VecF g, VecF u, VecF& dg, VecF& du) {
    const VecF s = sigmoid(g);
    const VecF silu = g * s;
    du = d * silu;
    dg = d * u * fma(silu, broadcast(1.0f) - s, s);
  };
  sweep(context, n, [&](int64_t begin, int64_t end) {
    VecF dg, du;
    each_vector(
        begin, end,
        [&](int64_t i) {
          gradients(load(dact + i), load(gate + i), load(up + i), dg, du);
          put<kStream>(dgate + i, dg);
          put<kStream>(dup + i, du);
        },
        [&](int64_t i, int k) {
          gradients(load(dact + i, k), load(gate + i, k), load(up + i, k), dg, du);
          store(dgate + i, dg, k);
          store(dup + i, du, k);
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
