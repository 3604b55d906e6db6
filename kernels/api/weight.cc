#include "kernels/api/weight.h"

#include <cstdint>

#include "kernels/cpu/weight.h"
#include "tensor/trace.h"

namespace degu {

size_t packed_bytes(const Context& context, Scheme scheme, int64_t experts, int64_t outputs,
                    int64_t inner) {
  return cpu::kernels_for<cpu::WeightKernels>(context.isa())
      .packed_bytes(scheme, experts, outputs, inner);
}

PackedWeight pack_weight(Context& context, AnyView w_EFD, Scheme scheme, Orientation orientation,
                         void* memory) {
  const TraceScope span(context, "pack_weight");
  const int rank = w_EFD.shape.rank();
  if (rank != 2 && rank != 3) {
    throw ShapeError("pack_weight: w has shape {}; pass [E, F, D] or [F, D]", w_EFD.shape.str());
  }
  if (w_EFD.device != DeviceType::kCpu) {
    throw ShapeError("pack_weight: w is not in host memory; pack it with a context of its device");
  }
  if (w_EFD.dtype != DType::kF32 && w_EFD.dtype != DType::kBF16) {
    throw ShapeError("pack_weight: w is {}; pass fp32 or bf16", dtype_name(w_EFD.dtype));
  }
  if (reinterpret_cast<uintptr_t>(memory) % 64 != 0) {
    throw ShapeError("pack_weight: memory at {} is not 64-byte aligned", fmt::ptr(memory));
  }
  PackedWeight packed;
  packed.scheme = scheme;
  packed.orientation = orientation;
  packed.isa = context.isa();
  packed.experts = rank == 3 ? w_EFD.dim(0) : 1;
  const int64_t f = w_EFD.dim(rank - 2);
  const int64_t d = w_EFD.dim(rank - 1);
  packed.outputs = orientation == Orientation::kForward ? f : d;
  packed.inner = orientation == Orientation::kForward ? d : f;
  packed.bytes = memory;
  cpu::kernels_for<cpu::WeightKernels>(context.isa()).pack(context, w_EFD, packed);
  return packed;
}

}  // namespace degu
