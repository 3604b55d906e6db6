#include "kernels/api/packed_attention.h"

#include "kernels/api/check.h"
#include "kernels/cuda/table.h"
#include "kernels/tables/packed_attention.h"
#include "tensor/trace.h"

namespace degu {
namespace {

void heads_of(const Context& context, const char* op, const char* name, const AnyView& view,
              const Shape& shape) {
  check::type(context, op, name, view, {DType::kBF16});
  if (!(view.shape == shape)) {
    throw ShapeError("{}: {} is {}, must be {}", op, name, view.shape.str(), shape.str());
  }
}

void check_forward(const Context& context, const char* op, const PackedAttentionArgs& args) {
  const AnyView& q = args.q_THA;
  const AnyView& k = args.k_TGA;
  if (q.shape.rank() != 3 || k.shape.rank() != 3 || k.dim(1) < 1 || q.dim(1) % k.dim(1) != 0) {
    throw ShapeError("{}: queries are {} and keys {}, must be [T, H, A] and [T, G, A], G | H", op,
                     q.shape.str(), k.shape.str());
  }
  const Shape queries = {q.dim(0), q.dim(1), q.dim(2)};
  const Shape keys = {q.dim(0), k.dim(1), q.dim(2)};
  heads_of(context, op, "q_THA", q, queries);
  heads_of(context, op, "k_TGA", k, keys);
  heads_of(context, op, "v_TGA", args.v_TGA, keys);
  heads_of(context, op, "out_THA", args.out_THA, queries);
  check::type(context, op, "lse_TH", args.lse_TH, {DType::kF32});
  check::elements(op, "lse_TH", args.lse_TH, q.dim(0) * q.dim(1));
  const Sequences& s = args.sequences;
  if (s.offsets.size() < 2 || s.offsets.front() != 0 || s.rows() != q.dim(0)) {
    throw ShapeError("{}: sequences must cover the {} rows", op, q.dim(0));
  }
  for (const int64_t first : s.first_position) {
    if (first != 0) throw ShapeError("{}: a sequence starts at position {}, not at 0", op, first);
  }
}

// Null on a device that only plans.
const PackedAttentionKernels* kernels(const Context& context, const char* op) {
  if (context.device() == DeviceType::kPlan) return nullptr;
  if (!packed_attention_built()) {
    throw DeviceError(
        "{}: this build has no cuDNN; scripts/setup.sh --cuda, then configure again, or leave "
        "train.attention at own",
        op);
  }
  if (context.device() != DeviceType::kCuda) {
    throw DeviceError("{}: cuDNN works on GPUs alone; leave train.attention at own", op);
  }
  return &cuda::kernels<PackedAttentionKernels>(op);
}

}  // namespace

bool packed_attention_built() {
  return cuda::kBuilt && cuda::kHas<PackedAttentionKernels>;
}

void packed_attention(Context& context, AnyView q_THA, AnyView k_TGA, AnyView v_TGA,
                      const Sequences& sequences, float scale, AnyView out_THA, AnyView lse_TH) {
  const TraceScope span(context, "packed_attention");
  const PackedAttentionArgs args{q_THA,  k_TGA, v_TGA, sequences, scale, out_THA,
                                 lse_TH, {},    {},    {},        {}};
  check_forward(context, "packed_attention", args);
  const PackedAttentionKernels* table = kernels(context, "packed_attention");
  if (table != nullptr && q_THA.elements() > 0) table->forward(context, args);
}

void packed_attention_backward(Context& context, AnyView q_THA, AnyView k_TGA, AnyView v_TGA,
                               const Sequences& sequences, float scale, AnyView out_THA,
                               AnyView lse_TH, AnyView dout_THA, AnyView dq_THA, AnyView dk_TGA,
                               AnyView dv_TGA) {
  const TraceScope span(context, "packed_attention_backward");
  constexpr const char* kOp = "packed_attention_backward";
  const PackedAttentionArgs args{q_THA,  k_TGA,    v_TGA,  sequences, scale, out_THA,
                                 lse_TH, dout_THA, dq_THA, dk_TGA,    dv_TGA};
  check_forward(context, kOp, args);
  heads_of(context, kOp, "dout_THA", dout_THA, q_THA.shape);
  heads_of(context, kOp, "dq_THA", dq_THA, q_THA.shape);
  heads_of(context, kOp, "dk_TGA", dk_TGA, k_TGA.shape);
  heads_of(context, kOp, "dv_TGA", dv_TGA, k_TGA.shape);
  const PackedAttentionKernels* table = kernels(context, kOp);
  if (table == nullptr) {
    // cuDNN's workspace is known once a plan is loaded; the most of it should be dq in fp32.
    const ScratchScope scope(context.scratch());
    context.scratch().take(DType::kF32, q_THA.shape);
    return;
  }
  if (q_THA.elements() > 0) table->backward(context, args);
}

}  // namespace degu
