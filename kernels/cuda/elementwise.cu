#include "kernels/tables/elementwise.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/table.h"

namespace degu {
namespace {

using namespace degu::cuda;

template <int N, class F>
void each_pack(Context& context, const char* op, bool vector, int64_t n, F f) {
  if (n == 0) return;
  const unsigned blocks = blocks_for(n, int64_t{kThreads} * N);
  if (vector) {
    launch_kernel(context, op, {blocks, kThreads}, &each_pack_kernel<true, N, F>, n, f);
  } else {
    launch_kernel(context, op, {blocks, kThreads}, &each_pack_kernel<false, N, F>, n, f);
  }
}

template <class From, class To>
struct Cast {
  static constexpr int kN = 8;
  const From* from;
  To* to;
  int64_t n;
  template <bool kVector>
  __device__ void at(int64_t i) const {
    float v[kN];
    load<kVector>(from, i, n, v);
    store<kVector>(to, i, n, v);
  }
};

template <class From, class To>
void cast_to(Context& context, AnyView from, AnyView to) {
  const Cast<From, To> f{static_cast<const From*>(from.data), static_cast<To*>(to.data),
                         from.elements()};
  each_pack<Cast<From, To>::kN>(context, "cast", vectored<char>(1, 0, {from.data, to.data}), f.n,
                                f);
}

void cast(Context& context, AnyView from, AnyView to) {
  if (from.dtype == to.dtype) {
    if (from.data != to.data && from.bytes() > 0) {
      state_of(context).move(to.data, from.data, from.bytes());
    }
  } else if (from.dtype == DType::kBF16) {
    cast_to<bf16, float>(context, from, to);
  } else {
    cast_to<float, bf16>(context, from, to);
  }
}

template <class T>
struct Add {
  const T* a;
  const T* b;
  T* out;
  int64_t n;
  template <bool kVector>
  __device__ void at(int64_t i) const {
    float x[kPack<T>], y[kPack<T>];
    load<kVector>(a, i, n, x);
    load<kVector>(b, i, n, y);
#pragma unroll
    for (int j = 0; j < kPack<T>; ++j) x[j] = x[j] + y[j];
    store<kVector>(out, i, n, x);
  }
};

template <class T>
void add_typed(Context& context, AnyView a, AnyView b, AnyView out) {
  const Add<T> f{static_cast<const T*>(a.data), static_cast<const T*>(b.data),
                 static_cast<T*>(out.data), out.elements()};
  each_pack<kPack<T>>(context, "add", vectored<T>(1, 0, {a.data, b.data, out.data}), f.n, f);
}

struct AddCounts {
  static constexpr int kN = 1;
  const int64_t* a;
  const int64_t* b;
  int64_t* out;
  template <bool>
  __device__ void at(int64_t i) const {
    out[i] = a[i] + b[i];
  }
};

void add_counts(Context& context, AnyView a, AnyView b, AnyView out) {
  const AddCounts f{static_cast<const int64_t*>(a.data), static_cast<const int64_t*>(b.data),
                    static_cast<int64_t*>(out.data)};
  each_pack<AddCounts::kN>(context, "add", false, out.elements(), f);
}

void add(Context& context, AnyView a, AnyView b, AnyView out) {
  if (a.dtype == DType::kI64) return add_counts(context, a, b, out);
  a.dtype == DType::kBF16 ? add_typed<bf16>(context, a, b, out)
                          : add_typed<float>(context, a, b, out);
}

template <class T>
struct Scale {
  T* x;
  float factor;
  int64_t n;
  template <bool kVector>
  __device__ void at(int64_t i) const {
    float v[kPack<T>];
    load<kVector>(x, i, n, v);
#pragma unroll
    for (int j = 0; j < kPack<T>; ++j) v[j] = v[j] * factor;
    store<kVector>(x, i, n, v);
  }
};

template <class T>
void scale_typed(Context& context, AnyView x, float factor) {
  const Scale<T> f{static_cast<T*>(x.data), factor, x.elements()};
  each_pack<kPack<T>>(context, "scale", vectored<T>(1, 0, {x.data}), f.n, f);
}

void scale(Context& context, AnyView x, float factor) {
  x.dtype == DType::kBF16 ? scale_typed<bf16>(context, x, factor)
                          : scale_typed<float>(context, x, factor);
}

void fill_zero(Context& context, AnyView x) {
  if (x.bytes() > 0) state_of(context).zero(x.data, x.bytes());
}

}  // namespace

template <>
const ElementwiseKernels cuda::Table<ElementwiseKernels>::value = {&cast, &add, &scale, &fill_zero};

}  // namespace degu
