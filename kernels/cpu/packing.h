// How this instruction set lays out a weight, and the innermost loop that reads it.
//
// The outputs of a matrix are cut into panels of kPanel = 2 vectors; a panel holds its outputs as
// lanes and runs along the whole inner dimension, so that one tile of the product (kTileRows rows x
// kPanel outputs) streams one panel front to back and keeps its sums in registers all the while.
// Every output element is one chain of additions along the inner dimension, whatever the number of
// rows in the tile.
//
// Packing<Format> supplies, for one scheme:
//   Activation                                     element type of x
//   panel_bytes(inner)                             a multiple of 64
//   pack_panel(MatrixRef<Source>, panel)           Source fp32 or bf16
//   multiply<kRows>(tile, x, stride, panel, inner) tile[r] += x[r] * panel, in steps along inner
#pragma once

#include <cstddef>

#include "kernels/cpu/simd.h"
#include "kernels/formats/list.h"

namespace degu {
namespace {

inline constexpr int kPanelVectors = 2;
inline constexpr int kPanel = kPanelVectors * VecF::kLanes;

// Sums stay in registers: rows x 2 vectors, plus 2 of the weight and 1 broadcast of x. With 32
// registers (AVX-512) 12 rows use 27; with 16, 6 rows use 15. One fused step takes 1 cycle and its
// result 4 (fp32) to 6 (vdpbf16ps, Zen 4) cycles, so 6 chains hide the latency: 3 rows upwards run
// at full rate. Per step a 12-row tile loads 12 broadcasts and 2 vectors for 24 products: half of
// the load slots.
inline constexpr int kTileRows = VecF::kLanes == 16 ? 12 : 6;

template <int kRows>
struct Tile {
  VecF sum[kRows][kPanelVectors];
};

// `outputs` rows of the transposed or plain matrix: element (o, i) = data[o * output_stride + i *
// inner_stride]; outputs beyond `outputs` and the padding of the inner dimension are packed as
// zeros.
template <class Source>
struct MatrixRef {
  const Source* data;
  int64_t output_stride;
  int64_t inner_stride;
  int64_t outputs;  // at most kPanel
  int64_t inner;

  Source at(int64_t output, int64_t i) const {
    return output < outputs && i < inner ? data[output * output_stride + i * inner_stride]
                                         : Source{};
  }
};

constexpr size_t round_up_64(int64_t bytes) {
  return (static_cast<size_t>(bytes) + 63) / 64 * 64;
}

template <class Format>
struct Packing;

// Panel: [inner][kPanel] floats.
template <>
struct Packing<Fp32Format> {
  using Activation = float;
  static size_t panel_bytes(int64_t inner) { return round_up_64(inner * kPanel * 4); }

  template <class Source>
  static void pack_panel(const MatrixRef<Source>& w, std::byte* panel) {
    auto* out = reinterpret_cast<float*>(panel);
    for (int64_t i = 0; i < w.inner; ++i) {
      for (int64_t o = 0; o < kPanel; ++o) *out++ = static_cast<float>(w.at(o, i));
    }
  }

  template <int kRows>
  [[gnu::always_inline]] static void multiply(Tile<kRows>& tile, const float* x, int64_t stride,
                                              const std::byte* panel, int64_t inner) {
    const auto* w = reinterpret_cast<const float*>(panel);
    for (int64_t i = 0; i < inner; ++i, w += kPanel) {
      const VecF w0 = load(w);
      const VecF w1 = load(w + VecF::kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const VecF a = broadcast(x[r * stride + i]);
        tile.sum[r][0] = fma(a, w0, tile.sum[r][0]);
        tile.sum[r][1] = fma(a, w1, tile.sum[r][1]);
      }
    }
  }
};

// Panel: [ceil(inner / 2)][kPanel] pairs of bf16; the pair of output o at step s is inner 2s, 2s
// + 1.
template <>
struct Packing<Bf16Format> {
  using Activation = bf16;
  static size_t panel_bytes(int64_t inner) { return round_up_64((inner + 1) / 2 * kPanel * 4); }

  template <class Source>
  static void pack_panel(const MatrixRef<Source>& w, std::byte* panel) {
    auto* out = reinterpret_cast<bf16*>(panel);
    for (int64_t i = 0; i < w.inner; i += 2) {
      for (int64_t o = 0; o < kPanel; ++o) {
        *out++ = bf16(static_cast<float>(w.at(o, i)));
        *out++ = bf16(static_cast<float>(w.at(o, i + 1)));
      }
    }
  }

  template <int kRows>
  [[gnu::always_inline]] static void multiply(Tile<kRows>& tile, const bf16* x, int64_t stride,
                                              const std::byte* panel, int64_t inner) {
    const auto* w = reinterpret_cast<const bf16*>(panel);
    for (int64_t i = 0; i + 1 < inner; i += 2, w += 2 * kPanel) {
      const VecPairs w0 = load_pairs(w);
      const VecPairs w1 = load_pairs(w + kPanel);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const VecPairs a = broadcast_pair(x + r * stride + i);
        tile.sum[r][0] = dot_bf16(tile.sum[r][0], a, w0);
        tile.sum[r][1] = dot_bf16(tile.sum[r][1], a, w1);
      }
    }
    if (inner % 2 == 0) return;
    const VecPairs w0 = load_pairs(w);
    const VecPairs w1 = load_pairs(w + kPanel);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const VecPairs a = broadcast_single(x + r * stride + inner - 1);
      tile.sum[r][0] = dot_bf16(tile.sum[r][0], a, w0);
      tile.sum[r][1] = dot_bf16(tile.sum[r][1], a, w1);
    }
  }
};

}  // namespace
}  // namespace degu
