#include "kernels/tables/cross_entropy.h"

#include <cfloat>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/table.h"

namespace degu {
namespace {

using namespace degu::cuda;

constexpr int N = kPack<float>;

template <class D>
struct Args {
  const float* logit;
  const int32_t* target;
  float* loss;
  D* dlogit;  // null: not wanted; may be the logits
  int64_t size;
  float scale;
  float z_loss;
};

// A thread's part of a row: the largest logit so far and the sum of exponentials below it. The
// maximum starts finite, so that logits that are all -infinity weigh 0 instead of NaN.
struct Running {
  float top = -FLT_MAX;
  float sum = 0.0f;
};

__device__ inline void take(Running& state, const float (&v)[N], int count) {
  float top = state.top;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if (j < count) top = fmaxf(top, v[j]);
  }
  if (top > state.top) {
    state.sum = state.sum * expf(state.top - top);
    state.top = top;
  }
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if (j < count) state.sum = state.sum + expf(v[j] - top);
  }
}

// A block per row. The row is read twice; the second time it comes from the L2 cache, for the rows
// in hand (a block or two on each multiprocessor) fit there.
template <int kBlock, bool kVector, class D>
__global__ void __launch_bounds__(kBlock) loss_kernel(Args<D> args) {
  __shared__ float shared[32];
  const int64_t t = blockIdx.x;
  const int64_t size = args.size;
  const int32_t target = args.target[t];
  const float* x = args.logit + t * size;
  D* out = args.dlogit != nullptr ? args.dlogit + t * size : nullptr;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * N;
  if (target < 0) {
    const float zeros[N] = {};
    if (threadIdx.x == 0) args.loss[t] = 0.0f;
    for (int64_t v = first; out != nullptr && v < size; v += kBlock * N) {
      store<kVector>(out, v, size, zeros);
    }
    return;
  }
  const float chosen = x[target];  // before the gradient takes its place
  Running mine;
#pragma unroll 2
  for (int64_t v = first; v < size; v += kBlock * N) {
    float logit[N];
    load<kVector>(x, v, size, logit);
    take(mine, logit, static_cast<int>(min(static_cast<int64_t>(N), size - v)));
  }
  const float top = block_max<kBlock>(mine.top, shared);
  const float sum = block_sum<kBlock>(mine.sum * expf(mine.top - top), shared);
  const float lse = top + logf(sum);
  if (threadIdx.x == 0) {
    args.loss[t] = (top - chosen) + logf(sum) + args.z_loss * lse * lse;
  }
  if (out == nullptr) return;
  const float weight = args.scale * (1.0f + 2.0f * args.z_loss * lse) / sum;
#pragma unroll 2
  for (int64_t v = first; v < size; v += kBlock * N) {
    float g[N];
    load<kVector>(x, v, size, g);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      g[j] = expf(g[j] - top) * weight;
      if (v + j == target) g[j] = g[j] - args.scale;
    }
    store<kVector>(out, v, size, g);
  }
}

template <int kBlock, class D>
void launch(Context& context, int64_t rows, bool vector, const Args<D>& args) {
  const auto blocks = static_cast<unsigned>(rows);
  if (vector) {
    launch_kernel(context, "cross_entropy", {blocks, kBlock}, &loss_kernel<kBlock, true, D>, args);
  } else {
    launch_kernel(context, "cross_entropy", {blocks, kBlock}, &loss_kernel<kBlock, false, D>, args);
  }
}

template <class D>
void loss_typed(Context& context, AnyView logit_TV, std::span<const int32_t> target_T, float scale,
                float z_loss, AnyView loss_T, AnyView dlogit_TV) {
  ScratchScope scope(context.scratch());
  const int64_t rows = logit_TV.dim(0);
  const int64_t size = logit_TV.dim(1);
  const Args<D> args{.logit = static_cast<const float*>(logit_TV.data),
                     .target = on_device(context, target_T),
                     .loss = static_cast<float*>(loss_T.data),
                     .dlogit = static_cast<D*>(dlogit_TV.data),
                     .size = size,
                     .scale = scale,
                     .z_loss = z_loss};
  const bool vector = vectored<float>(2, size, {logit_TV.data, dlogit_TV.data});
  // How many threads share a row, and so the order of its sum, is a matter of V alone.
  if (size >= 4096) {
    launch<512>(context, rows, vector, args);
  } else {
    launch<128>(context, rows, vector, args);
  }
}

void loss(Context& context, AnyView logit_TV, std::span<const int32_t> target_T, float scale,
          float z_loss, AnyView loss_T, AnyView dlogit_TV) {
  if (dlogit_TV && dlogit_TV.dtype == DType::kBF16) {
    loss_typed<bf16>(context, logit_TV, target_T, scale, z_loss, loss_T, dlogit_TV);
  } else {
    loss_typed<float>(context, logit_TV, target_T, scale, z_loss, loss_T, dlogit_TV);
  }
}

}  // namespace

template <>
const CrossEntropyKernels cuda::Table<CrossEntropyKernels>::value = {&loss};

}  // namespace degu
