// Panels of quantized weights; packing.h says what a Packing supplies.
//
// A panel is one contiguous stream: for each group of kScaleGroup inner elements the kPanel scales,
// then the group's codes. Codes beyond the inner dimension stand for zero.
#pragma once

#include "kernels/api/quantize.h"
#include "kernels/cpu/int_vector.h"
#include "kernels/cpu/words.h"

namespace degu {
namespace {

inline constexpr int64_t kScaleBytes = kPanel * static_cast<int64_t>(sizeof(bf16));
inline constexpr int64_t kSteps = kScaleGroup / 4;  // of four elements, a lane of codes

// Outputs [0, outputs) of one panel of a QuantizedWeight: stored codes and scales of row o are
// `code_stride` bytes and `scale_stride` elements on from those of row 0.
struct CodeRef {
  const uint8_t* codes;
  const bf16* scales;
  int64_t code_stride;
  int64_t scale_stride;
  int64_t outputs;  // at most kPanel
  int64_t inner;
};

// The codes of one group, a byte each, as rows of outputs; what lies outside the matrix is zero.
struct GroupCodes {
  uint8_t at[kPanel][kScaleGroup];
};

// A whole group of 4-bit codes, a byte each. Eight at a time in one word: left to itself the
// compiler gathers them byte by byte.
inline void split_nibbles(const uint8_t* from, uint8_t* to) {
  for (int64_t i = 0; i < kScaleGroup; i += 8) {
    uint32_t four;
    std::memcpy(&four, from + i / 2, sizeof four);
    uint64_t bytes = four;  // each byte to a pair of its own
    bytes = (bytes | bytes << 16) & 0x0000ffff0000ffffu;
    bytes = (bytes | bytes << 8) & 0x00ff00ff00ff00ffu;
    bytes = (bytes & 0x000f000f000f000fu) | (bytes << 4 & 0x0f000f000f000f00u);
    std::memcpy(to + i, &bytes, sizeof bytes);
  }
}

template <Codes kCodes>
void read_group(const CodeRef& w, int64_t group, GroupCodes& out, bf16* scales) {
  const int64_t first = group * kScaleGroup;
  const int64_t count = std::min(kScaleGroup, w.inner - first);
  for (int64_t o = 0; o < kPanel; ++o) {
    uint8_t* to = out.at[o];
    scales[o] = o < w.outputs ? w.scales[o * w.scale_stride + group] : bf16(0.0f);
    const bool whole = o < w.outputs && count == kScaleGroup;
    if (!whole) std::memset(to, kCodes == Codes::kInt4 ? kNibbleOffset : 0, kScaleGroup);
    if (o >= w.outputs) continue;
    const uint8_t* row = w.codes + o * w.code_stride;
    if constexpr (kCodes == Codes::kInt4) {
      if (whole) {
        split_nibbles(row + first / 2, to);
      } else {
        for (int64_t i = 0; i < count; ++i) to[i] = stored_code(kCodes, row, first + i);
      }
    } else {
      std::memcpy(to, row + first, static_cast<size_t>(count));
    }
  }
}

template <class Write>
void write_groups(const CodeRef& w, Codes codes, size_t group_bytes, std::byte* panel,
                  Write&& write) {
  GroupCodes group;
  for (int64_t g = 0; g < scale_groups(w.inner); ++g, panel += group_bytes) {
    auto* scales = reinterpret_cast<bf16*>(panel);
    switch (codes) {
      case Codes::kInt4:
        read_group<Codes::kInt4>(w, g, group, scales);
        break;
      default:
        read_group<Codes::kInt8>(w, g, group, scales);
    }
    write(group, reinterpret_cast<uint8_t*>(panel + kScaleBytes));
  }
}

// What a code of a group stands for.
template <Codes kCodes>
float scaled(uint8_t code, const std::byte* group, int64_t output) {
  bf16 scale;
  std::memcpy(&scale, group + output * static_cast<int64_t>(sizeof scale), sizeof scale);
  return code_value(kCodes, code) * static_cast<float>(scale);
}

// Rows of quantized activations.
struct CodeRows {
  const int8_t* codes;
  const float* scales;
  const int32_t* start;  // what the sum of a group starts at
  int64_t groups;        // per row

  CodeRows from(int64_t r) const {
    return {codes + r * groups * kScaleGroup, scales + r * groups,
            start == nullptr ? start : start + r * groups, groups};
  }
};

// Integer codes times integer activations (w8a8.h). In a panel a step is four elements of every
// output: kPanel words of bytes, or kLanes words whose bytes hold a code of the first vector's
// output in the low half and one of the second vector's in the high half.
template <Codes kCodes>
struct IntegerPanel {
  using Activation = int8_t;
  using Rows = CodeRows;
  static constexpr bool kNibbles = kCodes == Codes::kInt4;
  static constexpr int kOffset = kNibbles ? kNibbleOffset : kByteOffset;
  // Per row two integer sums and two fp32 ones, beside two vectors of codes and one of x: 6 rows
  // use 27 of 32 registers and run 12 chains, which hide the 4 cycles of vpdpbusd. With 16
  // registers the integer sums of 3 rows fit and the fp32 ones wait in memory, touched once per
  // group.
  static constexpr int kTileRows = VecF::kLanes == 16 ? 6 : 3;
  static constexpr int64_t kStepBytes = VecF::kLanes * 4 * (kNibbles ? 1 : 2);
  static constexpr int64_t kGroupBytes = kScaleBytes + kSteps * kStepBytes;

  static size_t panel_bytes(int64_t inner) {
    return static_cast<size_t>((scale_groups(inner) * kGroupBytes + 63) / 64 * 64);
  }

  static void pack_codes(const CodeRef& w, std::byte* panel) {
    write_groups(w, kCodes, kGroupBytes, panel, [](const GroupCodes& group, uint8_t* out) {
      constexpr int64_t kLanes = VecF::kLanes;
      for (int64_t s = 0; s < kSteps; ++s) {
        for (int64_t o = 0; o < (kNibbles ? kLanes : kPanel); ++o) {
          uint32_t word;
          std::memcpy(&word, group.at[o] + s * 4, sizeof word);
          if constexpr (kNibbles) {
            uint32_t high;
            std::memcpy(&high, group.at[o + kLanes] + s * 4, sizeof high);
            word |= high << 4;
          } else if constexpr (kOffset != 0) {
            word ^= 0x80808080u;
          }
          std::memcpy(out + (s * kStepBytes + o * 4), &word, sizeof word);
        }
      }
    });
  }

  static float number(const std::byte* panel, int64_t output, int64_t i) {
    const std::byte* group = panel + i / kScaleGroup * kGroupBytes;
    const int64_t column = kNibbles ? output % VecF::kLanes : output;
    auto code = static_cast<uint8_t>(
        group[kScaleBytes + i % kScaleGroup / 4 * kStepBytes + column * 4 + i % 4]);
    if constexpr (kNibbles) {
      code = output < VecF::kLanes ? code & 15 : code >> 4;
    } else if constexpr (kOffset != 0) {
      code ^= 0x80;
    }
    return scaled<kCodes>(code, group, output);
  }

  static int64_t row_scratch(int64_t rows, int64_t inner) {
    return kOffset == 0 ? 0 : rows * scale_groups(inner) * static_cast<int64_t>(sizeof(int32_t));
  }
  static Rows rows(const void* codes, const void* scales, int64_t row, int64_t count, int64_t inner,
                   std::byte* scratch) {
    const int64_t groups = scale_groups(inner);
    const auto* first = static_cast<const int8_t*>(codes) + row * groups * kScaleGroup;
    int32_t* start = nullptr;
    if constexpr (kOffset != 0) {
      start = reinterpret_cast<int32_t*>(scratch);
      offset_sums(first, count * groups, kOffset, start);
    }
    return {first, static_cast<const float*>(scales) + row * groups, start, groups};
  }

  using Panel = const std::byte*;
  static int64_t panel_scratch(int64_t) { return 0; }
  static Panel ready(const std::byte* panel, int64_t, int64_t, std::byte*) { return panel; }

  template <int kRows>
  [[gnu::always_inline]] static void multiply(Tile<kRows>& tile, const Rows& x, Panel panel,
                                              int64_t) {
    const int64_t stride = x.groups * kScaleGroup;
    for (int64_t g = 0; g < x.groups; ++g, panel += kGroupBytes) {
      VecI sum[kRows][kPanelVectors];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        sum[r][0] = sum[r][1] = broadcast_int(kOffset == 0 ? 0 : x.start[r * x.groups + g]);
      }
      const std::byte* codes = panel + kScaleBytes;
      const int8_t* at = x.codes + g * kScaleGroup;
#pragma GCC unroll 2
      for (int64_t s = 0; s < kSteps; ++s, codes += kStepBytes, at += 4) {
        VecI w0 = load_bytes(codes);
        VecI w1;
        if constexpr (kNibbles) {
          w1 = high_nibbles(w0);
          w0 = low_nibbles(w0);
        } else {
          w1 = load_bytes(codes + kStepBytes / 2);
        }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const VecI a = broadcast_bytes(at + r * stride);
          sum[r][0] = kNibbles ? dot_unsigned(sum[r][0], w0, a) : dot_bytes(sum[r][0], w0, a);
          sum[r][1] = kNibbles ? dot_unsigned(sum[r][1], w1, a) : dot_bytes(sum[r][1], w1, a);
        }
      }
      const auto* scales = reinterpret_cast<const bf16*>(panel);
      const VecF s0 = load(scales);
      const VecF s1 = load(scales + VecF::kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const VecF s = broadcast(x.scales[r * x.groups + g]);
        tile.sum[r][0] = fma_once(to_float(sum[r][0]), s0 * s, tile.sum[r][0]);
        tile.sum[r][1] = fma_once(to_float(sum[r][1]), s1 * s, tile.sum[r][1]);
      }
    }
  }
};

// Codes that become bf16 (w8a16.h). In a panel a step is the pair of elements of a bf16 word:
// kPanel bytes of the first, then kPanel of the second; or kPanel bytes with the first element in
// the low half and the second in the high half. For a block of several tiles a panel is decoded
// once, into words of bf16 pairs and fp32 scales that stay in the caches while the rows pass; a
// single tile decodes group by group. The arithmetic is the same.
template <Codes kCodes>
struct DecodedPanel {
  using Activation = bf16;
  using Rows = WordRows<bf16>;
  static constexpr bool kNibbles = kCodes == Codes::kInt4;
  static constexpr int kTileRows = degu::kTileRows;
  static constexpr int64_t kPairs = kScaleGroup / 2;
  static constexpr int64_t kPairBytes = kPanel * (kNibbles ? 1 : 2);
  static constexpr int64_t kGroupBytes = kScaleBytes + kPairs * kPairBytes;
  static constexpr int64_t kReadyBytes = kPanel * 4 + kPairs * kPanel * 4;

  static size_t panel_bytes(int64_t inner) {
    return static_cast<size_t>((scale_groups(inner) * kGroupBytes + 63) / 64 * 64);
  }

  static void pack_codes(const CodeRef& w, std::byte* panel) {
    write_groups(w, kCodes, kGroupBytes, panel, [](const GroupCodes& group, uint8_t* out) {
      for (int64_t s = 0; s < kPairs; ++s, out += kPairBytes) {
        for (int64_t o = 0; o < kPanel; ++o) {
          const uint8_t even = group.at[o][2 * s];
          const uint8_t odd = group.at[o][2 * s + 1];
          if constexpr (kNibbles) {
            out[o] = static_cast<uint8_t>(even | odd << 4);
          } else {
            out[o] = even;
            out[kPanel + o] = odd;
          }
        }
      }
    });
  }

  static float number(const std::byte* panel, int64_t output, int64_t i) {
    const std::byte* group = panel + i / kScaleGroup * kGroupBytes;
    const std::byte* pair = group + kScaleBytes + i % kScaleGroup / 2 * kPairBytes;
    auto code = static_cast<uint8_t>(pair[kNibbles ? output : i % 2 * kPanel + output]);
    if constexpr (kNibbles) code = i % 2 == 0 ? code & 15 : code >> 4;
    return scaled<kCodes>(code, group, output);
  }

  static int64_t row_scratch(int64_t rows, int64_t inner) { return Rows::scratch(rows, inner); }
  static Rows rows(const void* values, const void*, int64_t row, int64_t count, int64_t inner,
                   std::byte* scratch) {
    return Rows::make(values, row, count, inner, scratch);
  }

  struct Panel {
    const std::byte* bytes;
    bool decoded;
  };
  static int64_t panel_scratch(int64_t inner) { return scale_groups(inner) * kReadyBytes; }
  static Panel ready(const std::byte* panel, int64_t inner, int64_t tiles, std::byte* scratch) {
    if (tiles == 1) return {panel, false};
    for (int64_t g = 0; g < scale_groups(inner); ++g) {
      decode_group(panel + g * kGroupBytes, scratch + g * kReadyBytes);
    }
    return {scratch, true};
  }

  static void decode_group(const std::byte* group, std::byte* out) {
    const auto* scales = reinterpret_cast<const bf16*>(group);
    auto* to = reinterpret_cast<float*>(out);
    for (int64_t o = 0; o < kPanel; o += VecF::kLanes) store(to + o, load(scales + o));
    const auto* codes = reinterpret_cast<const uint8_t*>(group + kScaleBytes);
    auto* words = reinterpret_cast<uint32_t*>(out + kPanel * 4);
    for (int64_t s = 0; s < kPairs; ++s, codes += kPairBytes, words += kPanel) {
      for (int64_t o = 0; o < kPanel; o += VecF::kLanes) store_pairs(words + o, decode(codes + o));
    }
  }

  // The words of kLanes outputs.
  [[gnu::always_inline]] static VecPairs decode(const uint8_t* codes) {
    if constexpr (kNibbles) {
      const VecI both = widen_unsigned(codes);
      const VecI offset = broadcast_int(kNibbleOffset);
      return exact_pairs(to_float((both & broadcast_int(15)) - offset),
                         to_float(shift_right_4(both) - offset));
    } else {
      return exact_pairs(number(widen_signed(codes)), number(widen_signed(codes + kPanel)));
    }
  }
  // e4m3_value: the sign and, 20 places up, exponent and fraction.
  [[gnu::always_inline]] static VecF number(VecI code) {
    if constexpr (kCodes == Codes::kE4M3) {
      constexpr auto kKeep = static_cast<int32_t>(0x87f00000u);
      return float_of_bits(shift_left_20(code) & broadcast_int(kKeep)) * broadcast(0x1p120f);
    } else {
      return to_float(code);
    }
  }

  template <int kRows>
  [[gnu::always_inline]] static void multiply(Tile<kRows>& tile, const Rows& x, const Panel& panel,
                                              int64_t inner) {
    alignas(64) std::byte local[kReadyBytes];
    const std::byte* at = panel.bytes;
    for (int64_t i = 0; i < inner; i += kScaleGroup) {
      const std::byte* group = at;
      if (panel.decoded) {
        at += kReadyBytes;
      } else {
        decode_group(group, local);
        group = local;
        at += kGroupBytes;
      }
      multiply_group(tile, x, i, group, std::min(kScaleGroup, inner - i));
    }
  }

  template <int kRows>
  [[gnu::always_inline]] static void multiply_group(Tile<kRows>& tile, const Rows& x, int64_t first,
                                                    const std::byte* group, int64_t count) {
    Tile<kRows> part;
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) part.sum[r][0] = part.sum[r][1] = zero();
    multiply_words(part, x.x + first, x.stride,
                   reinterpret_cast<const uint32_t*>(group + kPanel * 4), count);
    const auto* scales = reinterpret_cast<const float*>(group);
    const VecF s0 = load(scales);
    const VecF s1 = load(scales + VecF::kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      tile.sum[r][0] = fma(part.sum[r][0], s0, tile.sum[r][0]);
      tile.sum[r][1] = fma(part.sum[r][1], s1, tile.sum[r][1]);
    }
  }
};

}  // namespace
}  // namespace degu
