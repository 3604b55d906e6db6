#include "kernels/tables/swiglu.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/table.h"

namespace degu {
namespace {

using namespace degu::cuda;

// Below this the sigmoid is below 2e-38 and silu counts as silu(kLeast), -1e-36: as on the CPU.
constexpr float kLeast = -87.0f;

__device__ inline float clamped(float gate) {
  return gate < kLeast ? kLeast : gate;  // NaN stays
}

// 1 / (1 + e^-v). bf16: the fast exponential and quotient err by less than 2^-16, far inside the
// 2^-9 that rounding to bf16 takes.
template <class T>
__device__ inline float sigmoid(float v) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return 1.0f / (1.0f + expf(-v));
  } else {
    return __fdividef(1.0f, 1.0f + __expf(-v));
  }
}

template <class T>
struct Forward {
  const T* gate;
  const T* up;
  T* act;
  int64_t n;
  template <bool kVector>
  __device__ void at(int64_t i) const {
    float g[kPack<T>], u[kPack<T>];
    load<kVector>(gate, i, n, g);
    load<kVector>(up, i, n, u);
#pragma unroll
    for (int j = 0; j < kPack<T>; ++j) {
      const float v = clamped(g[j]);
      g[j] = v * sigmoid<T>(v) * u[j];
    }
    store<kVector>(act, i, n, g);
  }
};

// silu(g) = g s with s = 1 / (1 + e^-g);   silu'(g) = s + silu(g) (1 - s)
template <class T>
struct Backward {
  const T* dact;
  const T* gate;
  const T* up;
  T* dgate;
  T* dup;
  int64_t n;
  template <bool kVector>
  __device__ void at(int64_t i) const {
    float d[kPack<T>], g[kPack<T>], u[kPack<T>];
    load<kVector>(dact, i, n, d);
    load<kVector>(gate, i, n, g);
    load<kVector>(up, i, n, u);
#pragma unroll
    for (int j = 0; j < kPack<T>; ++j) {
      const float v = clamped(g[j]);
      const float s = sigmoid<T>(v);
      const float silu = v * s;
      g[j] = d[j] * u[j] * fmaf(silu, 1.0f - s, s);
      u[j] = d[j] * silu;
    }
    store<kVector>(dgate, i, n, g);
    store<kVector>(dup, i, n, u);
  }
};

template <class T, class F>
void launch(Context& context, const char* op, bool vector, const F& f) {
  if (f.n == 0) return;
  const unsigned blocks = blocks_for(f.n, int64_t{kThreads} * kPack<T>);
  if (vector) {
    launch_kernel(context, op, {blocks, kThreads}, &each_pack_kernel<true, kPack<T>, F>, f.n, f);
  } else {
    launch_kernel(context, op, {blocks, kThreads}, &each_pack_kernel<false, kPack<T>, F>, f.n, f);
  }
}

template <class T>
void forward_typed(Context& context, AnyView gate, AnyView up, AnyView act, int64_t n) {
  const Forward<T> f{static_cast<const T*>(gate.data), static_cast<const T*>(up.data),
                     static_cast<T*>(act.data), n};
  launch<T>(context, "swiglu", vectored<T>(1, 0, {gate.data, up.data, act.data}), f);
}

void forward(Context& context, AnyView gate, AnyView up, AnyView act, int64_t n) {
  gate.dtype == DType::kBF16 ? forward_typed<bf16>(context, gate, up, act, n)
                             : forward_typed<float>(context, gate, up, act, n);
}

template <class T>
void backward_typed(Context& context, AnyView dact, AnyView gate, AnyView up, AnyView dgate,
                    AnyView dup, int64_t n) {
  const Backward<T> f{static_cast<const T*>(dact.data), static_cast<const T*>(gate.data),
                      static_cast<const T*>(up.data),   static_cast<T*>(dgate.data),
                      static_cast<T*>(dup.data),        n};
  const bool vector = vectored<T>(1, 0, {dact.data, gate.data, up.data, dgate.data, dup.data});
  launch<T>(context, "swiglu_backward", vector, f);
}

void backward(Context& context, AnyView dact, AnyView gate, AnyView up, AnyView dgate, AnyView dup,
              int64_t n) {
  gate.dtype == DType::kBF16 ? backward_typed<bf16>(context, dact, gate, up, dgate, dup, n)
                             : backward_typed<float>(context, dact, gate, up, dgate, dup, n);
}

}  // namespace

template <>
const SwigluKernels cuda::Table<SwigluKernels>::value = {&forward, &backward};

}  // namespace degu
