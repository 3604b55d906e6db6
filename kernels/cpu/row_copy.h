// Whole rows from one place to another. For sources compiled once per instruction set.
#pragma once

#include <cstring>

#include "kernels/cpu/sweep.h"

namespace degu {
namespace {

// `bytes` is a multiple of 64 and `to` starts on a line when kStream.
template <bool kStream>
void copy_row(const void* from, void* to, int64_t bytes) {
  if constexpr (kStream) {
    constexpr int64_t kStep = VecF::kLanes;
    const auto* in = static_cast<const float*>(from);
    auto* out = static_cast<float*>(to);
    for (int64_t i = 0; i < bytes / static_cast<int64_t>(sizeof(float)); i += kStep) {
      stream(out + i, load(in + i));
    }
  } else {
    std::memcpy(to, from, static_cast<size_t>(bytes));
  }
}

// Into the second cache: the first one can wait for fewer lines at a time.
inline void prefetch_row(const void* row, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) {
    __builtin_prefetch(static_cast<const char*>(row) + i, 0, 2);
  }
}

// Where the next rows lie no hardware can guess. Asking for them this many bytes ahead keeps enough
// lines on their way to cover memory's latency (100 ns at 25 GB/s a thread are 2.5 KiB) when it
// doubles; more brings nothing.
inline constexpr int64_t kBytesAhead = 8192;

inline int64_t rows_ahead(int64_t row_bytes) {
  return std::max<int64_t>(1, kBytesAhead / std::max<int64_t>(row_bytes, 1));
}

// to[r] = from[source[r]] for `rows` rows of `row_bytes`.
inline void copy_rows(Context& context, const void* from, const int32_t* source, void* to,
                      int64_t rows, int64_t row_bytes) {
  const auto* in = static_cast<const char*>(from);
  auto* out = static_cast<char*>(to);
  const bool past_caches = streams(out, rows, row_bytes);
  const int64_t ahead = rows_ahead(row_bytes);
  sweep_rows(context, rows, row_bytes / 2, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      // Past the end of the task too: a thread's tasks follow one another.
      if (r + ahead < rows) {
        prefetch_row(in + int64_t{source[r + ahead]} * row_bytes, row_bytes);
      }
      const char* row = in + int64_t{source[r]} * row_bytes;
      past_caches ? copy_row<true>(row, out + r * row_bytes, row_bytes)
                  : copy_row<false>(row, out + r * row_bytes, row_bytes);
    }
    if (past_caches) stream_fence();
  });
}

}  // namespace
}  // namespace degu
