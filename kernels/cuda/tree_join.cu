#include "kernels/cuda/tree_join.cuh"

#include "kernels/common/tree.h"
#include "kernels/cuda/launch.cuh"

namespace degu::cuda {
namespace {

constexpr int kColumns = 32;
constexpr int kRuns = 16;
constexpr int kDepth = 32;  // tree_depth of any count that fits in memory

// A block joins 32 columns of one group. The group's leaves are cut into at most 16 aligned runs of
// a power of two, one for each row of threads: subtrees of the whole tree, whatever their number.
__global__ void __launch_bounds__(kColumns* kRuns)
    join_kernel(const float* leaves, const int64_t* first, int64_t tiles, int64_t width, float* out,
                bool add) {
  __shared__ float run_sum[kRuns][kColumns];
  const int64_t group = blockIdx.x / tiles;
  const int64_t column = static_cast<int64_t>(blockIdx.x) % tiles * kColumns + threadIdx.x;
  const int64_t begin = first[group];
  const int64_t count = first[group + 1] - begin;
  int64_t run = 1;
  while (run * kRuns < count) run *= 2;
  const int64_t from = threadIdx.y * run;
  const int64_t mine = min(run, count - from);
  const bool inside = column < width;
  if (inside && mine > 0) {
    float stack[kDepth];
    const float* leaf = leaves + (begin + from) * width + column;
    tree_join(
        mine, [&](int64_t i, int buffer) { stack[buffer] = leaf[i * width]; },
        [&](int into, int other) { stack[into] = stack[into] + stack[other]; });
    run_sum[threadIdx.y][threadIdx.x] = stack[0];
  }
  __syncthreads();
  if (!inside || threadIdx.y != 0) return;
  float stack[kDepth];
  stack[0] = 0.0f;
  tree_join((count + run - 1) / run,
            [&](int64_t i, int buffer) { stack[buffer] = run_sum[i][threadIdx.x]; },
            [&](int into, int other) { stack[into] = stack[into] + stack[other]; });
  float* to = out + group * width + column;
  *to = add ? *to + stack[0] : stack[0];
}

}  // namespace

void join_tree(Context& context, const float* leaves, const int64_t* first, int64_t groups,
               int64_t width, float* out, Write write) {
  if (groups * width == 0) return;
  const int64_t tiles = (width + kColumns - 1) / kColumns;
  launch_kernel(context, "join_tree",
                {static_cast<unsigned>(groups * tiles), dim3(kColumns, kRuns)}, &join_kernel,
                leaves, first, tiles, width, out, write == Write::kAdd);
}

}  // namespace degu::cuda
