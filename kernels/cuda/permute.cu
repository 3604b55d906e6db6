#include "kernels/tables/permute.h"

#include <algorithm>

#include "kernels/cuda/copy_rows.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/route_plan.cuh"
#include "kernels/cuda/row_order.cuh"
#include "kernels/cuda/table.h"

namespace degu {
namespace {

using namespace degu::cuda;

void gather_rows(Context& context, AnyView x, AnyView source, AnyView y) {
  const int64_t row_bytes = x.dim(1) * static_cast<int64_t>(size_of(x.dtype));
  copy_rows(context, "gather_rows", x.data, static_cast<const int32_t*>(source.data), y.data,
            source.elements(), row_bytes, x.dim(0));
}

template <class T>
struct CombineArgs {
  const T* x;
  const int32_t* row;
  const float* gate;  // null: ones
  const T* add;       // null: nothing; may be y
  T* y;
  int64_t x_rows;
  int64_t width;
  int top_k;
};

// A block per token; slots in order, one chain of additions per element.
template <bool kVector, class T>
__global__ void combine_kernel(CombineArgs<T> args) {
  constexpr int N = kPack<T>;
  const int64_t t = blockIdx.x;
  const int32_t* row = args.row + t * args.top_k;
  const float* gate = args.gate != nullptr ? args.gate + t * args.top_k : nullptr;
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * N; i < args.width; i += blockDim.x * N) {
    float total[N];
    if (args.add != nullptr) {
      load<kVector>(args.add + t * args.width, i, args.width, total);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) total[j] = 0.0f;
    }
#pragma unroll 4
    for (int k = 0; k < args.top_k; ++k) {
      const int64_t r = row[k];
      if (r < 0) continue;
      require(r < args.x_rows);
      float v[N];
      load<kVector>(args.x + r * args.width, i, args.width, v);
      const float g = gate != nullptr ? gate[k] : 1.0f;
#pragma unroll
      for (int j = 0; j < N; ++j) {
        total[j] = gate != nullptr ? fmaf(g, v[j], total[j]) : total[j] + v[j];
      }
    }
    store<kVector>(args.y + t * args.width, i, args.width, total);
  }
}

template <class T>
void combine_typed(Context& context, AnyView x, AnyView row, AnyView gate, AnyView add, AnyView y) {
  const int64_t tokens = row.dim(0);
  const int64_t width = x.dim(1);
  if (tokens * width == 0) return;
  const CombineArgs<T> args{.x = static_cast<const T*>(x.data),
                            .row = static_cast<const int32_t*>(row.data),
                            .gate = static_cast<const float*>(gate.data),
                            .add = static_cast<const T*>(add.data),
                            .y = static_cast<T*>(y.data),
                            .x_rows = x.dim(0),
                            .width = width,
                            .top_k = static_cast<int>(row.dim(1))};
  const int64_t packs = (width + kPack<T> - 1) / kPack<T>;
  const auto threads = static_cast<unsigned>(std::min<int64_t>(kThreads, (packs + 31) / 32 * 32));
  const auto blocks = static_cast<unsigned>(tokens);
  if (vectored<T>(2, width, {x.data, add.data, y.data})) {
    launch_kernel(context, "combine", {blocks, threads}, &combine_kernel<true, T>, args);
  } else {
    launch_kernel(context, "combine", {blocks, threads}, &combine_kernel<false, T>, args);
  }
}

void combine(Context& context, AnyView x, AnyView row, AnyView gate, AnyView add, AnyView y) {
  y.dtype == DType::kBF16 ? combine_typed<bf16>(context, x, row, gate, add, y)
                          : combine_typed<float>(context, x, row, gate, add, y);
}

template <class T>
struct BackwardArgs {
  const T* dy;
  const T* x;  // may be dx
  const int32_t* row;
  const float* gate;  // null: ones
  T* dx;
  float* dgate;
  int64_t slots;
  int64_t x_rows;
  int64_t width;
  int top_k;
};

// A warp per slot: dx = gate * dy, and dot(dy, x).
template <bool kVector, class T>
__global__ void __launch_bounds__(kThreads) backward_kernel(BackwardArgs<T> args) {
  constexpr int N = kPack<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (slot >= args.slots) return;
  const int64_t r = args.row[slot];
  if (r < 0) {
    if (lane == 0) args.dgate[slot] = 0.0f;
    return;
  }
  require(r < args.x_rows);
  const T* dy = args.dy + slot / args.top_k * args.width;
  const T* x = args.x + r * args.width;
  T* dx = args.dx + r * args.width;
  const float g = args.gate != nullptr ? args.gate[slot] : 1.0f;
  float dot = 0.0f;
#pragma unroll 2
  for (int64_t i = static_cast<int64_t>(lane) * N; i < args.width; i += 32 * N) {
    float d[N], v[N];
    load<kVector>(dy, i, args.width, d);
    load<kVector>(x, i, args.width, v);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      dot = fmaf(d[j], v[j], dot);
      d[j] = g * d[j];
    }
    store<kVector>(dx, i, args.width, d);
  }
  dot = warp_sum(dot);
  if (lane == 0) args.dgate[slot] = dot;
}

template <class T>
void backward_typed(Context& context, AnyView dy, AnyView x, AnyView row, AnyView gate, AnyView dx,
                    AnyView dgate) {
  const BackwardArgs<T> args{.dy = static_cast<const T*>(dy.data),
                             .x = static_cast<const T*>(x.data),
                             .row = static_cast<const int32_t*>(row.data),
                             .gate = static_cast<const float*>(gate.data),
                             .dx = static_cast<T*>(dx.data),
                             .dgate = static_cast<float*>(dgate.data),
                             .slots = row.elements(),
                             .x_rows = x.dim(0),
                             .width = x.dim(1),
                             .top_k = static_cast<int>(row.dim(1))};
  if (args.slots == 0) return;
  const unsigned blocks = blocks_for(args.slots, kThreads / 32);
  if (vectored<T>(2, args.width, {dy.data, x.data, dx.data})) {
    launch_kernel(context, "combine_backward", {blocks, kThreads}, &backward_kernel<true, T>, args);
  } else {
    launch_kernel(context, "combine_backward", {blocks, kThreads}, &backward_kernel<false, T>,
                  args);
  }
}

void combine_backward(Context& context, AnyView dy, AnyView x, AnyView row, AnyView gate,
                      AnyView dx, AnyView dgate) {
  dy.dtype == DType::kBF16 ? backward_typed<bf16>(context, dy, x, row, gate, dx, dgate)
                           : backward_typed<float>(context, dy, x, row, gate, dx, dgate);
}

}  // namespace

template <>
const PermuteKernels cuda::Table<PermuteKernels>::value = {
    &cuda::route_plan, &cuda::unit_offsets, &cuda::renumber, &cuda::interleave_rows, &gather_rows,
    &combine,          &combine_backward};

}  // namespace degu
