#include "kernels/api/weight.h"

#include <cstdint>

#include "kernels/api/check.h"
#include "kernels/dispatch.h"
#include "kernels/tables/weight.h"
#include "tensor/trace.h"

namespace degu {
namespace {

void check_memory(const void* memory) {
  if (reinterpret_cast<uintptr_t>(memory) % 64 != 0) {
    throw ShapeError("pack_weight: memory at {} is not 64-byte aligned", fmt::ptr(memory));
  }
}

}  // namespace

size_t packed_bytes(const Context& context, Scheme scheme, int64_t experts, int64_t outputs,
                    int64_t inner) {
  return kernels_for<WeightKernels>(context, "weight")
      .packed_bytes(scheme, experts, outputs, inner);
}

PackedWeight pack_weight(Context& context, AnyView w_EFD, Scheme scheme, Orientation orientation,
                         void* memory) {
  const TraceScope span(context, "pack_weight");
  const int rank = w_EFD.shape.rank();
  if (rank != 2 && rank != 3) {
    throw ShapeError("pack_weight: w has shape {}; pass [E, F, D] or [F, D]", w_EFD.shape.str());
  }
  if (w_EFD.device != context.device()) {
    throw ShapeError(
        "pack_weight: w is not on the context's device; pack it with one of its device");
  }
  if (w_EFD.dtype != DType::kF32 && w_EFD.dtype != DType::kBF16) {
    throw ShapeError("pack_weight: w is {}; pass fp32 or bf16", dtype_name(w_EFD.dtype));
  }
  if (scheme_info(scheme).quantized()) {
    throw ShapeError("pack_weight: {} packs codes; quantize the weight first (quantize_weight)",
                     scheme_info(scheme).name);
  }
  check_memory(memory);
  PackedWeight packed;
  packed.scheme = scheme;
  packed.orientation = orientation;
  packed.device = context.device();
  packed.isa = context.isa();
  packed.experts = rank == 3 ? w_EFD.dim(0) : 1;
  const int64_t f = w_EFD.dim(rank - 2);
  const int64_t d = w_EFD.dim(rank - 1);
  packed.outputs = orientation == Orientation::kForward ? f : d;
  packed.inner = orientation == Orientation::kForward ? d : f;
  packed.bytes = memory;
  kernels_for<WeightKernels>(context, "weight").pack(context, w_EFD, packed);
  return packed;
}

PackedWeight pack_weight(Context& context, const QuantizedWeight& weight, void* memory) {
  const TraceScope span(context, "pack_weight");
  check_quantized("pack_weight", weight, context.device());
  check_memory(memory);
  const int rank = weight.shape.rank();
  const PackedWeight packed = {.scheme = weight.scheme,
                               .orientation = Orientation::kForward,
                               .device = context.device(),
                               .isa = context.isa(),
                               .experts = rank == 3 ? weight.shape[0] : 1,
                               .outputs = weight.shape[rank - 2],
                               .inner = weight.shape[rank - 1],
                               .bytes = memory};
  kernels_for<WeightKernels>(context, "weight").pack_codes(context, weight, packed);
  return packed;
}

void unpack_rows(Context& context, const PackedWeight& table_VD, const RowNumbers& rows_T,
                 AnyView y_TD) {
  const TraceScope span(context, "unpack_rows");
  constexpr const char* kOp = "unpack_rows";
  if (table_VD.orientation != Orientation::kForward || table_VD.experts != 1 ||
      table_VD.device != context.device() || table_VD.isa != context.isa()) {
    throw ShapeError("{}: the table is not one matrix packed for this context's forward products",
                     kOp);
  }
  check::floating(context, kOp, "y_TD", y_TD);
  check::elements(kOp, "y_TD", y_TD, static_cast<int64_t>(rows_T.size()) * table_VD.inner);
  for (size_t t = 0; t < rows_T.size(); ++t) {
    const int32_t row = rows_T.host[t];
    if (row < 0 || row >= table_VD.outputs) {
      throw DataError("{}: row {} at place {} is outside the table of {} rows", kOp, row, t,
                      table_VD.outputs);
    }
  }
  kernels_for<WeightKernels>(context, "weight").unpack_rows(context, table_VD, rows_T, y_TD);
}

}  // namespace degu
