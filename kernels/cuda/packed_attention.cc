#include <algorithm>
#include <bit>
#include <map>
#include <vector>

#include "kernels/cuda/cudnn_graphs.h"
#include "kernels/cuda/table.h"
#include "kernels/tables/packed_attention.h"
#include "tensor/cuda_state.h"

namespace degu {
namespace {

using namespace degu::cuda;

constexpr int64_t kLongestStep = 256;  // of the longest sequence that a plan is made for

// cuDNN as one GPU of the process uses it, with the plans made so far.
struct Plans {
  explicit Plans(CudaState& state) : library(open_cudnn(state.stream())) {}
  std::unique_ptr<CudnnLibrary> library;
  std::map<PackedShape, std::unique_ptr<CudnnPlan>> forward, backward;
};

Plans& plans_of(CudaState& state) {
  std::shared_ptr<void>& kept = state.attention_library();
  if (kept == nullptr) kept = std::make_shared<Plans>(state);
  return *static_cast<Plans*>(kept.get());
}

PackedShape shape_of(const PackedAttentionArgs& args) {
  const Sequences& s = args.sequences;
  int64_t longest = 1;
  for (int64_t i = 0; i < s.count(); ++i) longest = std::max(longest, s.length(i));
  return {.sequences = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(s.count()))),
          .longest = (longest + kLongestStep - 1) / kLongestStep * kLongestStep,
          .rows = s.rows(),
          .heads = args.q_THA.dim(1),
          .kv_heads = args.k_TGA.dim(1),
          .width = args.q_THA.dim(2),
          .scale = args.scale};
}

// Where each sequence begins in queries, keys and lse, and how long it is; sequences that the plan
// has and the batch lacks begin at the end and have no rows.
std::vector<int32_t> tables_of(const PackedAttentionArgs& args, const PackedShape& shape) {
  const Sequences& s = args.sequences;
  const int64_t most = shape.rows * std::max(shape.heads, shape.kv_heads) * shape.width;
  if (most > INT32_MAX) CudaState::refuse("packed_attention", "T * H * A", most, INT32_MAX);
  std::vector<int32_t> tables;
  for (const int64_t row : {shape.heads * shape.width, shape.kv_heads * shape.width, shape.heads}) {
    for (int64_t i = 0; i <= shape.sequences; ++i) {
      const int64_t begin = s.offsets[static_cast<size_t>(std::min(i, s.count()))];
      tables.push_back(static_cast<int32_t>(begin * row));
    }
  }
  for (int64_t i = 0; i < shape.sequences; ++i) {
    tables.push_back(static_cast<int32_t>(i < s.count() ? s.length(i) : 0));
  }
  return tables;
}

void run(Context& context, CudnnPlan& plan, const PackedAttentionArgs& args,
         const PackedShape& shape) {
  auto& state = static_cast<CudaState&>(*context.device_state());
  const ScratchScope scope(context.scratch());
  const std::vector<int32_t> tables = tables_of(args, shape);
  const auto bytes = tables.size() * sizeof(int32_t);
  auto* there = static_cast<int32_t*>(context.scratch().take_bytes(bytes));
  state.upload(there, tables.data(), bytes);
  void* workspace =
      plan.workspace_bytes() > 0 ? context.scratch().take_bytes(plan.workspace_bytes()) : nullptr;
  const int64_t offsets = shape.sequences + 1;
  plan.run({.q = args.q_THA.data,
            .k = args.k_TGA.data,
            .v = args.v_TGA.data,
            .out = args.out_THA.data,
            .lse = args.lse_TH.data,
            .dout = args.dout_THA.data,
            .dq = args.dq_THA.data,
            .dk = args.dk_TGA.data,
            .dv = args.dv_TGA.data,
            .q_offsets = there,
            .kv_offsets = there + offsets,
            .lse_offsets = there + 2 * offsets,
            .lengths = there + 3 * offsets},
           workspace);
}

void forward(Context& context, const PackedAttentionArgs& args) {
  Plans& plans = plans_of(static_cast<CudaState&>(*context.device_state()));
  const PackedShape shape = shape_of(args);
  std::unique_ptr<CudnnPlan>& plan = plans.forward[shape];
  if (plan == nullptr) plan = plans.library->plan_forward(shape);
  run(context, *plan, args, shape);
}

void backward(Context& context, const PackedAttentionArgs& args) {
  Plans& plans = plans_of(static_cast<CudaState&>(*context.device_state()));
  const PackedShape shape = shape_of(args);
  std::unique_ptr<CudnnPlan>& plan = plans.backward[shape];
  if (plan == nullptr) plan = plans.library->plan_backward(shape);
  run(context, *plan, args, shape);
}

}  // namespace

template <>
const PackedAttentionKernels cuda::Table<PackedAttentionKernels>::value = {&forward, &backward};

}  // namespace degu
