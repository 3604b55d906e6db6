// One step of a warp's products: 128 bytes of its rows of x times the chunks of its strips.
//
// The arithmetic of each scheme is that of its header in kernels/formats/: bf16 products chained
// along the inner dimension; per scale group a chain of bf16 products from zero, then one fused
// multiply-add; or exact integer sums, then one fused multiply-add.
#pragma once

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/weight_layout.cuh"

namespace degu::cuda {
namespace {

using Cell = Words<16>;  // of one lane

__device__ inline Cell read_cell(const std::byte* chunk, int cell, int lane) {
  return *reinterpret_cast<const Cell*>(chunk + cell * kCellBytes + lane * 16);
}

// Rows of x in shared memory have 128 bytes in eight pieces of 16; piece p of row r lies at
// p ^ (r % 8), so that the same piece of eight rows, and eight pieces of one, are in different
// banks.
__device__ inline int x_piece(int row, int piece) {
  return row * kStepBytes + (piece ^ (row % 8)) * 16;
}

// B of product 0 … 3 of the step, for each eight rows. `x` is the warp's first row, a multiple
// of 8.
template <int kOctets>
__device__ inline void load_x(uint32_t (&b)[kOctets][2], const std::byte* x, int product,
                              int lane) {
  if constexpr (kOctets == 1) {
    load_matrices(b[0], x + x_piece(lane % 8, 2 * product + lane / 8 % 2));
  } else {
#pragma unroll
    for (int o = 0; o < kOctets; o += 2) {
      uint32_t word[4];  // both of eight rows, both of the next eight
      load_matrices(word, x + x_piece(8 * (o + lane / 16) + lane % 8, 2 * product + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < 4; ++i) b[o + i / 2][i % 2] = word[i];
    }
  }
}

// Codes as operands.
template <Codes kCodes, bool kInteger>
struct Operand;

template <>
struct Operand<Codes::kInt8, true> {
  // Words of a dot that begin at kStart are those of the fp32 number 1.5 · 2^23 + dot, as long as
  // |dot| < 2^22.
  static constexpr int32_t kStart = 0x4b400000;
  static __device__ void load(const std::byte* chunk, int group, int lane, uint32_t (&a)[4]) {
    const Cell cell = read_cell(chunk, group, lane);
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = cell.word[i];
  }
  static __device__ float exact(int32_t dot) {
    return __int_as_float(dot) - 12582912.0f;
  }
};

template <>
struct Operand<Codes::kInt4, true> {
  // Nibbles hold two's complement and become the upper halves of bytes: 16 times the code. Below
  // 2^19 still, and a sixteenth of it is exact.
  static constexpr int32_t kStart = 0x4b400000;
  static __device__ void load(const std::byte* chunk, int group, int lane, uint32_t (&a)[4]) {
    const auto* words = reinterpret_cast<const Words<8>*>(chunk + group / 2 * kCellBytes +
                                                          lane * 16 + group % 2 * 8);
    const Words<8> two = *words;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      a[2 * i] = two.word[i] << 4 & 0xf0f0f0f0u;
      a[2 * i + 1] = two.word[i] & 0xf0f0f0f0u;
    }
  }
  static __device__ float exact(int32_t dot) {
    return fmaf(__int_as_float(dot), 0.0625f, -786432.0f);
  }
};

// For bf16 products, a group is two of them. Elements that share a word lie half a word apart.
template <>
struct Operand<Codes::kInt8, false> {
  static __device__ void load(const std::byte* chunk, int group, int lane, uint32_t (&a)[2][4]) {
    const Cell cell = read_cell(chunk, group, lane);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i / 2][i % 2 * 2] = numbers(cell.word[i]);
      a[i / 2][i % 2 * 2 + 1] = numbers(cell.word[i] >> 8);
    }
  }
  // Two's complement is its low 7 bits minus 128 for the sign. 0x4300 is 128 in bf16, where a unit
  // is the last bit; with bit 7 set it is 256.
  static __device__ uint32_t numbers(uint32_t word) {
    const uint32_t low = (word & 0x007f007fu) | 0x43004300u;
    const uint32_t high = (word & 0x00800080u) | 0x43004300u;
    return fma_bf16x2(high, 0xbf80bf80u, low);
  }
};

template <>
struct Operand<Codes::kInt4, false> {
  static __device__ void load(const std::byte* chunk, int group, int lane, uint32_t (&a)[2][4]) {
    const Words<8> two = *reinterpret_cast<const Words<8>*>(chunk + lane * 16 + group * 8);
#pragma unroll
    for (int product = 0; product < 2; ++product) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // 128 + (code + 8), minus 136
        const uint32_t nibbles = (two.word[product] >> 4 * i & 0x000f000fu) | 0x43004300u;
        a[product][i] = fma_bf16x2(nibbles, 0x3f803f80u, 0xc308c308u);
      }
    }
  }
};

template <>
struct Operand<Codes::kE4M3, false> {
  static __device__ void load(const std::byte* chunk, int group, int lane, uint32_t (&a)[2][4]) {
    const Cell cell = read_cell(chunk, group, lane);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i / 2][i % 2 * 2] = numbers(cell.word[i] << 8);
      a[i / 2][i % 2 * 2 + 1] = numbers(cell.word[i]);
    }
  }
  // Codes in the upper bytes. Exponent and fraction where bf16 has them, the exponent's bias moved
  // by a factor of 2^120: also right for subnormal numbers.
  static __device__ uint32_t numbers(uint32_t word) {
    const uint32_t small = (word >> 4 & 0x07f007f0u) | (word & 0x80008000u);
    return fma_bf16x2(small, 0x7b807b80u, 0x80008000u);
  }
};

// Scale of output `output` of the strip in scale group `group` of the chunk.
template <class Format>
__device__ inline float weight_scale_of(const std::byte* chunk, int group, int output) {
  const auto* scales = reinterpret_cast<const bf16*>(chunk + Chunk<Format>::kScalesAt);
  return to_float(scales[group * kStripOutputs + output]);
}

// sum[strip][octet] += the step. `w` is the chunk of the warp's first strip, `x` its first row,
// `x_scales` the scale of that row in the first group; scales of the next group are kRows on.
template <class Format, int kRows, int kStrips, int kOctets>
__device__ inline void multiply_numbers(float (&sum)[kStrips][kOctets][4], const std::byte* w,
                                        const std::byte* x, int lane) {
#pragma unroll
  for (int product = 0; product < 4; ++product) {
    uint32_t b[kOctets][2];
    load_x(b, x, product, lane);
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      const Cell a = read_cell(w + s * Chunk<Format>::kBytes, product, lane);
#pragma unroll
      for (int o = 0; o < kOctets; ++o) mma_bf16(sum[s][o], a.word, b[o][0], b[o][1]);
    }
  }
}

template <class Format, int kRows, int kStrips, int kOctets>
__device__ inline void multiply_decoded(float (&sum)[kStrips][kOctets][4], const std::byte* w,
                                        const std::byte* x, int lane) {
#pragma unroll
  for (int group = 0; group < 2; ++group) {
    uint32_t b[2][kOctets][2];
    load_x(b[0], x, 2 * group, lane);
    load_x(b[1], x, 2 * group + 1, lane);
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      const std::byte* chunk = w + s * Chunk<Format>::kBytes;
      uint32_t a[2][4];
      Operand<Chunk<Format>::kCodes, false>::load(chunk, group, lane, a);
      const float scale[2] = {weight_scale_of<Format>(chunk, group, lane / 4),
                              weight_scale_of<Format>(chunk, group, lane / 4 + 8)};
#pragma unroll
      for (int o = 0; o < kOctets; ++o) {
        float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        mma_bf16(part, a[0], b[0][o][0], b[0][o][1]);
        mma_bf16(part, a[1], b[1][o][0], b[1][o][1]);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[s][o][i] = fmaf(part[i], scale[i / 2], sum[s][o][i]);
      }
    }
  }
}

template <class Format, int kRows, int kStrips, int kOctets>
__device__ inline void multiply_integers(float (&sum)[kStrips][kOctets][4], const std::byte* w,
                                         const std::byte* x, const float* x_scales, int lane) {
  using Codes8 = Operand<Chunk<Format>::kCodes, true>;
#pragma unroll 2  // with all four in one piece the compiler loads so far ahead that it spills
  for (int group = 0; group < 4; ++group) {
    uint32_t b[kOctets][2];
    load_x(b, x, group, lane);
    Words<8> row_scale[kOctets];  // of the lane's two rows
#pragma unroll
    for (int o = 0; o < kOctets; ++o) {
      row_scale[o] =
          *reinterpret_cast<const Words<8>*>(x_scales + group * kRows + 8 * o + lane % 4 * 2);
    }
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      const std::byte* chunk = w + s * Chunk<Format>::kBytes;
      uint32_t a[4];
      Codes8::load(chunk, group, lane, a);
      const float scale[2] = {weight_scale_of<Format>(chunk, group, lane / 4),
                              weight_scale_of<Format>(chunk, group, lane / 4 + 8)};
#pragma unroll
      for (int o = 0; o < kOctets; ++o) {
        int32_t dot[4];
        mma_int8(dot, a, b[o][0], b[o][1], Codes8::kStart);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float both = scale[i / 2] * __uint_as_float(row_scale[o].word[i % 2]);
          sum[s][o][i] = fmaf(Codes8::exact(dot[i]), both, sum[s][o][i]);
        }
      }
    }
  }
}

template <class Format, int kRows, int kStrips, int kOctets>
__device__ inline void multiply_step(float (&sum)[kStrips][kOctets][4], const std::byte* w,
                                     const std::byte* x, const float* x_scales, int lane) {
  if constexpr (Chunk<Format>::kInteger) {
    multiply_integers<Format, kRows>(sum, w, x, x_scales, lane);
  } else if constexpr (Chunk<Format>::kCodes != Codes::kNone) {
    multiply_decoded<Format, kRows>(sum, w, x, lane);
  } else {
    multiply_numbers<Format, kRows>(sum, w, x, lane);
  }
}

}  // namespace
}  // namespace degu::cuda
