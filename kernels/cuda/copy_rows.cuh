// to[r] = from[source[r]] for rows of bytes.
#pragma once

#include "kernels/cuda/launch.cuh"

namespace degu::cuda {
namespace {

// A warp moves a row, four words a lane on their way at a time.
template <class Word>
__global__ void __launch_bounds__(kThreads)
    copy_rows_kernel(const Word* __restrict__ from, const int32_t* __restrict__ source,
                     Word* __restrict__ to, int64_t rows, int64_t words, int64_t source_rows) {
  constexpr int kBatch = 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  const int64_t at = source[row];
  require(at >= 0 && at < source_rows);
  const Word* in = from + at * words;
  Word* out = to + row * words;
  for (int64_t w = lane; w < words; w += 32 * kBatch) {
    Word held[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (w + b * 32 < words) held[b] = in[w + b * 32];
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (w + b * 32 < words) out[w + b * 32] = held[b];
    }
  }
}

template <class Word>
void copy_rows_of(Context& context, const char* op, const void* from, const int32_t* source,
                  void* to, int64_t rows, int64_t row_bytes, int64_t source_rows) {
  launch_kernel(context, op, {blocks_for(rows, kThreads / 32), kThreads}, &copy_rows_kernel<Word>,
                static_cast<const Word*>(from), source, static_cast<Word*>(to), rows,
                row_bytes / static_cast<int64_t>(sizeof(Word)), source_rows);
}

// With the widest words that rows and addresses are whole multiples of.
inline void copy_rows(Context& context, const char* op, const void* from, const int32_t* source,
                      void* to, int64_t rows, int64_t row_bytes, int64_t source_rows) {
  if (rows * row_bytes == 0) return;
  const uintptr_t bits = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to) |
                         static_cast<uintptr_t>(row_bytes);
  if (bits % 16 == 0) {
    copy_rows_of<uint4>(context, op, from, source, to, rows, row_bytes, source_rows);
  } else if (bits % 4 == 0) {
    copy_rows_of<uint32_t>(context, op, from, source, to, rows, row_bytes, source_rows);
  } else if (bits % 2 == 0) {
    copy_rows_of<uint16_t>(context, op, from, source, to, rows, row_bytes, source_rows);
  } else {
    copy_rows_of<uint8_t>(context, op, from, source, to, rows, row_bytes, source_rows);
  }
}

}  // namespace
}  // namespace degu::cuda
