#include "kernels/tables/router.h"

#include <climits>
#include <cmath>
#include <vector>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/table.h"
#include "kernels/cuda/tree_join.cuh"

namespace degu {
namespace {

using namespace degu::cuda;

// A warp per token; lane l has experts l, l + 32, …: sums over experts have an order fixed by E.
constexpr int kTokenWarps = 4;  // tokens per block
constexpr int kTokenThreads = 32 * kTokenWarps;

struct TopkArgs {
  const float* logit;
  const float* bias;  // null: none
  float* score;
  int32_t* expert;
  float* gate;
  float* lse;
  int64_t tokens;
  int experts;
  int top_k;
  bool softmax;
  bool renormalize;
  float gate_scale;
};

// Scores of one token, lane by lane; returns log sum_e exp(logit).
__device__ inline float score_token(const TopkArgs& args, const float* logit, float* score,
                                    int lane) {
  float top = -INFINITY;
  for (int e = lane; e < args.experts; e += 32) top = fmaxf(top, logit[e]);
  top = warp_max(top);
  float sum = 0.0f;
  for (int e = lane; e < args.experts; e += 32) {
    const float raised = expf(logit[e] - top);  // NaN stays, and inf - inf becomes it
    sum = sum + raised;
    score[e] = raised;
  }
  sum = warp_sum(sum);
  for (int e = lane; e < args.experts; e += 32) {
    score[e] = args.softmax ? score[e] / sum : 1.0f / (1.0f + expf(-logit[e]));
  }
  return top + logf(sum);
}

// Ranks above: a larger key, among equals the lower index.
__device__ inline bool above(float key, int e, float other_key, int other) {
  return key > other_key || (key == other_key && e < other);
}

// The expert next in rank after (last_key, last), on every lane.
__device__ inline int next_expert(const TopkArgs& args, const float* score, int lane,
                                  float& last_key, int last) {
  float best_key = -INFINITY;
  int best = INT_MAX;
  for (int e = lane; e < args.experts; e += 32) {
    float key = args.bias != nullptr ? score[e] + args.bias[e] : score[e];
    if (isnan(key)) key = -INFINITY;
    if (above(last_key, last, key, e) && above(key, e, best_key, best)) {
      best_key = key;
      best = e;
    }
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const float key = __shfl_xor_sync(kAllLanes, best_key, offset);
    const int e = __shfl_xor_sync(kAllLanes, best, offset);
    if (above(key, e, best_key, best)) {
      best_key = key;
      best = e;
    }
  }
  last_key = best_key;
  return best;
}

__global__ void __launch_bounds__(kTokenThreads) topk_kernel(TopkArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kTokenWarps + threadIdx.x / 32;
  if (t >= args.tokens) return;
  float* score = args.score + t * args.experts;
  int32_t* expert = args.expert + t * args.top_k;
  float* gate = args.gate + t * args.top_k;
  const float lse = score_token(args, args.logit + t * args.experts, score, lane);
  if (lane == 0) args.lse[t] = lse;
  __syncwarp();  // lanes read each other's scores from here on
  float sum = 0.0f, last_key = INFINITY;
  int last = -1;
  for (int k = 0; k < args.top_k; ++k) {
    last = next_expert(args, score, lane, last_key, last);
    const float value = score[last];
    sum = sum + value;
    if (lane == 0) {
      expert[k] = last;
      gate[k] = value;
    }
  }
  __syncwarp();
  for (int k = lane; k < args.top_k; k += 32) {
    gate[k] = (args.renormalize ? gate[k] / sum : gate[k]) * args.gate_scale;
  }
}

void topk(Context& context, AnyView logit_TE, AnyView bias_E, const RouterOptions& options,
          AnyView score_TE, AnyView expert_TK, AnyView gate_TK, AnyView lse_T) {
  const TopkArgs args{.logit = static_cast<const float*>(logit_TE.data),
                      .bias = static_cast<const float*>(bias_E.data),
                      .score = static_cast<float*>(score_TE.data),
                      .expert = static_cast<int32_t*>(expert_TK.data),
                      .gate = static_cast<float*>(gate_TK.data),
                      .lse = static_cast<float*>(lse_T.data),
                      .tokens = logit_TE.dim(0),
                      .experts = static_cast<int>(logit_TE.dim(1)),
                      .top_k = options.top_k,
                      .softmax = options.score == Score::kSoftmax,
                      .renormalize = options.renormalize,
                      .gate_scale = options.gate_scale};
  if (args.tokens == 0) return;
  launch_kernel(context, "router_topk", {blocks_for(args.tokens, kTokenWarps), kTokenThreads},
                &topk_kernel, args);
}

struct BackwardArgs {
  const float* logit;
  const float* score;
  const int32_t* expert;
  const float* lse;
  const float* dgate;
  const float* dscore;           // [groups, experts]; null: none
  const int64_t* group_offsets;  // [groups + 1]
  float* dlogit;
  int64_t tokens;
  int groups;
  int experts;
  int top_k;
  bool softmax;
  bool renormalize;
  float gate_scale;
  float dz;
};

// The group of a token: the last that starts at or before it (empty ones end there too).
__device__ inline int64_t group_of(const BackwardArgs& args, int64_t t) {
  int low = 0, high = args.groups;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (args.group_offsets[middle] <= t ? low : high) = middle;
  }
  return low;
}

// dL/dscore of one token into `d`; the formulas are those of kernels/cpu/router.cc. A lane touches
// its own experts only.
__device__ inline void score_gradient(const BackwardArgs& args, int64_t t, const float* score,
                                      float* d, int lane) {
  const int32_t* expert = args.expert + t * args.top_k;
  const float* dgate = args.dgate + t * args.top_k;
  const float* dshare =
      args.dscore != nullptr ? args.dscore + group_of(args, t) * args.experts : nullptr;
  float mean = 0.0f, total = 1.0f;
  if (dshare != nullptr && !args.softmax) {
    float sum = 0.0f, weighted = 0.0f;
    for (int e = lane; e < args.experts; e += 32) {
      sum = sum + score[e];
      weighted = weighted + score[e] * dshare[e];
    }
    total = warp_sum(sum);
    mean = warp_sum(weighted) / total;
  }
  for (int e = lane; e < args.experts; e += 32) {
    d[e] = dshare == nullptr ? 0.0f : args.softmax ? dshare[e] : (dshare[e] - mean) / total;
  }
  float chosen = 0.0f, weighted = 0.0f;
  for (int k = 0; args.renormalize && k < args.top_k; ++k) {
    chosen = chosen + score[expert[k]];
    weighted = weighted + dgate[k] * score[expert[k]];
  }
  for (int k = 0; k < args.top_k; ++k) {
    const int e = expert[k];
    if (e % 32 != lane) continue;
    const float part = args.renormalize ? (dgate[k] - weighted / chosen) * args.gate_scale / chosen
                                        : dgate[k] * args.gate_scale;
    d[e] = d[e] + part;
  }
}

__global__ void __launch_bounds__(kTokenThreads) backward_kernel(BackwardArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kTokenWarps + threadIdx.x / 32;
  if (t >= args.tokens) return;
  const float* score = args.score + t * args.experts;
  const float* logit = args.logit + t * args.experts;
  float* d = args.dlogit + t * args.experts;
  score_gradient(args, t, score, d, lane);
  float mean = 0.0f;
  if (args.softmax) {
    for (int e = lane; e < args.experts; e += 32) mean = mean + score[e] * d[e];
    mean = warp_sum(mean);
  }
  const float lse = args.lse[t];
  const float z = 2.0f * args.dz * lse;
  for (int e = lane; e < args.experts; e += 32) {
    const float s = score[e];
    float out = args.softmax ? s * (d[e] - mean) : d[e] * (s * (1.0f - s));
    if (args.dz != 0.0f) out = fmaf(z, args.softmax ? s : expf(logit[e] - lse), out);
    d[e] = out;
  }
}

void topk_backward(Context& context, AnyView logit_TE, AnyView score_TE, AnyView expert_TK,
                   AnyView lse_T, AnyView dgate_TK, AnyView dscore_GE,
                   std::span<const int64_t> group_offsets, float dz, const RouterOptions& options,
                   AnyView dlogit_TE) {
  ScratchScope scope(context.scratch());
  const bool balanced = static_cast<bool>(dscore_GE);
  const BackwardArgs args{.logit = static_cast<const float*>(logit_TE.data),
                          .score = static_cast<const float*>(score_TE.data),
                          .expert = static_cast<const int32_t*>(expert_TK.data),
                          .lse = static_cast<const float*>(lse_T.data),
                          .dgate = static_cast<const float*>(dgate_TK.data),
                          .dscore = static_cast<const float*>(dscore_GE.data),
                          .group_offsets = balanced ? on_device(context, group_offsets) : nullptr,
                          .dlogit = static_cast<float*>(dlogit_TE.data),
                          .tokens = logit_TE.dim(0),
                          .groups = balanced ? static_cast<int>(group_offsets.size()) - 1 : 0,
                          .experts = static_cast<int>(logit_TE.dim(1)),
                          .top_k = options.top_k,
                          .softmax = options.score == Score::kSoftmax,
                          .renormalize = options.renormalize,
                          .gate_scale = options.gate_scale,
                          .dz = dz};
  if (args.tokens == 0) return;
  launch_kernel(context, "router_topk_backward",
                {blocks_for(args.tokens, kTokenWarps), kTokenThreads}, &backward_kernel, args);
}

// Rows of one balance group that are summed in row order; a group's runs are joined in the tree.
constexpr int64_t kBalanceRows = 64;
constexpr int kBalanceThreads = 128;
constexpr int64_t kMostExperts = (32 << 10) / 4;  // counters in shared memory

struct Run {
  int64_t begin;
  int64_t end;
  int64_t group;
};

struct BalanceArgs {
  const float* score;
  const int32_t* expert;
  const Run* runs;
  unsigned long long* count;  // [groups, experts], zeroed
  float* partial;             // [runs, experts]
  int experts;
  int top_k;
  bool softmax;
};

__global__ void __launch_bounds__(kBalanceThreads) balance_kernel(BalanceArgs args) {
  auto* counted = reinterpret_cast<int*>(dynamic_shared);
  __shared__ float total[kBalanceRows];
  const Run run = args.runs[blockIdx.x];
  const int thread = static_cast<int>(threadIdx.x);
  const int rows = static_cast<int>(run.end - run.begin);
  for (int e = thread; e < args.experts; e += kBalanceThreads) counted[e] = 0;
  if (!args.softmax) {  // the divisor of each row's shares
    for (int r = thread / 32; r < rows; r += kBalanceThreads / 32) {
      float sum = 0.0f;
      for (int e = thread % 32; e < args.experts; e += 32) {
        sum = sum + args.score[(run.begin + r) * args.experts + e];
      }
      sum = warp_sum(sum);
      if (thread % 32 == 0) total[r] = sum;
    }
  }
  __syncthreads();
  for (int64_t i = run.begin * args.top_k + thread; i < run.end * args.top_k;
       i += kBalanceThreads) {
    const int32_t e = args.expert[i];
    require(e >= 0 && e < args.experts);
    atomicAdd(counted + e, 1);
  }
  for (int e = thread; e < args.experts; e += kBalanceThreads) {
    const float* column = args.score + run.begin * args.experts + e;
    float sum = 0.0f;
#pragma unroll 8
    for (int r = 0; r < rows; ++r) {
      const float s = column[static_cast<int64_t>(r) * args.experts];
      sum = sum + (args.softmax ? s : s / total[r]);
    }
    args.partial[static_cast<int64_t>(blockIdx.x) * args.experts + e] = sum;
  }
  __syncthreads();
  // Integers: whoever comes first, the count is the same.
  for (int e = thread; e < args.experts; e += kBalanceThreads) {
    if (counted[e] == 0) continue;
    atomicAdd(args.count + run.group * args.experts + e,
              static_cast<unsigned long long>(counted[e]));
  }
}

void balance(Context& context, AnyView score_TE, AnyView expert_TK,
             std::span<const int64_t> group_offsets, Score kind, AnyView count_GE,
             AnyView score_sum_GE) {
  const int64_t experts = score_TE.dim(1);
  const auto groups = static_cast<int64_t>(group_offsets.size()) - 1;
  if (experts > kMostExperts) CudaState::refuse("router_balance", "experts", experts, kMostExperts);
  std::vector<Run> runs;
  std::vector<int64_t> first_run = {0};
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t end = group_offsets[static_cast<size_t>(g) + 1];
    for (int64_t r = group_offsets[static_cast<size_t>(g)]; r < end; r += kBalanceRows) {
      runs.push_back({r, std::min(end, r + kBalanceRows), g});
    }
    first_run.push_back(static_cast<int64_t>(runs.size()));
  }
  const auto count = static_cast<int64_t>(runs.size());
  ScratchScope scope(context.scratch());
  CudaState& state = state_of(context);
  const BalanceArgs args{.score = static_cast<const float*>(score_TE.data),
                         .expert = static_cast<const int32_t*>(expert_TK.data),
                         .runs = on_device(context, std::span<const Run>(runs)),
                         .count = static_cast<unsigned long long*>(count_GE.data),
                         .partial = scratch_of<float>(context, count * experts),
                         .experts = static_cast<int>(experts),
                         .top_k = static_cast<int>(expert_TK.dim(1)),
                         .softmax = kind == Score::kSoftmax};
  if (count_GE.bytes() > 0) state.zero(count_GE.data, count_GE.bytes());
  if (count > 0) {
    launch_kernel(context, "router_balance",
                  {static_cast<unsigned>(count), kBalanceThreads,
                   static_cast<int>(experts * static_cast<int64_t>(sizeof(int)))},
                  &balance_kernel, args);
  }
  join_tree(context, args.partial, on_device(context, std::span<const int64_t>(first_run)), groups,
            experts, static_cast<float*>(score_sum_GE.data), Write::kOverwrite);
}

struct LossArgs {
  const int64_t* count;  // [groups, experts]
  const float* score_sum;
  const float* lse;
  const int64_t* group_offsets;
  double* aux;
  double* z;
  int64_t* load;
  float* dscore;
  double aux_weight;
  int groups;
  int experts;
  int top_k;
};

// The sum over a block's threads, on thread 0: halves are added until one is left.
__device__ inline double block_sum(double value, double* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  shared[thread] = value;
  for (int half = kBalanceThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) shared[thread] = shared[thread] + shared[thread + half];
  }
  return shared[0];
}

// A block per group, and one more for the experts' loads.
__global__ void __launch_bounds__(kBalanceThreads) loss_kernel(LossArgs args) {
  __shared__ double shared[kBalanceThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int g = static_cast<int>(blockIdx.x);
  if (g == args.groups) {
    for (int e = thread; e < args.experts; e += kBalanceThreads) {
      int64_t load = 0;
      for (int group = 0; group < args.groups; ++group) {
        load += args.count[static_cast<int64_t>(group) * args.experts + e];
      }
      args.load[e] = load;
    }
    return;
  }
  const int64_t begin = args.group_offsets[g], end = args.group_offsets[g + 1];
  const auto tokens = static_cast<double>(end - begin);
  const double scale = begin == end ? 0.0 : args.experts / (args.top_k * tokens * tokens);
  double aux = 0, squares = 0;
  for (int e = thread; e < args.experts; e += kBalanceThreads) {
    const int64_t at = static_cast<int64_t>(g) * args.experts + e;
    const auto rows = static_cast<double>(args.count[at]);
    aux = aux + scale * rows * static_cast<double>(args.score_sum[at]);
    args.dscore[at] = static_cast<float>(args.aux_weight * scale * rows);
  }
  for (int64_t t = begin + thread; t < end; t += kBalanceThreads) {
    const auto lse = static_cast<double>(args.lse[t]);
    squares = squares + lse * lse;
  }
  aux = block_sum(aux, shared);
  squares = block_sum(squares, shared);
  if (thread == 0) {
    args.aux[g] = aux;
    args.z[g] = squares;
  }
}

void losses(Context& context, AnyView count_GE, AnyView score_sum_GE, AnyView lse_T,
            std::span<const int64_t> group_offsets, int64_t top_k, double aux_weight, AnyView aux_G,
            AnyView z_G, AnyView load_E, AnyView dscore_GE) {
  const int64_t groups = count_GE.dim(0);
  const int64_t experts = count_GE.dim(1);
  if (experts > kMostExperts) CudaState::refuse("balance_losses", "experts", experts, kMostExperts);
  ScratchScope scope(context.scratch());
  const LossArgs args{.count = static_cast<const int64_t*>(count_GE.data),
                      .score_sum = static_cast<const float*>(score_sum_GE.data),
                      .lse = static_cast<const float*>(lse_T.data),
                      .group_offsets = on_device(context, group_offsets),
                      .aux = static_cast<double*>(aux_G.data),
                      .z = static_cast<double*>(z_G.data),
                      .load = static_cast<int64_t*>(load_E.data),
                      .dscore = static_cast<float*>(dscore_GE.data),
                      .aux_weight = aux_weight,
                      .groups = static_cast<int>(groups),
                      .experts = static_cast<int>(experts),
                      .top_k = static_cast<int>(top_k)};
  launch_kernel(context, "balance_losses", {static_cast<unsigned>(groups + 1), kBalanceThreads},
                &loss_kernel, args);
}

// Each thread adds up all loads: they are few, and integers.
__global__ void bias_kernel(const int64_t* load, int experts, float rate, const float* scale,
                            float* bias) {
  if (scale != nullptr && isnan(*scale)) return;
  const int e = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (e >= experts) return;
  int64_t total = 0;
  for (int other = 0; other < experts; ++other) total += load[other];
  const int64_t excess = load[e] * experts - total;
  bias[e] = bias[e] + (excess > 0 ? -rate : excess < 0 ? rate : 0.0f);
}

void bias(Context& context, AnyView load_E, float rate, const float* scale, AnyView bias_E) {
  const int64_t experts = load_E.elements();
  if (experts == 0) return;
  if (experts > kMostExperts) CudaState::refuse("balance_bias", "experts", experts, kMostExperts);
  launch_kernel(context, "balance_bias", {blocks_for(experts, kThreads), kThreads}, &bias_kernel,
                static_cast<const int64_t*>(load_E.data), static_cast<int>(experts), rate, scale,
                static_cast<float*>(bias_E.data));
}

}  // namespace

template <>
const RouterKernels cuda::Table<RouterKernels>::value = {&topk, &topk_backward, &balance, &losses,
                                                         &bias};

}  // namespace degu
