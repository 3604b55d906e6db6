// Products on tensor cores, matrix loads from shared memory and asynchronous copies: the backend's
// only inline assembly. Everything here exists since sm_80.
//
// Which element a lane holds is fixed by the PTX ISA ("Matrix Fragments for mma.m16n8k16 / k32",
// "ldmatrix"). With g = lane / 4 and t = lane % 4:
//   A (16 x K)  word 0: row g, word 1: row g + 8, both from the first half of the columns; words 2
//               and 3: the same rows, second half. A word holds 4 bytes of neighbouring columns:
//               bf16 2 t, 2 t + 1 of 8; int8 4 t … 4 t + 3 of 16.
//   B (K x 8)   word 0: column g, rows as A's columns of the first half; word 1: of the second.
//   D (16 x 8)  numbers 0, 1: row g, columns 2 t and 2 t + 1; numbers 2, 3: row g + 8.
// The order of the sum inside one product is the hardware's. It is the same for every element, so a
// chain of these products over K gives a row's bits wherever the row lies.
#pragma once

#include <cstdint>

#ifdef DEGU_CUDA_EMULATED
#include <emulated_mma.h>  // tests/cuda_emulation
#else

namespace degu::cuda {
namespace {

// d += a · b: bf16, A 16 x 16, B 16 x 8, fp32 sums.
__device__ inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d = start + a · b: int8, A 16 x 32, B 32 x 8, 32-bit sums, exact.
__device__ inline void mma_int8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                int32_t start) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%10, %10, %10, %10};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(start));
}

// Two bf16 numbers each: a * b + c, rounded once; subnormal numbers count.
__device__ inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// Two numbers rounded to bf16, `low` in the lower half.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}

__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Four 8 x 8 matrices of 16-bit elements. Lane 8 i + r says where the 16 bytes of row r of matrix i
// lie (a multiple of 16). Word i of lane l: elements 2 (l % 4) and the next of row l / 4 of matrix
// i.
__device__ inline void load_matrices(uint32_t (&word)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same with two matrices; lanes 16 and up may give any address.
__device__ inline void load_matrices(uint32_t (&word)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(word[0]), "=r"(word[1])
               : "r"(shared_address(row))
               : "memory");
}

// Four matrices, each transposed: word i of lane l holds rows 2 (l % 4) and the next of column
// l / 4.
__device__ inline void load_matrices_transposed(uint32_t (&word)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(shared_address(row))
               : "memory");
}

// Starts a copy of 16 bytes to shared memory, past the first-level cache. Of `from` only the first
// `bytes` are read, the rest becomes zero; both addresses are multiples of 16, also with 0 bytes.
__device__ inline void copy_async_16(void* shared, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(from), "r"(bytes)
               : "memory");
}

// The same with 4 bytes, through the first-level cache.
__device__ inline void copy_async_4(void* shared, const void* from, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)),
               "l"(from), "r"(bytes)
               : "memory");
}

// Ends a group of copies: those that this thread started since the last group.
__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most kGroups of this thread's groups are under way. Other threads see what was
// copied after a barrier.
template <int kGroups>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

}  // namespace
}  // namespace degu::cuda
#endif
