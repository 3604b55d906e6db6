#include "comm/tree.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <type_traits>

namespace degu {
namespace {

// Elements per block: the partial sums of a block, one per level of the tree, stay in the
// first-level cache (2 KiB each in fp32) and on the stack. 2^24 ranks are more than any machine
// has.
constexpr int64_t kBlock = 512;
constexpr int kMaxLevels = 25;

template <class T, Reduce kReduce>
T combine(T a, T b) {
  if constexpr (kReduce == Reduce::kSum) {
    return a + b;
  } else {
    if constexpr (std::is_floating_point_v<T>) {
      if (std::isnan(a)) return a;
      if (std::isnan(b)) return b;
    }
    return kReduce == Reduce::kMax ? std::max(a, b) : std::min(a, b);
  }
}

// Storage type S, arithmetic type T.
template <class S, class T, Reduce kReduce>
void reduce_blocks(std::span<const void* const> sources, void* dst, int64_t elements) {
  S* out = static_cast<S*>(dst);
  const auto n = static_cast<int64_t>(sources.size());
  if (n == 2) {
    const S* a = static_cast<const S*>(sources[0]);
    const S* b = static_cast<const S*>(sources[1]);
    for (int64_t i = 0; i < elements; ++i) {
      out[i] = static_cast<S>(combine<T, kReduce>(static_cast<T>(a[i]), static_cast<T>(b[i])));
    }
    return;
  }
  std::array<std::array<T, kBlock>, kMaxLevels> stack;
  for (int64_t begin = 0; begin < elements; begin += kBlock) {
    const int64_t count = std::min(kBlock, elements - begin);
    size_t depth = 0;
    const auto join_top = [&stack, count](size_t filled) {
      T* left = stack[filled - 2].data();
      const T* right = stack[filled - 1].data();
      for (int64_t i = 0; i < count; ++i) left[i] = combine<T, kReduce>(left[i], right[i]);
    };
    for (int64_t s = 0; s < n; ++s) {
      const S* leaf = static_cast<const S*>(sources[static_cast<size_t>(s)]) + begin;
      T* top = stack[depth++].data();
      for (int64_t i = 0; i < count; ++i) top[i] = static_cast<T>(leaf[i]);
      for (int merges = tree_merges(s); merges > 0; --merges) join_top(depth--);
    }
    while (depth > 1) join_top(depth--);
    for (int64_t i = 0; i < count; ++i)
      out[begin + i] = static_cast<S>(stack[0][static_cast<size_t>(i)]);
  }
}

template <class S, class T>
void reduce_typed(Reduce reduce, std::span<const void* const> sources, void* dst,
                  int64_t elements) {
  switch (reduce) {
    case Reduce::kSum:
      return reduce_blocks<S, T, Reduce::kSum>(sources, dst, elements);
    case Reduce::kMax:
      return reduce_blocks<S, T, Reduce::kMax>(sources, dst, elements);
    case Reduce::kMin:
      return reduce_blocks<S, T, Reduce::kMin>(sources, dst, elements);
  }
}

}  // namespace

void tree_reduce(Reduce reduce, DType type, std::span<const void* const> sources, void* dst,
                 int64_t elements) {
  DEGU_DCHECK(!sources.empty());
  switch (type) {
    case DType::kF32:
      return reduce_typed<float, float>(reduce, sources, dst, elements);
    case DType::kBF16:
      return reduce_typed<bf16, float>(reduce, sources, dst, elements);
    case DType::kF64:
      return reduce_typed<double, double>(reduce, sources, dst, elements);
    case DType::kI32:
      return reduce_typed<int32_t, int32_t>(reduce, sources, dst, elements);
    case DType::kI64:
      return reduce_typed<int64_t, int64_t>(reduce, sources, dst, elements);
    case DType::kI8:
    case DType::kU8:
      break;
  }
  throw ShapeError("reduction over ranks of {}: use fp32, bf16, fp64, int32 or int64",
                   dtype_name(type));
}

}  // namespace degu
