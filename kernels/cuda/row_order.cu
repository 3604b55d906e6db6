#include "kernels/cuda/row_order.cuh"

#include <vector>

#include "kernels/common/row_runs.h"
#include "kernels/cuda/launch.cuh"

namespace degu::cuda {
namespace {

__global__ void renumber_kernel(const int32_t* index, int64_t n, const int32_t* number,
                                int32_t numbers, int32_t* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const int32_t at = index[i];
  require(at >= 0 && at < numbers);
  out[i] = number[at];
}

// A block per run.
__global__ void interleave_kernel(const RowRun* runs, int32_t* order, int32_t* place) {
  const RowRun run = runs[blockIdx.x];
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < run.rows; i += kThreads) {
    order[run.row + i] = run.arrived + i;
    place[run.arrived + i] = run.row + i;
  }
}

}  // namespace

void renumber(Context& context, AnyView index, std::span<const int32_t> number, AnyView out) {
  const int64_t n = index.elements();
  if (n == 0) return;
  const ScratchScope scope(context.scratch());
  launch_kernel(context, "renumber", {blocks_for(n, kThreads), kThreads}, &renumber_kernel,
                static_cast<const int32_t*>(index.data), n, on_device(context, number),
                static_cast<int32_t>(number.size()), static_cast<int32_t*>(out.data));
}

void interleave_rows(Context& context, std::span<const int64_t> counts_PeU, int64_t experts,
                     int64_t units, AnyView order_R, AnyView place_R) {
  const std::vector<RowRun> runs = interleaved_runs(counts_PeU, experts, units);
  if (runs.empty()) return;
  const ScratchScope scope(context.scratch());
  launch_kernel(context, "interleave_rows", {static_cast<unsigned>(runs.size()), kThreads},
                &interleave_kernel, on_device(context, std::span<const RowRun>(runs)),
                static_cast<int32_t*>(order_R.data), static_cast<int32_t*>(place_R.data));
}

}  // namespace degu::cuda
