// How the CUDA backend lays out a weight, and a product's arguments.
//
// Products are computed as y^T = W · x^T: the weight is the left operand of the tensor cores'
// products (16 outputs x K), rows of x are the right one (K x 8). So a product of a single row
// wastes little, and few rows and many take the same instructions: the same bits.
//
// A *chunk* is 16 outputs (a *strip*) times what 128 bytes of a row of x meet: 64 inner elements
// for bf16 rows, 128 for int8 ones. It holds what the lanes of a warp need, in their order: *cells*
// of 512 bytes, 16 for each lane, then the scales [groups][16]. A strip's chunks follow each other
// along the inner dimension, strips follow each other: a warp reads one stream front to back, in
// 16-byte pieces, with neither ldmatrix nor bank conflicts. What lies outside the matrix is zero.
//
// fp32 weights are no operand of tensor cores: panels of 32 outputs, [inner][32].
#pragma once

#include "kernels/api/weight.h"

namespace degu::cuda {

inline constexpr int kStripOutputs = 16;
inline constexpr int kStepBytes = 128;  // of a row of x
inline constexpr int kCellBytes = 512;

inline constexpr int kFloatPanel = 32;  // outputs
inline constexpr int kFloatStep = 32;   // inner elements: panels are padded to whole steps

// Where an element of a weight lies: output of the strip, inner element of the chunk.
struct ChunkElement {
  int output;
  int inner;
};

template <class Format>
struct Chunk {
  static constexpr Codes kCodes = Format::kInfo.codes;
  static constexpr bool kInteger = Format::kInfo.integer_activations();
  static constexpr int kBits = kCodes == Codes::kNone ? 16 : kCodes == Codes::kInt4 ? 4 : 8;
  static constexpr int kPerWord = 32 / kBits;
  static constexpr int kInner = kStepBytes / static_cast<int>(sizeof(typename Format::Activation));
  static constexpr int kGroups =
      kCodes == Codes::kNone ? 0 : kInner / static_cast<int>(kScaleGroup);
  static constexpr int kCells = kStripOutputs * kInner * kBits / 8 / kCellBytes;
  static constexpr int kScalesAt = kCells * kCellBytes;
  static constexpr int kBytes = kScalesAt + kGroups * kStripOutputs * 2;

  static constexpr int64_t strips(int64_t outputs) {
    return (outputs + kStripOutputs - 1) / kStripOutputs;
  }
  static constexpr int64_t chunks(int64_t inner) { return (inner + kInner - 1) / kInner; }

  // Element i (bits i * kBits and up) of a lane's word 0 … 3 in a cell. Words of codes are arranged
  // so that few instructions on a whole word make operands of them (Operand, gemm_operand.cuh).
  static constexpr ChunkElement element(int cell, int word, int lane, int i) {
    int product = cell;  // along the inner dimension
    int a = word;        // which of the four words of A
    int part = i;        // which element of that
    if (kBits == 4 && !kInteger) {
      product = word;
      a = i % 4;
      part = i / 4;
    } else if (kBits == (kInteger ? 4 : 8)) {
      product = 2 * cell + word / 2;
      a = 2 * (word % 2) + i % 2;
      part = i / 2;
    }
    constexpr int kK = kInteger ? 32 : 16;   // of one product
    constexpr int kNear = kInteger ? 4 : 2;  // elements of a word of A
    return {lane / 4 + 8 * (a % 2), product * kK + a / 2 * (kK / 2) + lane % 4 * kNear + part};
  }
};

struct GemmArgs {
  const std::byte* x;      // rows of x
  const float* x_scales;   // [R, scale_groups]; null for rows of numbers
  int64_t x_row_bytes;     // what a row holds, and the distance of rows
  const std::byte* w;      // a packing
  const int64_t* offsets;  // [groups + 1], on the device
  void* y;                 // [R, outputs]
  const void* add;         // null: nothing added
  bool narrow;             // y is bf16, else fp32
  bool x_vector;           // 16-byte accesses are right
  bool y_vector;
  int groups;
  int outputs;
  int inner;
  int scale_groups;  // of a row
};

// The product of every group. `rows` and `filled` groups bound what the device's offsets say: they
// choose tiles and the size of the grid, nothing else. One instantiation per source file.
template <class Format>
void run_gemm(Context& context, const GemmArgs& args, int64_t rows, int64_t filled);
template <>
void run_gemm<Fp32Format>(Context& context, const GemmArgs& args, int64_t rows, int64_t filled);

}  // namespace degu::cuda
