#include <algorithm>
#include <span>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/table.h"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/tables/probe.h"

namespace degu {
namespace {

using namespace degu::cuda;

constexpr int kChains =
    8;  // independent sums of a thread: more than the latency of a product hides

// `one` is 1 in the type's form, which the compiler does not know; the sums go nowhere unless they
// are what they never are.
__global__ void __launch_bounds__(kThreads) fp32_kernel(int64_t rounds, float one, float* sink) {
  float sum[kChains];
#pragma unroll
  for (int c = 0; c < kChains; ++c) sum[c] = static_cast<float>(c);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma unroll
    for (int c = 0; c < kChains; ++c) sum[c] = fmaf(sum[c], one, one);
  }
  float total = 0.0f;
#pragma unroll
  for (int c = 0; c < kChains; ++c) total = total + sum[c];
  if (total == -1.0f) *sink = total;
}

#ifdef DEGU_CUDA_WARPGROUPS
// Each block is a warpgroup with two chains of products of 64 x 128 x 16.
constexpr int kProductsOfRound = 2 * 64 * 128 * 16;
constexpr int kProductThreads = 128;
constexpr int kProductShared = 128 * 128;  // bytes: 128 columns of b, 64 inner elements each
__global__ void __launch_bounds__(kProductThreads, 2)
    bf16_kernel(int64_t rounds, uint32_t one, float* sink) {
  const uint32_t a[4] = {one, one, one, one};
  auto* b = reinterpret_cast<uint32_t*>(dynamic_shared);
  for (int i = static_cast<int>(threadIdx.x); i < kProductShared / 4; i += kProductThreads) {
    b[i] = one;
  }
  fence_copies();
  __syncthreads();
  const uint64_t columns = matrix_descriptor(b, 0, 8 * 128);
  float sum[2][16][4] = {};
  for (int64_t i = 0; i < rounds; ++i) {
    warpgroup_fence();
    warpgroup_mma<false>(sum[0], a, columns);
    warpgroup_mma<false>(sum[1], a, columns);
    warpgroup_commit();
    warpgroup_wait<1>();
  }
  warpgroup_wait<0>();
  float total = 0.0f;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
#pragma unroll
    for (int o = 0; o < 16; ++o) total = total + sum[c][o][0] + sum[c][o][1];
  }
  if (total == -1.0f) *sink = total;
}
#else
constexpr int kProductsOfRound = kThreads / 32 * kChains * 16 * 8 * 16;
constexpr int kProductThreads = kThreads;
constexpr int kProductShared = 0;
__global__ void __launch_bounds__(kThreads) bf16_kernel(int64_t rounds, uint32_t one, float* sink) {
  const uint32_t a[4] = {one, one, one, one};
  float sum[kChains][4] = {};
  for (int64_t i = 0; i < rounds; ++i) {
#pragma unroll
    for (int c = 0; c < kChains; ++c) mma_bf16(sum[c], a, one, one);
  }
  float total = 0.0f;
#pragma unroll
  for (int c = 0; c < kChains; ++c) total = total + sum[c][0] + sum[c][1] + sum[c][2] + sum[c][3];
  if (total == -1.0f) *sink = total;
}
#endif

__global__ void __launch_bounds__(kThreads) int8_kernel(int64_t rounds, uint32_t one, float* sink) {
  const uint32_t a[4] = {one, one, one, one};
  int32_t sum[kChains][4] = {};
  for (int64_t i = 0; i < rounds; ++i) {
#pragma unroll
    for (int c = 0; c < kChains; ++c) mma_int8(sum[c], a, one, one, sum[c][0]);
  }
  int32_t total = 0;
#pragma unroll
  for (int c = 0; c < kChains; ++c) total |= sum[c][0] ^ sum[c][1] ^ sum[c][2] ^ sum[c][3];
  if (total == -1) *sink = 1.0f;
}

// Milliseconds of what `launch` starts, by the device's own clock.
template <class Launch>
double seconds_of(Context& context, Launch&& launch) {
  CudaState& state = state_of(context);
  cudaEvent_t begin = nullptr, end = nullptr;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  cudaEventRecord(begin, state.stream());
  launch();
  cudaEventRecord(end, state.stream());
  state.synchronize();
  float milliseconds = 0.0f;
  cudaEventElapsedTime(&milliseconds, begin, end);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return std::max(1e-9, 1e-3 * static_cast<double>(milliseconds));
}

double arithmetic(Context& context, DType type, int64_t rounds) {
  constexpr int kBlocks = 4;  // per multiprocessor
  const auto blocks = static_cast<unsigned>(kBlocks * state_of(context).multiprocessors());
  double of_round = 2.0 * kChains * kThreads;  // a block's operations in one round
  ScratchScope scope(context.scratch());
  auto* sink = scratch_of<float>(context, 1);
  const double seconds = seconds_of(context, [&] {
    if (type == DType::kBF16) {
      of_round = 2.0 * kProductsOfRound;
      launch_kernel(context, "probe", {blocks, kProductThreads, kProductShared}, &bf16_kernel,
                    rounds, 0x3f803f80u, sink);
    } else if (type == DType::kI8) {
      of_round = 2.0 * kChains * (kThreads / 32) * 16 * 8 * 32;
      launch_kernel(context, "probe", {blocks, kThreads}, &int8_kernel, rounds, 0x01010101u, sink);
    } else {
      launch_kernel(context, "probe", {blocks, kThreads}, &fp32_kernel, rounds, 1.0f, sink);
    }
  });
  return of_round * blocks * static_cast<double>(rounds) / seconds;
}

// ---- bandwidth ----

constexpr int kMostStreams = 8;
constexpr int64_t kLine = 64;

struct Streams {
  Words<16>* at[kMostStreams];
  int64_t lines[kMostStreams];
  StreamKind kind[kMostStreams];
  int count;
  int64_t steps;
};

// One stream's part of a step, kUnroll accesses of 16 bytes a thread on their way at a time.
template <int kUnroll>
__device__ inline void move_part(StreamKind kind, Words<16>* at, int64_t begin, int64_t end,
                                 uint32_t value, uint32_t& sum) {
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads * kUnroll) {
    Words<16> held[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (kind != StreamKind::kWrite && i + u * kThreads < end) held[u] = at[i + u * kThreads];
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (i + u * kThreads >= end) break;
      if (kind == StreamKind::kRead) {
        sum ^= held[u].word[0] ^ held[u].word[1] ^ held[u].word[2] ^ held[u].word[3];
        continue;
      }
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        held[u].word[w] = kind == StreamKind::kWrite ? value : held[u].word[w] + value;
      }
      at[i + u * kThreads] = held[u];
    }
  }
}

// Streams advance together, as an operator's do: in each step the largest one moves kUnroll
// accesses a thread, the others their share.
template <int kUnroll>
__global__ void __launch_bounds__(kThreads)
    pass_kernel(Streams streams, uint32_t value, uint32_t* sink) {
  uint32_t sum = 0;
  for (int64_t s = blockIdx.x; s < streams.steps; s += gridDim.x) {
    for (int i = 0; i < streams.count; ++i) {
      constexpr int64_t kWords = kLine / 16;
      const int64_t begin = streams.lines[i] * s / streams.steps * kWords;
      const int64_t end = streams.lines[i] * (s + 1) / streams.steps * kWords;
      move_part<kUnroll>(streams.kind[i], streams.at[i], begin, end, value, sum);
    }
  }
  if (sum == 0x9e3779b9u) *sink = sum;
}

// Accesses on their way, and whether a block of threads takes one step or stays for many.
struct Way {
  int unroll;
  int64_t blocks;  // per multiprocessor; 0: one per step
};
constexpr Way kWays[] = {{4, 0}, {8, 0}, {4, 8}, {8, 8}};

double pass(Context& context, std::span<const ProbeStream> of, std::byte* const* memory, int way) {
  Streams streams{.count = static_cast<int>(of.size())};
  int64_t most = 0;
  for (size_t i = 0; i < of.size(); ++i) {
    streams.at[i] = reinterpret_cast<Words<16>*>(memory[i]);
    streams.lines[i] = of[i].bytes / kLine;
    streams.kind[i] = of[i].kind;
    most = std::max(most, of[i].bytes);
  }
  const auto [unroll, per_processor] = kWays[way];
  streams.steps = std::max<int64_t>(1, most / (int64_t{kThreads} * 16 * unroll));
  const int64_t resident = per_processor * state_of(context).multiprocessors();
  const auto blocks =
      static_cast<unsigned>(per_processor == 0 ? streams.steps : std::min(streams.steps, resident));
  ScratchScope scope(context.scratch());
  auto* sink = scratch_of<uint32_t>(context, 1);
  const double seconds = seconds_of(context, [&] {
    if (unroll == 4) {
      launch_kernel(context, "probe", {blocks, kThreads}, &pass_kernel<4>, streams, 0, sink);
    } else {
      launch_kernel(context, "probe", {blocks, kThreads}, &pass_kernel<8>, streams, 0, sink);
    }
  });
  return static_cast<double>(moved_bytes(of)) / seconds;
}

}  // namespace

template <>
const ProbeKernels cuda::Table<ProbeKernels>::value = {&arithmetic, &pass,
                                                       static_cast<int>(std::size(kWays))};

}  // namespace degu
