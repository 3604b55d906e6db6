#include "kernels/cpu/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/simd.h"

namespace degu {
namespace {

constexpr int64_t kLanes = VecF::kLanes;
// Independent vectors per step: the latency of an addition times the additions started per cycle.
constexpr int64_t kUnroll = 4;
constexpr int64_t kStep = kLanes * kUnroll;

float row_max(const float* x, int64_t size) {
  const VecF lowest = broadcast(-std::numeric_limits<float>::infinity());
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

// Sum of e_v = exp(x_v - shift), each kept in e when it is not null. Lane sums in steps of kStep
// columns from 0, then the four vectors, then the lanes: an order given by `size`.
float exp_sum(const float* x, int64_t size, float shift, float* e) {
  const VecF s = broadcast(shift);
  VecF sum[kUnroll] = {zero(), zero(), zero(), zero()};
  int64_t v = 0;
  for (; v + kStep <= size; v += kStep) {
    for (int64_t u = 0; u < kUnroll; ++u) {
      const VecF p = exp(load(x + v + u * kLanes) - s);
      if (e != nullptr) store(e + v + u * kLanes, p);
      sum[u] = sum[u] + p;
    }
  }
  for (; v < size; v += kLanes) {
    const int n = static_cast<int>(std::min(kLanes, size - v));
    const VecF p = exp(load(x + v, n) - s);
    if (e != nullptr) store(e + v, p, n);
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

// One row: three passes, of which only the first reads memory; the others find the row in a cache.
// `e` holds V floats of this thread; D is the gradient's type, `out` null when none is wanted.
template <class D>
float loss_row(const float* x, int64_t size, int32_t target, float scale, float z_loss, float* e,
               D* out) {
  const float top = row_max(x, size);
  const float sum = exp_sum(x, size, top, out != nullptr ? e : nullptr);
  const float lse = top + std::log(sum);
  // top - x[target] first: it is exact for near values, where lse - x[target] would cancel.
  const float loss = (top - x[target]) + std::log(sum) + z_loss * lse * lse;
  if (out != nullptr) {
    const float weight = scale * (1.0f + 2.0f * z_loss * lse);
    const float p = e[target] / sum;
    scale_row(e, size, weight / sum, out);
    out[target] = D(weight * p - scale);
  }
  return loss;
}

template <class D>
void loss_rows(Context& context, View<float> logit_TV, std::span<const int32_t> target_T,
               float scale, float z_loss, View<float> loss_T, D* dlogit) {
  const int64_t rows = logit_TV.dim(0);
  const int64_t size = logit_TV.dim(1);
  ScratchScope scope(context.scratch());
  // A row per thread, a cache line apart.
  const int64_t pitch = (size + 15) / 16 * 16;
  float* e = context.scratch().take<float>({context.threads(), pitch}).data();
  context.parallel_for(rows, [&](int64_t t, int thread) {
    const int32_t target = target_T[static_cast<size_t>(t)];
    D* out = dlogit == nullptr ? nullptr : dlogit + t * size;
    if (target < 0) {
      loss_T[t] = 0;
      if (out != nullptr) std::fill(out, out + size, D(0.0f));
      return;
    }
    loss_T[t] = loss_row(logit_TV.row(t), size, target, scale, z_loss, e + thread * pitch, out);
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
