#include "kernels/tables/quantize.h"

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/table.h"

namespace degu {
namespace {

using namespace degu::cuda;

template <class T>
struct RowsArgs {
  const T* x;
  int8_t* codes;
  float* scales;
  int64_t width;
  int64_t groups;  // of a row
  int64_t total;   // groups of all rows
  bool aligned;    // codes: words of 8 bytes
};

constexpr int kShare = 8;                                         // elements of a thread
constexpr int kSharers = static_cast<int>(kScaleGroup) / kShare;  // threads of a group
constexpr uint32_t kInfinity = 0x7f800000u;

// Four threads per group. Magnitudes are compared as integers: then infinities and NaN are largest.
template <bool kVector, class T>
__global__ void __launch_bounds__(kThreads) rows_kernel(RowsArgs<T> args) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t group = item / kSharers;
  const bool inside = group < args.total;  // all threads stay: the shuffles need whole warps
  const int64_t row = inside ? group / args.groups : 0;
  const int64_t begin = (inside ? group % args.groups : 0) * kScaleGroup + item % kSharers * kShare;
  float v[kShare];
  load<kVector>(args.x + row * args.width, begin, inside ? args.width : 0, v);
  uint32_t most = 0;
#pragma unroll
  for (int j = 0; j < kShare; ++j) most = max(most, __float_as_uint(v[j]) & 0x7fffffffu);
#pragma unroll
  for (int offset = 1; offset < kSharers; offset *= 2) {
    most = max(most, __shfl_xor_sync(kAllLanes, most, offset));
  }
  if (!inside) return;
  const float largest = __uint_as_float(most);
  const bool finite = most < kInfinity;
  const bool zeros = !finite || largest < 0x1p-100f;
  const float inverse = zeros ? 0.0f : 127.0f / largest;
  Words<8> codes{};
#pragma unroll
  for (int j = 0; j < kShare; ++j) {
    const int code = zeros ? 0 : __float2int_rn(v[j] * inverse);
    codes.word[j / 4] |= (static_cast<uint32_t>(code) & 0xffu) << j % 4 * 8;
  }
  int8_t* to = args.codes + row * args.groups * kScaleGroup + begin;
  if (args.aligned) {
    *reinterpret_cast<Words<8>*>(to) = codes;
  } else {
#pragma unroll
    for (int j = 0; j < kShare; ++j) to[j] = static_cast<int8_t>(codes.word[j / 4] >> j % 4 * 8);
  }
  if (item % kSharers == 0) {
    args.scales[group] = !finite ? __uint_as_float(0x7fc00000u) : zeros ? 0.0f : largest / 127.0f;
  }
}

template <class T>
void rows_typed(Context& context, AnyView x, const Activation& out) {
  const int64_t rows = x.dim(0);
  const int64_t width = x.dim(1);
  const int64_t groups = scale_groups(width);
  const RowsArgs<T> args{.x = static_cast<const T*>(x.data),
                         .codes = static_cast<int8_t*>(out.values.data),
                         .scales = static_cast<float*>(out.scales.data),
                         .width = width,
                         .groups = groups,
                         .total = rows * groups,
                         .aligned = reinterpret_cast<uintptr_t>(out.values.data) % 8 == 0};
  if (args.total == 0) return;
  const unsigned blocks = blocks_for(args.total * kSharers, kThreads);
  if (vectored<T>(rows, width, {x.data})) {
    launch_kernel(context, "quantize_rows", {blocks, kThreads}, &rows_kernel<true, T>, args);
  } else {
    launch_kernel(context, "quantize_rows", {blocks, kThreads}, &rows_kernel<false, T>, args);
  }
}

void rows(Context& context, AnyView x, const Activation& out) {
  x.dtype == DType::kBF16 ? rows_typed<bf16>(context, x, out) : rows_typed<float>(context, x, out);
}

// The rest is done once per model: one thread per group, the arithmetic of kernels/common/codes.h.
struct WeightArgs {
  const uint8_t* codes;
  const bf16* scales;
  int64_t inner;
  Codes kind;
};

__global__ void __launch_bounds__(kThreads)
    round_kernel(const float* w, WeightArgs args, int64_t total, uint8_t* codes, bf16* scales) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= total) return;
  const int64_t groups = scale_groups(args.inner);
  const int64_t row = item / groups;
  const int64_t begin = item % groups * kScaleGroup;
  const int64_t end = min(args.inner, begin + kScaleGroup);
  const float* from = w + row * args.inner;
  float most = 0.0f;
  for (int64_t i = begin; i < end; ++i) {
    require((__float_as_uint(from[i]) & 0x7fffffffu) < kInfinity);
    most = fmaxf(most, fabsf(from[i]));
  }
  const float scale = weight_scale(args.kind, most);
  assign(scales[item], scale);
  uint8_t* to = codes + row * code_bytes(args.kind, args.inner);
  for (int64_t i = begin; i < end; ++i) {
    store_code(args.kind, to, i, code_of(args.kind, from[i], scale));
  }
}

int64_t round_weight(Context& context, AnyView w, const QuantizedWeight& out) {
  const int64_t total = out.rows() * scale_groups(out.inner());
  if (total == 0) return -1;
  const WeightArgs args{.inner = out.inner(), .kind = scheme_info(out.scheme).codes};
  launch_kernel(context, "quantize_weight", {blocks_for(total, kThreads), kThreads}, &round_kernel,
                static_cast<const float*>(w.data), args, total,
                static_cast<uint8_t*>(out.codes.data), static_cast<bf16*>(out.scales.data));
  return -1;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(WeightArgs args, int64_t total, T* w) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= total) return;
  const int64_t row = item / args.inner;
  const int64_t i = item % args.inner;
  const uint8_t* codes = args.codes + row * code_bytes(args.kind, args.inner);
  const bf16 scale = args.scales[row * scale_groups(args.inner) + i / kScaleGroup];
  assign(w[item], code_value(args.kind, stored_code(args.kind, codes, i)) * to_float(scale));
}

void dequantize(Context& context, const QuantizedWeight& weight, AnyView w) {
  const int64_t total = w.elements();
  if (total == 0) return;
  const WeightArgs args{.codes = static_cast<const uint8_t*>(weight.codes.data),
                        .scales = static_cast<const bf16*>(weight.scales.data),
                        .inner = weight.inner(),
                        .kind = scheme_info(weight.scheme).codes};
  const unsigned blocks = blocks_for(total, kThreads);
  if (w.dtype == DType::kBF16) {
    launch_kernel(context, "dequantize", {blocks, kThreads}, &dequantize_kernel<bf16>, args, total,
                  static_cast<bf16*>(w.data));
  } else {
    launch_kernel(context, "dequantize", {blocks, kThreads}, &dequantize_kernel<float>, args, total,
                  static_cast<float*>(w.data));
  }
}

}  // namespace

template <>
const QuantizeKernels cuda::Table<QuantizeKernels>::value = {&rows, &round_weight, &dequantize};

}  // namespace degu
