#include "kernels/api/attention.h"

#include "kernels/api/check.h"
#include "kernels/dispatch.h"
#include "kernels/tables/attention.h"
#include "tensor/trace.h"

namespace degu {
namespace {

void check_view(const char* op, const KvView& kv, const Sequences& sequences, bool whole) {
  if (kv.dtype != DType::kF32 && kv.dtype != DType::kBF16 && (whole || kv.dtype != DType::kI8)) {
    throw ShapeError("{}: keys and values are {}; pages hold {}", op, dtype_name(kv.dtype),
                     whole ? "fp32 or bf16 where gradients are wanted" : "fp32, bf16 or int8");
  }
  if (kv.kv_heads < 1 || kv.head_width < 1) {
    throw ShapeError("{}: {} key/value heads of width {}; both must be positive", op, kv.kv_heads,
                     kv.head_width);
  }
  const int64_t count = sequences.count();
  if (count < 0 || static_cast<int64_t>(sequences.first_position.size()) != count) {
    throw ShapeError("{}: {} offsets but {} first positions; pass one more offset than sequences",
                     op, sequences.offsets.size(), sequences.first_position.size());
  }
  const bool on_device = kv.table.empty() && kv.device_table != nullptr;
  if (!on_device && static_cast<int64_t>(kv.table.size()) != count * kv.max_pages) {
    throw ShapeError("{}: the page table has {} entries; {} sequences of {} pages need {}", op,
                     kv.table.size(), count, kv.max_pages, count * kv.max_pages);
  }
  for (int64_t s = 0; s < count; ++s) {
    const int64_t first = sequences.first_position[static_cast<size_t>(s)];
    const int64_t length = sequences.length(s);
    if (length < 0 || first < 0 || (whole && first != 0)) {
      throw ShapeError(
          "{}: sequence {} has {} rows from position {}; {}", op, s, length, first,
          whole ? "gradients take whole sequences, from position 0" : "neither may be negative");
    }
    if (length > 0 && kv_pages_for(first + length) > kv.max_pages) {
      throw ShapeError("{}: sequence {} reaches position {}, beyond its {} pages of {} keys", op, s,
                       first + length - 1, kv.max_pages, kKvPageKeys);
    }
  }
}

void check_rows(const Context& context, const char* op, const char* name, AnyView x, DType dtype,
                int64_t rows, int64_t heads, int64_t width) {
  if (x.dtype != dtype || x.shape != Shape{rows, heads, width}) {
    throw ShapeError("{}: {} is {} {}; it must be {} {}", op, name, dtype_name(x.dtype),
                     x.shape.str(), dtype_name(dtype), Shape{rows, heads, width}.str());
  }
  check::on_device(context, op, name, x);
}

// The type of queries, and of keys and values before they are stored: int8 pages take either.
DType row_type(const KvView& kv, AnyView x) {
  return kv.dtype == DType::kI8 && x.dtype == DType::kF32 ? DType::kF32
         : kv.dtype == DType::kI8                         ? DType::kBF16
                                                          : kv.dtype;
}

// Heads of q, after checking q and lse_TH against the view.
int64_t check_queries(const Context& context, const char* op, AnyView q_THA, const KvView& kv,
                      const Sequences& sequences, float scale, AnyView lse_TH) {
  const int64_t rows = sequences.rows();
  const int64_t heads = q_THA.shape.rank() == 3 ? q_THA.dim(1) : 0;
  if (heads < 1 || heads % kv.kv_heads != 0) {
    throw ShapeError("{}: q is {}; its heads must be a multiple of the {} key/value heads", op,
                     q_THA.shape.str(), kv.kv_heads);
  }
  check_rows(context, op, "q", q_THA, row_type(kv, q_THA), rows, heads, kv.head_width);
  if (!(scale > 0))
    throw ShapeError("{}: the scale of the scores is {}; it must be positive", op, scale);
  if (lse_TH && (lse_TH.dtype != DType::kF32 || lse_TH.elements() != rows * heads)) {
    throw ShapeError("{}: lse is {} {}; it must be fp32 {}", op, dtype_name(lse_TH.dtype),
                     lse_TH.shape.str(), Shape{rows, heads}.str());
  }
  if (lse_TH) check::on_device(context, op, "lse", lse_TH);
  return heads;
}

}  // namespace

size_t kv_page_bytes(const Context& context, DType dtype, int64_t kv_heads, int64_t head_width) {
  return kernels_for<AttentionKernels>(context, "attention")
      .page_bytes(dtype, kv_heads, head_width);
}

void kv_store(Context& context, AnyView k_TGA, AnyView v_TGA, const Sequences& sequences,
              const KvView& kv) {
  const TraceScope span(context, "kv_store");
  check_view("kv_store", kv, sequences, false);
  const DType type = row_type(kv, k_TGA);
  check_rows(context, "kv_store", "k", k_TGA, type, sequences.rows(), kv.kv_heads, kv.head_width);
  check_rows(context, "kv_store", "v", v_TGA, type, sequences.rows(), kv.kv_heads, kv.head_width);
  if (sequences.rows() == 0) return;
  kernels_for<AttentionKernels>(context, "attention").store(context, k_TGA, v_TGA, sequences, kv);
}

void attention(Context& context, AnyView q_THA, const KvView& kv, const Sequences& sequences,
               float scale, AnyView out_THA, AnyView lse_TH) {
  const TraceScope span(context, "attention");
  check_view("attention", kv, sequences, false);
  const int64_t heads = check_queries(context, "attention", q_THA, kv, sequences, scale, lse_TH);
  check_rows(context, "attention", "out", out_THA, q_THA.dtype, sequences.rows(), heads,
             kv.head_width);
  if (sequences.rows() == 0) return;
  kernels_for<AttentionKernels>(context, "attention")
      .forward(context, q_THA, kv, sequences, scale, out_THA, lse_TH);
}

void attention_backward(Context& context, AnyView q_THA, const KvView& kv,
                        const Sequences& sequences, float scale, AnyView out_THA, AnyView lse_TH,
                        AnyView dout_THA, AnyView dq_THA, AnyView dk_TGA, AnyView dv_TGA) {
  const TraceScope span(context, "attention_backward");
  constexpr const char* kOp = "attention_backward";
  check_view(kOp, kv, sequences, true);
  const int64_t rows = sequences.rows();
  const int64_t heads = check_queries(context, kOp, q_THA, kv, sequences, scale, lse_TH);
  if (!lse_TH && rows > 0) throw ShapeError("{}: needs the lse that the forward pass wrote", kOp);
  check_rows(context, kOp, "out", out_THA, kv.dtype, rows, heads, kv.head_width);
  check_rows(context, kOp, "dout", dout_THA, kv.dtype, rows, heads, kv.head_width);
  check_rows(context, kOp, "dq", dq_THA, kv.dtype, rows, heads, kv.head_width);
  check_rows(context, kOp, "dk", dk_TGA, kv.dtype, rows, kv.kv_heads, kv.head_width);
  check_rows(context, kOp, "dv", dv_TGA, kv.dtype, rows, kv.kv_heads, kv.head_width);
  if (rows == 0) return;
  kernels_for<AttentionBackwardKernels>(context, "attention")
      .backward(context, q_THA, kv, sequences, scale, out_THA, lse_TH, dout_THA, dq_THA, dk_TGA,
                dv_TGA);
}

}  // namespace degu
