#include "kernels/tables/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "kernels/cpu/exp2.h"
#include "kernels/cpu/isa.h"

namespace degu {
namespace {

constexpr int64_t kLanes = VecF::kLanes;
// Independent vectors per step: the latency of an addition times the additions started per cycle.
constexpr int64_t kUnroll = 4;
constexpr int64_t kStep = kLanes * kUnroll;
// Columns of one part of a row: 4 KiB of logits, which the second look at them finds in the first
// cache. Each part has its own maximum; parts are joined at the end.
constexpr int64_t kPart = 1024;
static_assert(kPart % kStep == 0);

float part_max(const float* x, int64_t size) {
  // Finite, so that a part of logits that are all -infinity has weights 0 instead of NaN.
  const VecF lowest = broadcast(std::numeric_limits<float>::lowest());
  VecF best[kUnroll] = {lowest, lowest, lowest, lowest};
  int64_t v = 0;
  for (; v + kStep <= size; v += kStep) {
    for (int64_t u = 0; u < kUnroll; ++u) best[u] = max(best[u], load(x + v + u * kLanes));
  }
  for (; v < size; v += kLanes) {
    const int n = static_cast<int>(std::min(kLanes, size - v));
    best[0] = max(best[0], keep_first(load(x + v, n), n, lowest));
  }
  return max_lanes(max(max(best[0], best[1]), max(best[2], best[3])));
}

// exp(x - top); the difference first: it is exact for the near values, which weigh most.
VecF weight_of(VecF x, VecF top) {
  return exp2_of(max(broadcast(-200.0f), (x - top) * broadcast(kLog2E)));
}

// A part is read in a burst and then computed on for as long; the hardware's own prefetch does not
// bridge the pause. So the exponentials of one part ask for the lines of the next (rows follow one
// another), and for those that the gradient of this one will be written to. One call per kStep
// columns.
template <class D>
void prefetch_step(const float* next, const D* out) {
  constexpr int64_t kLine = 64;
  for (int64_t b = 0; b < kStep * static_cast<int64_t>(sizeof(float)); b += kLine) {
    __builtin_prefetch(reinterpret_cast<const std::byte*>(next) + b, 0);
  }
  for (int64_t b = 0; b < kStep * static_cast<int64_t>(sizeof(D)); b += kLine) {
    __builtin_prefetch(reinterpret_cast<const std::byte*>(out) + b, 1);
  }
}

// Sum of e_v = exp(x_v - top), each kept in e when kKeep. Lane sums in steps of kStep columns, then
// the four vectors, then the lanes: an order given by `size`.
template <bool kKeep, class D>
float part_sum(const float* x, int64_t size, float top, float* e, const D* out) {
  const VecF t = broadcast(top);
  VecF sum[kUnroll] = {zero(), zero(), zero(), zero()};
  int64_t v = 0;
  for (; v + kStep <= size; v += kStep) {
    prefetch_step(x + v + kPart, out + v);
#pragma GCC unroll 4
    for (int64_t u = 0; u < kUnroll; ++u) {
      const VecF p = weight_of(load(x + v + u * kLanes), t);
      if constexpr (kKeep) store(e + v + u * kLanes, p);
      sum[u] = sum[u] + p;
    }
  }
  for (; v < size; v += kLanes) {
    const int n = static_cast<int>(std::min(kLanes, size - v));
    const VecF p = weight_of(load(x + v, n), t);
    if constexpr (kKeep) store(e + v, p, n);
    sum[0] = sum[0] + keep_first(p, n, zero());
  }
  return sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class T>
void scale_row(const float* e, int64_t size, float factor, T* out) {
  const VecF f = broadcast(factor);
  int64_t v = 0;
  for (; v + kLanes <= size; v += kLanes) store(out + v, load(e + v) * f);
  if (v < size) {
    const int n = static_cast<int>(size - v);
    store(out + v, load(e + v, n) * f, n);
  }
}

// Scratch of one thread.
struct RowScratch {
  float* e;    // [V]: exp(x - top of the part)
  float* top;  // [parts]
  float* sum;  // [parts]
};

// One row: memory is read once, part by part; what is written passes through the caches once more
// to be scaled. `out` is null when no gradient is wanted.
template <class D>
float loss_row(const float* x, int64_t size, int32_t target, float scale, float z_loss,
               const RowScratch& scratch, D* out) {
  const int64_t parts = (size + kPart - 1) / kPart;
  const auto size_of_part = [&](int64_t i) { return std::min(kPart, size - i * kPart); };
  float top = std::numeric_limits<float>::lowest();
  for (int64_t i = 0; i < parts; ++i) {
    const float* from = x + i * kPart;
    const int64_t n = size_of_part(i);
    scratch.top[i] = part_max(from, n);
    scratch.sum[i] = out != nullptr ? part_sum<true>(from, n, scratch.top[i], scratch.e + i * kPart,
                                                     out + i * kPart)
                                    : part_sum<false>(from, n, scratch.top[i], nullptr, from);
    top = std::max(top, scratch.top[i]);
  }
  float sum = 0;
  for (int64_t i = 0; i < parts; ++i) {
    scratch.top[i] = std::exp(scratch.top[i] - top);  // from here on: the part's share of the scale
    sum = sum + scratch.sum[i] * scratch.top[i];
  }
  const float lse = top + std::log(sum);
  const float loss = (top - x[target]) + std::log(sum) + z_loss * lse * lse;
  if (out != nullptr) {
    const float weight = scale * (1.0f + 2.0f * z_loss * lse);
    const float hit = scratch.e[target] * (scratch.top[target / kPart] * (weight / sum)) - scale;
    for (int64_t i = 0; i < parts; ++i) {
      scale_row(scratch.e + i * kPart, size_of_part(i), scratch.top[i] * (weight / sum),
                out + i * kPart);
    }
    out[target] = D(hit);
  }
  return loss;
}

template <class D>
void loss_rows(Context& context, View<float> logit_TV, std::span<const int32_t> target_T,
               float scale, float z_loss, View<float> loss_T, D* dlogit) {
  const int64_t rows = logit_TV.dim(0);
  const int64_t size = logit_TV.dim(1);
  ScratchScope scope(context.scratch());
  // Rounded up to cache lines, so that threads share none.
  const int64_t row = (size + 15) / 16 * 16;
  const int64_t parts = ((size + kPart - 1) / kPart + 15) / 16 * 16;
  float* memory = context.scratch().take<float>({context.threads(), row + 2 * parts}).data();
  context.parallel_for(rows, [&](int64_t t, int thread) {
    const int32_t target = target_T[static_cast<size_t>(t)];
    D* out = dlogit == nullptr ? nullptr : dlogit + t * size;
    if (target < 0) {
      loss_T[t] = 0;
      if (out != nullptr) std::fill(out, out + size, D(0.0f));
      return;
    }
    float* e = memory + thread * (row + 2 * parts);
    loss_T[t] = loss_row(logit_TV.row(t), size, target, scale, z_loss,
                         RowScratch{e, e + row, e + row + parts}, out);
  });
}

void loss(Context& context, AnyView logit_TV, std::span<const int32_t> target_T, float scale,
          float z_loss, AnyView loss_T, AnyView dlogit_TV) {
  if (dlogit_TV && dlogit_TV.dtype == DType::kBF16) {
    loss_rows(context, logit_TV.as<float>(), target_T, scale, z_loss, loss_T.as<float>(),
              dlogit_TV.as<bf16>().data());
  } else {
    loss_rows(context, logit_TV.as<float>(), target_T, scale, z_loss, loss_T.as<float>(),
              static_cast<float*>(dlogit_TV.data));
  }
}

}  // namespace

template <>
const CrossEntropyKernels cpu::Table<CrossEntropyKernels, cpu::kThisIsa>::value = {&loss};

}  // namespace degu
