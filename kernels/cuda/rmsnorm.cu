#include "kernels/tables/rmsnorm.h"

#include <algorithm>
#include <vector>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/table.h"
#include "kernels/cuda/tree_join.cuh"

namespace degu {
namespace {

using namespace degu::cuda;

template <class T>
struct ForwardArgs {
  const T* x;
  const float* gain;
  T* y;
  float* inv;  // null: not kept
  double eps;
  int64_t rows;
  int64_t width;
};

template <class Layout, bool kVector, class T>
__global__ void __launch_bounds__(Layout::kBlock) forward_kernel(ForwardArgs<T> args) {
  constexpr int N = kPack<T>;
  __shared__ float shared[32];
  const int lane = threadIdx.x % Layout::kRow;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * Layout::kRows + threadIdx.x / Layout::kRow;
  if (row >= args.rows) return;  // whole warps: rows that share a block have one each
  const T* x = args.x + row * args.width;
  float v[Layout::kPacks][N];
  float squares = 0.0f;
#pragma unroll
  for (int p = 0; p < Layout::kPacks; ++p) {
    load<kVector>(x, static_cast<int64_t>(p * Layout::kRow + lane) * N, args.width, v[p]);
#pragma unroll
    for (int j = 0; j < N; ++j) squares = fmaf(v[p][j], v[p][j], squares);
  }
  squares = Layout::sum(squares, shared);
  const double mean = static_cast<double>(squares) / static_cast<double>(args.width);
  const float scale = static_cast<float>(1.0 / sqrt(mean + args.eps));
  if (lane == 0 && args.inv != nullptr) args.inv[row] = scale;
  T* y = args.y + row * args.width;
#pragma unroll
  for (int p = 0; p < Layout::kPacks; ++p) {
    const int64_t i = static_cast<int64_t>(p * Layout::kRow + lane) * N;
    if (i >= args.width) break;
    float gain[N];
    load<kVector>(args.gain, i, args.width, gain);
#pragma unroll
    for (int j = 0; j < N; ++j) v[p][j] = (v[p][j] * scale) * gain[j];
    store<kVector>(y, i, args.width, v[p]);
  }
}

// launch(layout, vector) with the compile-time choices for rows of T.
template <class T, class Launch>
void with_layout(const char* op, int64_t width, bool vector, Launch&& launch) {
  const bool fits = with_row_layout((width + kPack<T> - 1) / kPack<T>, [&](auto layout) {
    vector ? launch(layout, std::true_type{}) : launch(layout, std::false_type{});
  });
  if (!fits) CudaState::refuse(op, "row width", width, kMostRowPacks * kPack<T>);
}

template <class T>
void forward_typed(Context& context, AnyView x, AnyView gain, double eps, AnyView y, AnyView inv) {
  const int64_t width = gain.elements();
  const int64_t rows = x.elements() / width;
  if (rows == 0) return;
  const ForwardArgs<T> args{.x = static_cast<const T*>(x.data),
                            .gain = static_cast<const float*>(gain.data),
                            .y = static_cast<T*>(y.data),
                            .inv = static_cast<float*>(inv.data),
                            .eps = eps,
                            .rows = rows,
                            .width = width};
  with_layout<T>("rmsnorm", width, vectored<T>(rows, width, {x.data, gain.data, y.data}),
                 [&]<class Layout, bool kVector>(Layout, std::bool_constant<kVector>) {
                   launch_kernel(context, "rmsnorm",
                                 {blocks_for(rows, Layout::kRows), Layout::kBlock},
                                 &forward_kernel<Layout, kVector, T>, args);
                 });
}

void forward(Context& context, AnyView x, AnyView gain, double eps, AnyView y, AnyView inv) {
  x.dtype == DType::kBF16 ? forward_typed<bf16>(context, x, gain, eps, y, inv)
                          : forward_typed<float>(context, x, gain, eps, y, inv);
}

// Rows that give one partial sum of dgain, anchored at the start of their unit: enough blocks for a
// GPU at a few thousand rows, partial sums still small beside the rows.
constexpr int64_t kRowBlock = 32;

struct RowBlock {
  int64_t begin;
  int64_t end;
};

template <class T>
struct BackwardArgs {
  const T* dy;
  const T* x;
  const float* gain;
  const float* inv;
  const T* add;  // may be null, or dx
  T* dx;
  float* partial;  // [blocks, width]
  const RowBlock* blocks;
  int64_t width;
};

template <class Layout, bool kVector, class T>
__global__ void __launch_bounds__(Layout::kBlock) backward_kernel(BackwardArgs<T> args) {
  constexpr int N = kPack<T>;
  constexpr int kWidth = Layout::kRow * Layout::kPacks * N;
  __shared__ float shared[Layout::kRows == 1 ? 32 : Layout::kRows * kWidth];
  const int lane = threadIdx.x % Layout::kRow;
  const int group = threadIdx.x / Layout::kRow;
  const int64_t width = args.width;
  const RowBlock block = args.blocks[blockIdx.x];
  float gain[Layout::kPacks][N], sum[Layout::kPacks][N];
#pragma unroll
  for (int p = 0; p < Layout::kPacks; ++p) {
    load<kVector>(args.gain, static_cast<int64_t>(p * Layout::kRow + lane) * N, width, gain[p]);
#pragma unroll
    for (int j = 0; j < N; ++j) sum[p][j] = 0.0f;
  }
  for (int64_t row = block.begin + group; row < block.end; row += Layout::kRows) {
    const int64_t at = row * width;
    float d[Layout::kPacks][N], v[Layout::kPacks][N];
    float dot = 0.0f;
#pragma unroll
    for (int p = 0; p < Layout::kPacks; ++p) {
      const int64_t i = static_cast<int64_t>(p * Layout::kRow + lane) * N;
      load<kVector>(args.dy + at, i, width, d[p]);
      load<kVector>(args.x + at, i, width, v[p]);
#pragma unroll
      for (int j = 0; j < N; ++j) dot = fmaf(gain[p][j] * d[p][j], v[p][j], dot);
    }
    dot = Layout::sum(dot, shared);
    const float r = args.inv[row];
    const float c = dot / static_cast<float>(width) * r * r;
#pragma unroll
    for (int p = 0; p < Layout::kPacks; ++p) {
      const int64_t i = static_cast<int64_t>(p * Layout::kRow + lane) * N;
      if (i >= width) break;
      float out[N];
      if (args.add != nullptr) {
        load<kVector>(args.add + at, i, width, out);
      } else {
#pragma unroll
        for (int j = 0; j < N; ++j) out[j] = 0.0f;
      }
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float dr = d[p][j] * r;
        sum[p][j] = fmaf(dr, v[p][j], sum[p][j]);
        out[j] = fmaf(dr, gain[p][j], out[j] - (v[p][j] * r) * c);
      }
      store<kVector>(args.dx + at, i, width, out);
    }
  }
  float* partial = args.partial + static_cast<int64_t>(blockIdx.x) * width;
  if constexpr (Layout::kRows == 1) {
#pragma unroll
    for (int p = 0; p < Layout::kPacks; ++p) {
      store<kVector>(partial, static_cast<int64_t>(p * Layout::kRow + lane) * N, width, sum[p]);
    }
  } else {  // the groups' sums in order of their numbers
#pragma unroll
    for (int p = 0; p < Layout::kPacks; ++p) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        shared[group * kWidth + (p * Layout::kRow + lane) * N + j] = sum[p][j];
      }
    }
    __syncthreads();
    for (int column = static_cast<int>(threadIdx.x); column < width; column += Layout::kBlock) {
      float total = shared[column];
#pragma unroll
      for (int g = 1; g < Layout::kRows; ++g) total = total + shared[g * kWidth + column];
      partial[column] = total;
    }
  }
}

struct RowBlocks {
  std::vector<RowBlock> blocks;
  std::vector<int64_t> first_block;  // of each unit, and the end
  std::vector<int64_t> first_unit;   // of each slot, and the end
};

RowBlocks row_blocks(const UnitSegments& segments) {
  RowBlocks cut;
  cut.first_block.push_back(0);
  for (int64_t u = 0; u < segments.slots * segments.units; ++u) {
    const int64_t end = segments.offsets[static_cast<size_t>(u) + 1];
    for (int64_t r = segments.offsets[static_cast<size_t>(u)]; r < end; r += kRowBlock) {
      cut.blocks.push_back({r, std::min(end, r + kRowBlock)});
    }
    cut.first_block.push_back(static_cast<int64_t>(cut.blocks.size()));
  }
  for (int64_t s = 0; s <= segments.slots; ++s) cut.first_unit.push_back(s * segments.units);
  return cut;
}

template <class T>
void backward_typed(Context& context, AnyView dy, AnyView x, AnyView gain, AnyView inv,
                    const UnitSegments& segments, AnyView add, AnyView dx, AnyView dgain,
                    Write write) {
  const int64_t width = gain.elements();
  const RowBlocks cut = row_blocks(segments);
  const auto count = static_cast<int64_t>(cut.blocks.size());
  ScratchScope scope(context.scratch());
  float* partial_BD = scratch_of<float>(context, count * width);
  if (count > 0) {
    const BackwardArgs<T> args{.dy = static_cast<const T*>(dy.data),
                               .x = static_cast<const T*>(x.data),
                               .gain = static_cast<const float*>(gain.data),
                               .inv = static_cast<const float*>(inv.data),
                               .add = static_cast<const T*>(add.data),
                               .dx = static_cast<T*>(dx.data),
                               .partial = partial_BD,
                               .blocks = on_device(context, std::span<const RowBlock>(cut.blocks)),
                               .width = width};
    const bool vector =
        vectored<T>(segments.rows(), width, {dy.data, x.data, gain.data, add.data, dx.data});
    with_layout<T>("rmsnorm_backward", width, vector,
                   [&]<class Layout, bool kVector>(Layout, std::bool_constant<kVector>) {
                     launch_kernel(context, "rmsnorm_backward",
                                   {static_cast<unsigned>(count), Layout::kBlock},
                                   &backward_kernel<Layout, kVector, T>, args);
                   });
  }
  const int64_t leaves = segments.slots * segments.units;
  auto* out = static_cast<float*>(dgain.data);
  const int64_t* first_block = on_device(context, std::span<const int64_t>(cut.first_block));
  if (segments.units == 1) {
    join_tree(context, partial_BD, first_block, leaves, width, out, write);
    return;
  }
  float* unit_UD = scratch_of<float>(context, leaves * width);
  join_tree(context, partial_BD, first_block, leaves, width, unit_UD, Write::kOverwrite);
  const int64_t* first_unit = on_device(context, std::span<const int64_t>(cut.first_unit));
  join_tree(context, unit_UD, first_unit, segments.slots, width, out, write);
}

void backward(Context& context, AnyView dy, AnyView x, AnyView gain, AnyView inv,
              const UnitSegments& segments, AnyView add, AnyView dx, AnyView dgain, Write write) {
  x.dtype == DType::kBF16
      ? backward_typed<bf16>(context, dy, x, gain, inv, segments, add, dx, dgain, write)
      : backward_typed<float>(context, dy, x, gain, inv, segments, add, dx, dgain, write);
}

}  // namespace

template <>
const RmsNormKernels cuda::Table<RmsNormKernels>::value = {&forward, &backward};

}  // namespace degu
