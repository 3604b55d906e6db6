#include "kernels/tables/weight.h"

#include <algorithm>

#include "kernels/cpu/packing.h"

namespace degu {
namespace {

size_t bytes_of(Scheme scheme, int64_t experts, int64_t outputs, int64_t inner) {
  const int64_t panels = experts * ((outputs + kPanel - 1) / kPanel);
  size_t bytes = 0;
  visit_format(scheme, [&]<class Format>() {
    bytes = static_cast<size_t>(panels) * Packing<Format>::panel_bytes(inner);
  });
  return bytes;
}

// Forward, a panel's outputs are rows of w: one task reads them side by side and writes the panel
// front to back. Backward they are columns: a task takes a few rows of w, read once and whole, and
// writes a short run of every panel (1 KiB in bf16 on AVX-512).
constexpr int64_t kBackwardRows = 16;

template <class Format, class Source>
void pack_panels(Context& context, const Source* w, const PackedWeight& packed) {
  using Layout = Packing<Format>;
  static_assert(kBackwardRows % Layout::kStep == 0);
  const int64_t outputs = packed.outputs;
  const int64_t inner = packed.inner;
  const int64_t panels = (outputs + kPanel - 1) / kPanel;
  const size_t panel_bytes = Layout::panel_bytes(inner);
  auto* memory = static_cast<std::byte*>(packed.bytes);
  const auto width = [&](int64_t panel) {
    return std::min<int64_t>(kPanel, outputs - panel * kPanel);
  };
  const auto panel_at = [&](int64_t index) {
    return memory + static_cast<size_t>(index) * panel_bytes;
  };
  if (packed.orientation == Orientation::kForward) {
    context.parallel_for(packed.experts * panels, [&](int64_t task, int) {
      const int64_t panel = task % panels;
      const Source* first = w + (task / panels * outputs + panel * kPanel) * inner;
      Layout::pack(MatrixRef<Source>{first, inner, false, width(panel), inner}, 0, panel_at(task));
    });
    return;
  }
  const int64_t chunks = (inner + kBackwardRows - 1) / kBackwardRows;
  context.parallel_for(packed.experts * chunks, [&](int64_t task, int) {
    const int64_t expert = task / chunks;
    const int64_t row = task % chunks * kBackwardRows;
    const Source* first = w + (expert * inner + row) * outputs;
    const int64_t rows = std::min(kBackwardRows, inner - row);
    for (int64_t panel = 0; panel < panels; ++panel) {
      Layout::pack(MatrixRef<Source>{first + panel * kPanel, outputs, true, width(panel), rows},
                   row, panel_at(expert * panels + panel));
    }
  });
}

void pack(Context& context, AnyView w_EFD, const PackedWeight& packed) {
  visit_format(packed.scheme, [&]<class Format>() {
    if constexpr (!Format::kInfo.quantized()) {
      if (w_EFD.dtype == DType::kF32) {
        pack_panels<Format>(context, static_cast<const float*>(w_EFD.data), packed);
      } else {
        pack_panels<Format>(context, static_cast<const bf16*>(w_EFD.data), packed);
      }
    }
  });
}

// Whether a stored byte is no code of the scheme.
template <Codes kCodes>
uint8_t foreign(uint8_t byte) {
  switch (kCodes) {
    case Codes::kInt4:
      return static_cast<uint8_t>((byte & 0x0f) == 0) | static_cast<uint8_t>((byte & 0xf0) == 0);
    case Codes::kE4M3:
      return (byte & 0x7f) == 0x7f;
    default:
      return byte == 0x80;
  }
}

template <class Format>
void pack_code_panels(Context& context, const QuantizedWeight& weight, const PackedWeight& packed) {
  using Layout = Packing<Format>;
  constexpr Codes kCodes = Format::kCodes;
  constexpr std::string_view kName = Format::kInfo.name;  // a copy: the object shares no symbol
  const int64_t inner = packed.inner;
  const int64_t panels = (packed.outputs + kPanel - 1) / kPanel;
  const int64_t stride = code_bytes(kCodes, inner);
  const int64_t groups = scale_groups(inner);
  const auto* codes = static_cast<const uint8_t*>(weight.codes.data);
  const auto* scales = static_cast<const bf16*>(weight.scales.data);
  auto* memory = static_cast<std::byte*>(packed.bytes);
  context.parallel_for(packed.experts * panels, [&](int64_t task, int) {
    const int64_t panel = task % panels;
    const int64_t row = task / panels * packed.outputs + panel * kPanel;
    const int64_t outputs = std::min<int64_t>(kPanel, packed.outputs - panel * kPanel);
    const uint8_t* first = codes + row * stride;
    uint8_t bad = 0;  // as wide as the codes, so that vectors of them are compared
    for (int64_t i = 0; i < outputs * stride; ++i) bad |= foreign<kCodes>(first[i]);
    if (bad != 0) {
      throw DataError("pack_weight: rows {} to {} hold a byte that is no code of {}", row,
                      row + outputs - 1, kName);
    }
    Layout::pack_codes({first, scales + row * groups, stride, groups, outputs, inner},
                       memory + static_cast<size_t>(task) * Layout::panel_bytes(inner));
  });
}

void pack_codes(Context& context, const QuantizedWeight& weight, const PackedWeight& packed) {
  visit_format(packed.scheme, [&]<class Format>() {
    if constexpr (Format::kInfo.quantized()) {
      pack_code_panels<Format>(context, weight, packed);
    }
  });
}

template <class T>
void unpack_typed(Context& context, const PackedWeight& table, std::span<const int32_t> rows_T,
                  T* y) {
  visit_format(table.scheme, [&]<class Format>() {
    using Layout = Packing<Format>;
    const size_t panel_bytes = Layout::panel_bytes(table.inner);
    const auto* memory = static_cast<const std::byte*>(table.bytes);
    context.parallel_for(static_cast<int64_t>(rows_T.size()), [&](int64_t t, int) {
      const int64_t row = rows_T[static_cast<size_t>(t)];
      const std::byte* panel = memory + static_cast<size_t>(row / kPanel) * panel_bytes;
      for (int64_t i = 0; i < table.inner; ++i) {
        y[t * table.inner + i] = static_cast<T>(Layout::number(panel, row % kPanel, i));
      }
    });
  });
}

void look_up(Context& context, const PackedWeight& table, const RowNumbers& rows_T, AnyView y) {
  y.dtype == DType::kBF16 ? unpack_typed(context, table, rows_T.host, static_cast<bf16*>(y.data))
                          : unpack_typed(context, table, rows_T.host, static_cast<float*>(y.data));
}

}  // namespace

template <>
const WeightKernels cpu::Table<WeightKernels, cpu::kThisIsa>::value = {&bytes_of, &pack,
                                                                       &pack_codes, &look_up};

}  // namespace degu
