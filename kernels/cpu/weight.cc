#include "kernels/cpu/weight.h"

#include <algorithm>

#include "kernels/cpu/packing.h"

namespace degu {
namespace {

size_t packed_bytes(Scheme scheme, int64_t experts, int64_t outputs, int64_t inner) {
  const int64_t panels = experts * ((outputs + kPanel - 1) / kPanel);
  size_t bytes = 0;
  visit_format(scheme, [&]<class Format>() {
    bytes = static_cast<size_t>(panels) * Packing<Format>::panel_bytes(inner);
  });
  return bytes;
}

template <class Format, class Source>
void pack_panels(Context& context, const Source* w, const PackedWeight& packed) {
  const bool forward = packed.orientation == Orientation::kForward;
  const int64_t panels = (packed.outputs + kPanel - 1) / kPanel;
  const size_t panel_bytes = Packing<Format>::panel_bytes(packed.inner);
  auto* memory = static_cast<std::byte*>(packed.bytes);
  context.parallel_for(packed.experts * panels, [&](int64_t task, int) {
    const int64_t first = task % panels * kPanel;
    const Source* expert = w + task / panels * packed.outputs * packed.inner;
    const MatrixRef<Source> rows = {expert + (forward ? first * packed.inner : first),
                                    forward ? packed.inner : 1, forward ? 1 : packed.outputs,
                                    std::min<int64_t>(kPanel, packed.outputs - first),
                                    packed.inner};
    Packing<Format>::pack_panel(rows, memory + static_cast<size_t>(task) * panel_bytes);
  });
}

void pack(Context& context, AnyView w_EFD, const PackedWeight& packed) {
  visit_format(packed.scheme, [&]<class Format>() {
    if (w_EFD.dtype == DType::kF32) {
      pack_panels<Format>(context, static_cast<const float*>(w_EFD.data), packed);
    } else {
      pack_panels<Format>(context, static_cast<const bf16*>(w_EFD.data), packed);
    }
  });
}

}  // namespace

template <>
const cpu::WeightKernels cpu::Table<cpu::WeightKernels, cpu::kThisIsa>::value = {&packed_bytes,
                                                                                 &pack};

}  // namespace degu
