#include "kernels/tables/rotary.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/table.h"

namespace degu {
namespace {

using namespace degu::cuda;

// Some of the frequencies. They travel with the launch: an upload would be one more copy, and no
// graph could hold it.
constexpr int kFrequencies = 128;
struct Frequencies {
  double value[kFrequencies];
  int begin;
  int count;
};

struct TableArgs {
  const int32_t* position;
  int64_t first;
  bool by_position;
  int64_t entries;
  int half;
  float* table;
};

// Row e of the table: the cosines of all frequencies, then the sines, at position first + e or,
// when positions lie far apart, at that of row e. Double precision, rounded once.
__global__ void table_kernel(TableArgs args, Frequencies frequencies) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t entry = index / frequencies.count;
  if (entry >= args.entries) return;
  const int i = static_cast<int>(index % frequencies.count);
  const int64_t at = args.by_position ? args.first + entry : args.position[entry];
  double sine, cosine;
  sincos(static_cast<double>(at) * frequencies.value[i], &sine, &cosine);
  float* out = args.table + entry * 2 * args.half + frequencies.begin + i;
  out[0] = static_cast<float>(cosine);
  out[args.half] = static_cast<float>(sine);
}

void fill_table(Context& context, const TableArgs& args, double theta, int64_t width) {
  for (int begin = 0; begin < args.half; begin += kFrequencies) {
    Frequencies some{.begin = begin, .count = std::min(kFrequencies, args.half - begin)};
    for (int i = 0; i < some.count; ++i) {
      some.value[i] = std::pow(theta, -2.0 * (begin + i) / static_cast<double>(width));
    }
    const unsigned blocks = blocks_for(args.entries * some.count, kThreads);
    launch_kernel(context, "rotary", {blocks, kThreads}, &table_kernel, args, some);
  }
}

template <class T>
struct Args {
  T* x;
  const float* table;
  const int32_t* position;
  int64_t first;
  bool by_position;
  float sign;
  int heads;
  int half;
};

// One token a block; a thread rotates a pack of the lower half with its partners.
template <bool kVector, class T>
__global__ void rotate_kernel(Args<T> args) {
  constexpr int N = kPack<T>;
  const int64_t t = blockIdx.x;
  const int64_t entry = args.by_position ? args.position[t] - args.first : t;
  const float* cosine = args.table + entry * 2 * args.half;
  T* token = args.x + t * args.heads * 2 * args.half;
  const int packs = (args.half + N - 1) / N;
  for (int index = static_cast<int>(threadIdx.x); index < args.heads * packs;
       index += static_cast<int>(blockDim.x)) {
    const int head = index / packs;
    const int i = index % packs * N;
    T* low = token + static_cast<int64_t>(head) * 2 * args.half;
    T* high = low + args.half;
    float a[N], b[N], c[N], s[N];
    load<kVector>(low, i, args.half, a);
    load<kVector>(high, i, args.half, b);
    load<kVector>(cosine, i, args.half, c);
    load<kVector>(cosine + args.half, i, args.half, s);
    float x[N], y[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float sine = s[j] * args.sign;
      x[j] = a[j] * c[j] - b[j] * sine;
      y[j] = b[j] * c[j] + a[j] * sine;
    }
    store<kVector>(low, i, args.half, x);
    store<kVector>(high, i, args.half, y);
  }
}

template <class T>
void rotate_rows(Context& context, AnyView x, const Args<T>& args) {
  const int work = args.heads * ((args.half + kPack<T> - 1) / kPack<T>);
  const int threads = std::min(kThreads, (work + 31) / 32 * 32);
  const auto blocks = static_cast<unsigned>(x.dim(0));
  // Rows of `half` elements, in the tensor and in the table, must all start on 16 bytes.
  if (vectored<T>(2, args.half, {x.data})) {
    launch_kernel(context, "rotary", {blocks, threads}, &rotate_kernel<true, T>, args);
  } else {
    launch_kernel(context, "rotary", {blocks, threads}, &rotate_kernel<false, T>, args);
  }
}

void rotate(Context& context, AnyView x, const RowNumbers& positions, double theta, bool inverse) {
  const int64_t rows = x.dim(0);
  const int64_t width = x.dim(2);
  const auto half = static_cast<int>(width / 2);
  const auto [low, high] = std::minmax_element(positions.host.begin(), positions.host.end());
  // Sequences share positions when training; when serving, positions lie far apart and each row has
  // its own entry, as it has where only the device knows them. An entry's bits depend on its
  // position alone.
  const int64_t range = int64_t{*high} - *low + 1;
  const bool by_position = positions.device == nullptr && range <= rows;
  const int64_t entries = by_position ? range : rows;
  ScratchScope scope(context.scratch());
  const int32_t* position = on_device(context, positions.host, positions.device);
  auto* table = scratch_of<float>(context, entries * width);
  fill_table(context,
             {.position = position,
              .first = *low,
              .by_position = by_position,
              .entries = entries,
              .half = half,
              .table = table},
             theta, width);
  const float sign = inverse ? -1.0f : 1.0f;
  const auto heads = static_cast<int>(x.dim(1));
  if (x.dtype == DType::kBF16) {
    rotate_rows<bf16>(
        context, x,
        {static_cast<bf16*>(x.data), table, position, *low, by_position, sign, heads, half});
  } else {
    rotate_rows<float>(
        context, x,
        {static_cast<float*>(x.data), table, position, *low, by_position, sign, heads, half});
  }
}

}  // namespace

template <>
const RotaryKernels cuda::Table<RotaryKernels>::value = {&rotate};

}  // namespace degu
