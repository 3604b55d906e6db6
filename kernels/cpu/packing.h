// How this instruction set lays out a weight, and the innermost loop that reads it.
//
// The outputs of a matrix are cut into panels of kPanel = 2 vectors; a panel holds its outputs as
// lanes and runs along the whole inner dimension, so that one tile of the product (kTileRows rows x
// kPanel outputs) streams one panel front to back and keeps its sums in registers all the while.
// Every output element is one chain of additions along the inner dimension, whatever the number of
// rows in the tile.
//
// Packing<Format> supplies, for one scheme:
//   Activation            element type of x
//   kTileRows             most rows of a tile
//   panel_bytes(inner)    size of a panel, a multiple of 64
//   Rows                  where rows of x lie; rows.from(r) skips r of them
//   rows(values, scales, row, count, inner, scratch)
//                         rows [row, row + count) of x, made ready in row_scratch(count, inner)
//                         bytes where that helps
//   Panel                 a panel as `multiply` reads it
//   ready(panel, inner, tiles, scratch)
//                         makes it for that many tiles of rows, in panel_scratch(inner) bytes where
//                         the panel is not read in place
//   multiply(tile, rows, Panel, inner)
//                         tile[r] += rows[r] * panel, in steps along the inner dimension
//   number(panel, output, i)
//                         inner element i of an output of the panel, as fp32
// and, for weights that are packed from their numbers,
//   kStep                 inner elements per step of the panel
//   pack(w, first, panel) writes w, a MatrixRef of fp32 or bf16: inner elements from `first` (a
//                         multiple of kStep) on
// or, for quantized ones, which are packed from codes,
//   pack_codes(w, panel)  writes w, a CodeRef: a whole panel
#pragma once

#include <cstddef>

#include "kernels/cpu/packing_quantized.h"
#include "kernels/cpu/words.h"
#include "kernels/formats/list.h"

namespace degu {
namespace {

// Outputs [0, outputs) of one panel, inner elements [0, inner) of them, in a row-major matrix:
// element (o, i) is data[o * stride + i] or, with the outputs side by side, data[i * stride + o].
template <class Source>
struct MatrixRef {
  const Source* data;
  int64_t stride;
  bool outputs_adjacent;
  int64_t outputs;  // at most kPanel
  int64_t inner;
};

constexpr size_t round_up_64(int64_t bytes) {
  return (static_cast<size_t>(bytes) + 63) / 64 * 64;
}

// A panel of unquantized words: [steps][kPanel].
template <class T>
struct WordPanel {
  using Activation = T;
  using Rows = WordRows<T>;
  static constexpr int kTileRows = degu::kTileRows;
  static constexpr int64_t kStep = Words<T>::kStep;
  static size_t panel_bytes(int64_t inner) { return round_up_64(steps_for<T>(inner) * kPanel * 4); }

  template <class Source>
  static void pack(const MatrixRef<Source>& w, int64_t first, std::byte* panel) {
    uint32_t* out = reinterpret_cast<uint32_t*>(panel) + first / kStep * kPanel;
    if (w.outputs_adjacent) {
      pack_rows<T>(w.data, w.stride, w.inner, w.outputs, kPanel, out);
    } else {
      pack_transposed<T>(w.data, w.stride, w.inner, w.outputs, kPanel, out);
    }
  }

  static float number(const std::byte* panel, int64_t output, int64_t i) {
    T value;
    std::memcpy(
        &value,
        panel + (i / kStep * kPanel + output) * 4 + i % kStep * static_cast<int64_t>(sizeof value),
        sizeof value);
    return static_cast<float>(value);
  }

  static int64_t row_scratch(int64_t rows, int64_t inner) { return Rows::scratch(rows, inner); }
  static Rows rows(const void* values, const void*, int64_t row, int64_t count, int64_t inner,
                   std::byte* scratch) {
    return Rows::make(values, row, count, inner, scratch);
  }
  using Panel = const std::byte*;
  static int64_t panel_scratch(int64_t) { return 0; }
  static Panel ready(const std::byte* panel, int64_t, int64_t, std::byte*) { return panel; }

  template <int kRows>
  [[gnu::always_inline]] static void multiply(Tile<kRows>& tile, const Rows& x, Panel panel,
                                              int64_t inner) {
    multiply_words(tile, x.x, x.stride, reinterpret_cast<const uint32_t*>(panel), inner);
  }
};

template <class Format>
struct Packing;

template <>
struct Packing<Fp32Format> : WordPanel<float> {};

template <>
struct Packing<Bf16Format> : WordPanel<bf16> {};

template <>
struct Packing<W8A8Format> : IntegerPanel<Codes::kInt8> {};

template <>
struct Packing<W4A8Format> : IntegerPanel<Codes::kInt4> {};

template <>
struct Packing<W8A16Format> : DecodedPanel<Codes::kInt8> {};

template <>
struct Packing<W4A16Format> : DecodedPanel<Codes::kInt4> {};

template <>
struct Packing<Fp8Format> : DecodedPanel<Codes::kE4M3> {};

}  // namespace
}  // namespace degu
