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
//   kStep                 inner elements per step of the panel
//   panel_bytes(inner)    size of a panel, a multiple of 64
//   pack(w, first, panel) writes w, a MatrixRef of fp32 or bf16: inner elements from `first` (a
//                         multiple of kStep) on
//   multiply(tile, x, stride, panel, inner)
//                         tile[r] += x[r * stride ...] * panel, in steps along the inner dimension
#pragma once

#include <cstddef>

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

  template <int kRows>
  [[gnu::always_inline]] static void multiply(Tile<kRows>& tile, const T* x, int64_t stride,
                                              const std::byte* panel, int64_t inner) {
    const auto* w = reinterpret_cast<const uint32_t*>(panel);
    int64_t i = 0;
    for (; i + kStep <= inner; i += kStep, w += kPanel) {
      Words<T>::multiply(tile, w, [&](int r) { return broadcast_word_at(x + r * stride + i); });
    }
    if (i < inner) {  // an odd last element of bf16: its partner counts as zero, whatever follows x
      Words<T>::multiply(tile, w, [&](int r) { return broadcast_first(x + r * stride + i); });
    }
  }
};

template <class Format>
struct Packing;

template <>
struct Packing<Fp32Format> : WordPanel<float> {};

template <>
struct Packing<Bf16Format> : WordPanel<bf16> {};

}  // namespace
}  // namespace degu
