// Passes over memory: how they are cut into tasks, and when they write past the caches. For sources
// compiled once per instruction set.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/simd.h"
#include "tensor/context.h"

namespace degu {
namespace {

// Elements per task: a task's streams stay contiguous for at least 64 KiB, below which two threads
// begin to fight over DRAM pages; a few hundred tasks still balance.
inline constexpr int64_t kSweepElements = 32768;

// Outputs above this many bytes are written with non-temporal stores: they would not survive in the
// last-level cache until somebody reads them, and a plain store reads each line before it writes
// it. Smaller outputs stay cached, where the next operator finds them.
inline constexpr int64_t kStreamBytes = int64_t{16} << 20;

inline bool aligned_line(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 64 == 0;
}

// Whether `rows` rows of `width` elements at `out` are to be streamed. Each row must start on a
// line.
template <class T>
bool streams(const T* out, int64_t rows, int64_t width) {
  const auto row_bytes = width * static_cast<int64_t>(sizeof(T));
  return rows * row_bytes >= kStreamBytes && aligned_line(out) && row_bytes % 64 == 0;
}

// Orders non-temporal stores before whatever tells other threads that they happened.
inline void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

template <bool kStream, class T>
void put(T* p, VecF value) {
  if constexpr (kStream) {
    stream(p, value);
  } else {
    store(p, value);
  }
}

// body(begin, end) over [0, n) in pieces of kSweepElements.
template <class Body>
void sweep(Context& context, int64_t n, Body&& body) {
  const int64_t tasks = (n + kSweepElements - 1) / kSweepElements;
  context.parallel_for(tasks, [&](int64_t task, int) {
    body(task * kSweepElements, std::min(n, (task + 1) * kSweepElements));
  });
}

// body(begin, end) over `rows` rows of `width` elements, in pieces of about kSweepElements
// elements.
template <class Body>
void sweep_rows(Context& context, int64_t rows, int64_t width, Body&& body) {
  const int64_t piece = std::max<int64_t>(1, kSweepElements / std::max<int64_t>(width, 1));
  const int64_t tasks = (rows + piece - 1) / piece;
  context.parallel_for(
      tasks, [&](int64_t task, int) { body(task * piece, std::min(rows, (task + 1) * piece)); });
}

// lane(i, count) for the vectors of [begin, end): count is VecF::kLanes but for the last.
template <class Full, class Part>
void each_vector(int64_t begin, int64_t end, Full&& full, Part&& part) {
  int64_t i = begin;
  for (; i + VecF::kLanes <= end; i += VecF::kLanes) full(i);
  if (i < end) part(i, static_cast<int>(end - i));
}

}  // namespace
}  // namespace degu
