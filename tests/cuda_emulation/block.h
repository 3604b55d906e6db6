// The threads of one block at a time, as fibers of the calling thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace emulated {

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned across = 1, unsigned down = 1, unsigned deep = 1)  // NOLINT: as CUDA's
      : x(across), y(down), z(deep) {}
  constexpr uint64_t count() const { return uint64_t{x} * y * z; }
};

// Of the fiber that runs.
extern thread_local constinit dim3 threadIdx;
extern thread_local constinit dim3 blockIdx;
extern thread_local constinit dim3 blockDim;
extern thread_local constinit dim3 gridDim;

inline constexpr int kMostThreads = 1024;
inline constexpr size_t kMostShared = 227 * 1024;

// Calls thread() once per thread of every block; false when one of them trapped.
bool run_grid(dim3 grid, dim3 block, size_t shared, const std::function<void()>& thread);

// ---- Called by a fiber.

// Ends the process with one line that names the block and the thread.
[[noreturn]] void fail(const char* what);
[[noreturn]] void trap();

int lane_index();  // in its warp

// What the last one to come does for all: all[i] is what lane i brought, null of lanes without.
using Together = void (*)(void* const* all);

// Waits until the lanes of `mask`, the caller among them, have come.
void meet_warp(unsigned mask, void* mine, Together work);
// Waits for all threads of the block that have not ended.
void sync_block();

// Products of a warpgroup, made as late as possible: `gather` is called when its 128 threads have
// come, with what each brought, and returns what is to be done.
using Gather = std::function<void()> (*)(void* const* all);
void ask_product(void* mine, Gather gather);
void end_product_group();
void wait_product_groups(int groups);
// Products must not be asked for while copies of any thread are made and not fenced.
void fence_copies();

// d += a · b, in order of the inner dimension, each step rounded.
void add_product(float (&d)[16][8], const float (&a)[16][16], const float (&b)[16][8]);

// A copy into shared memory that has been asked for, and is made as late as possible.
struct AsyncCopy {
  void* to;
  const void* from;
  int bytes;  // that are read
  int size;   // that are written
};
void ask_copy(const AsyncCopy& copy);
void end_copy_group();
// Makes the copies of all ended groups but the last `groups`.
void wait_copy_groups(int groups);

}  // namespace emulated
