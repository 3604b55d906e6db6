// Weights as matrix kernels read them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/api/quantize.h"
#include "kernels/api/rows.h"
#include "kernels/formats/list.h"
#include "tensor/context.h"

namespace degu {

// Which product a packing serves. For W_EFD (E experts, F outputs, D inner):
//   kForward   y_RF  = x_RD  · W^T   (inner dimension D)
//   kBackward  dx_RD = dy_RF · W     (inner dimension F)
enum class Orientation : uint8_t { kForward, kBackward };

// A weight in one backend's layout. `bytes` points to memory of the caller on the context's device,
// packed_bytes() long, 64-byte aligned. Layouts depend on the device and, on the CPU, on the
// instruction set: a packing is read by contexts of `device` and `isa` only.
struct PackedWeight {
  Scheme scheme = Scheme::kBf16;
  Orientation orientation = Orientation::kForward;
  DeviceType device = DeviceType::kCpu;
  Isa isa = Isa::kPortable;
  int64_t experts = 1;
  int64_t outputs = 0;  // columns of the product: F forward, D backward
  int64_t inner = 0;    // summed over: D forward, F backward
  void* bytes = nullptr;
};

// A packing is its pieces one behind the other: experts, and of a single matrix runs of kPackRows
// outputs (the last may be shorter). The piece from expert or output n on begins packed_bytes() of
// n experts or outputs into it, and may be packed there alone.
inline constexpr int64_t kPackRows = 256;

// Bytes that one packing of E matrices with `outputs` and `inner` needs on this context.
size_t packed_bytes(const Context& context, Scheme scheme, int64_t experts, int64_t outputs,
                    int64_t inner);

// Packs w_EFD ([E, F, D] or [F, D]; fp32 or bf16, rounded to the scheme) for `orientation` into
// `memory`. ShapeError when w_EFD is not of rank 2 or 3, the device differs, or the scheme is a
// quantized one.
PackedWeight pack_weight(Context& context, AnyView w_EFD, Scheme scheme, Orientation orientation,
                         void* memory);

// Packs the codes and scales of a quantized weight, as they are, for kForward. DataError when a
// code is none of the scheme's (-128, or the NaN of E4M3; a nibble of 0); an accelerator stops
// there instead, and the next wait reports it.
PackedWeight pack_weight(Context& context, const QuantizedWeight& weight, void* memory);

// y_TD[t] = row rows_T[t] of the matrix that a packing for kForward stands for: the numbers that
// products multiply (codes times scales), rounded to the type of y, fp32 or bf16. Each row is in
// [0, V): DataError otherwise. An embedding that is served needs no other copy of its table.
void unpack_rows(Context& context, const PackedWeight& table_VD, const RowNumbers& rows_T,
                 AnyView y_TD);

}  // namespace degu
