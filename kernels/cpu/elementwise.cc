#include "kernels/tables/elementwise.h"

#include <cstring>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/sweep.h"

namespace degu {
namespace {

template <bool kStream, class From, class To>
void cast_pass(Context& context, const From* from, To* to, int64_t n) {
  sweep(context, n, [&](int64_t begin, int64_t end) {
    each_vector(
        begin, end, [&](int64_t i) { put<kStream>(to + i, load(from + i)); },
        [&](int64_t i, int count) { store(to + i, load(from + i, count), count); });
    if constexpr (kStream) stream_fence();
  });
}

template <class From, class To>
void cast_to(Context& context, AnyView from, AnyView to) {
  const auto* in = static_cast<const From*>(from.data);
  auto* out = static_cast<To*>(to.data);
  const int64_t n = from.elements();
  // Both pieces of a task start on a line when the arrays do: kSweepElements is a multiple of 32.
  if (n * static_cast<int64_t>(sizeof(To)) >= kStreamBytes && aligned_line(out)) {
    cast_pass<true>(context, in, out, n);
  } else {
    cast_pass<false>(context, in, out, n);
  }
}

void copy_bytes(Context& context, const void* from, void* to, size_t bytes) {
  constexpr size_t kPiece = size_t{4} * kSweepElements;
  const auto tasks = static_cast<int64_t>((bytes + kPiece - 1) / kPiece);
  context.parallel_for(tasks, [&](int64_t task, int) {
    const size_t begin = static_cast<size_t>(task) * kPiece;
    std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin,
                std::min(kPiece, bytes - begin));
  });
}

void cast(Context& context, AnyView from, AnyView to) {
  const bool from_bf16 = from.dtype == DType::kBF16;
  if (from.dtype != to.dtype) {
    from_bf16 ? cast_to<bf16, float>(context, from, to) : cast_to<float, bf16>(context, from, to);
  } else if (from.data == to.data) {
    return;
  } else if (static_cast<int64_t>(from.bytes()) >= kStreamBytes && aligned_line(to.data)) {
    // Two bf16 move as one fp32, bits untouched.
    const auto words = static_cast<int64_t>(from.bytes() / sizeof(float));
    cast_pass<true>(context, static_cast<const float*>(from.data), static_cast<float*>(to.data),
                    words);
    const size_t done = static_cast<size_t>(words) * sizeof(float);
    std::memcpy(static_cast<char*>(to.data) + done, static_cast<char*>(from.data) + done,
                from.bytes() - done);
  } else {
    copy_bytes(context, from.data, to.data, from.bytes());
  }
}

template <bool kStream, class T>
void add_pass(Context& context, const T* a, const T* b, T* out, int64_t n) {
  sweep(context, n, [&](int64_t begin, int64_t end) {
    each_vector(
        begin, end, [&](int64_t i) { put<kStream>(out + i, load(a + i) + load(b + i)); },
        [&](int64_t i, int count) {
          store(out + i, load(a + i, count) + load(b + i, count), count);
        });
    if constexpr (kStream) stream_fence();
  });
}

template <class T>
void add_typed(Context& context, AnyView a, AnyView b, AnyView out) {
  const auto* pa = static_cast<const T*>(a.data);
  const auto* pb = static_cast<const T*>(b.data);
  auto* po = static_cast<T*>(out.data);
  // In place, the line has been read anyway: a plain store is the cheaper one.
  const bool in_place = po == pa || po == pb;
  if (!in_place && static_cast<int64_t>(out.bytes()) >= kStreamBytes && aligned_line(po)) {
    add_pass<true>(context, pa, pb, po, out.elements());
  } else {
    add_pass<false>(context, pa, pb, po, out.elements());
  }
}

void add_counts(Context& context, AnyView a, AnyView b, AnyView out) {
  const auto* pa = static_cast<const int64_t*>(a.data);
  const auto* pb = static_cast<const int64_t*>(b.data);
  auto* po = static_cast<int64_t*>(out.data);
  sweep(context, out.elements(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) po[i] = pa[i] + pb[i];
  });
}

void add(Context& context, AnyView a, AnyView b, AnyView out) {
  if (a.dtype == DType::kI64) return add_counts(context, a, b, out);
  a.dtype == DType::kBF16 ? add_typed<bf16>(context, a, b, out)
                          : add_typed<float>(context, a, b, out);
}

template <class T>
void scale_typed(Context& context, AnyView x, float factor) {
  auto* p = static_cast<T*>(x.data);
  const VecF f = broadcast(factor);
  sweep(context, x.elements(), [&](int64_t begin, int64_t end) {
    each_vector(
        begin, end, [&](int64_t i) { store(p + i, load(p + i) * f); },
        [&](int64_t i, int count) { store(p + i, load(p + i, count) * f, count); });
  });
}

void scale(Context& context, AnyView x, float factor) {
  x.dtype == DType::kBF16 ? scale_typed<bf16>(context, x, factor)
                          : scale_typed<float>(context, x, factor);
}

void fill_zero(Context& context, AnyView x) {
  const size_t bytes = x.bytes();
  auto* p = static_cast<char*>(x.data);
  constexpr int64_t kPiece = int64_t{4} * kSweepElements;
  const bool past_caches = static_cast<int64_t>(bytes) >= kStreamBytes && aligned_line(p);
  context.parallel_for((static_cast<int64_t>(bytes) + kPiece - 1) / kPiece, [&](int64_t task, int) {
    const int64_t begin = task * kPiece;
    const int64_t end = std::min(static_cast<int64_t>(bytes), begin + kPiece);
    if (past_caches && (end - begin) % 64 == 0) {
      constexpr int64_t kStep = VecF::kLanes * static_cast<int64_t>(sizeof(float));
      for (int64_t i = begin; i < end; i += kStep) stream(reinterpret_cast<float*>(p + i), zero());
      stream_fence();
    } else {
      std::memset(p + begin, 0, static_cast<size_t>(end - begin));
    }
  });
}

}  // namespace

template <>
const ElementwiseKernels cpu::Table<ElementwiseKernels, cpu::kThisIsa>::value = {
    &cast, &add, &scale, &fill_zero};

}  // namespace degu
