// Products of a warpgroup (four warps) on Hopper's tensor cores, under way while the threads do
// something else.
//
// d (64 x N) += a (64 x 16) · b (16 x N), bf16 with fp32 sums. Warp w of the group has rows 16 w
// and on of a and d, in the lanes that mma.cuh describes: a's words are those of its A, d[o] is its
// D for columns 8 o and on. b is read from shared memory, where `matrix_descriptor` says.
//
// A sequence of calls: warpgroup_fence, any number of warpgroup_mma, warpgroup_commit; between that
// and the warpgroup_wait that ends it neither d nor a may be touched, nor what b lies in. What
// copies (mma.cuh) brought to shared memory is seen by products after fence_copies of the thread
// that copied, and a barrier.
//
// As for the products of single warps, the order of the sum inside one is the hardware's and the
// same for every element; N takes no part in it.
#pragma once

#include <cstdint>

#include "kernels/cuda/mma.cuh"

namespace degu::cuda {
namespace {

// Whether the build is for GPUs that have such products, all of them.
#ifdef DEGU_CUDA_WARPGROUPS
inline constexpr bool kHasWarpgroups = true;
#else
inline constexpr bool kHasWarpgroups = false;
#endif

// Where b begins in shared memory (16-byte aligned; its pattern of 1024 bytes aligned to that).
// Eight rows of 128 bytes are one such pattern, the 16-byte pieces of row r at p ^ (r % 8).
//   not transposed: a row holds 64 elements along the inner dimension of one column of b; `stride`
//     bytes from eight columns to the next eight. The next 16 inner elements are 32 bytes on.
//   transposed: a row holds 64 columns of b at one inner index; `stride` bytes from eight inner
//     indices to the next eight, `leading` from 64 columns to the next 64.
__device__ inline uint64_t matrix_descriptor(const void* shared, int leading, int stride) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return (shared_address(shared) & 0x3ffffu) >> 4 | static_cast<uint64_t>(leading >> 4) << 16 |
         static_cast<uint64_t>(stride >> 4) << 32 | kSwizzle128;
}

// The descriptor of what begins `bytes` (a multiple of 16) further on.
__device__ inline uint64_t moved(uint64_t descriptor, int bytes) {
  return descriptor + static_cast<uint64_t>(bytes >> 4);
}

}  // namespace
}  // namespace degu::cuda

#ifdef DEGU_CUDA_EMULATED
#include <emulated_wgmma.h>  // tests/cuda_emulation
#else

namespace degu::cuda {
namespace {

#define DEGU_SUMS(o) "+f"(d[o][0]), "+f"(d[o][1]), "+f"(d[o][2]), "+f"(d[o][3])

template <bool kTransposed>
__device__ inline void warpgroup_mma(float (&d)[1][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "{.reg .pred add; setp.ne.b32 add, 1, 0; "
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, %8, add, 1, 1, %9;}"
      : DEGU_SUMS(0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kTransposed ? 1 : 0));
}
template <bool kTransposed>
__device__ inline void warpgroup_mma(float (&d)[4][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "{.reg .pred add; setp.ne.b32 add, 1, 0; "
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "{%16, %17, %18, %19}, %20, add, 1, 1, %21;}"
      : DEGU_SUMS(0), DEGU_SUMS(1), DEGU_SUMS(2), DEGU_SUMS(3)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kTransposed ? 1 : 0));
}
template <bool kTransposed>
__device__ inline void warpgroup_mma(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "{.reg .pred add; setp.ne.b32 add, 1, 0; "
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, add, 1, 1, %69;}"
      : DEGU_SUMS(0), DEGU_SUMS(1), DEGU_SUMS(2), DEGU_SUMS(3), DEGU_SUMS(4), DEGU_SUMS(5),
        DEGU_SUMS(6), DEGU_SUMS(7), DEGU_SUMS(8), DEGU_SUMS(9), DEGU_SUMS(10), DEGU_SUMS(11),
        DEGU_SUMS(12), DEGU_SUMS(13), DEGU_SUMS(14), DEGU_SUMS(15)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kTransposed ? 1 : 0));
}

#undef DEGU_SUMS

__device__ inline void warpgroup_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void warpgroup_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most kGroups of the warpgroup's committed products are under way.
template <int kGroups>
__device__ inline void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}
__device__ inline void fence_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace
}  // namespace degu::cuda
#endif
