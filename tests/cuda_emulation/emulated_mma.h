// What kernels/cuda/mma.cuh asks of the hardware, done on the host: see there for what each is.
//
// Sums inside a product are in order of the inner dimension, each rounded: one of the orders that
// the hardware may have.
#pragma once

#include <cstdint>
#include <cstring>

#include "tests/cuda_emulation/cuda_bf16.h"
#include "tests/cuda_emulation/cuda_runtime.h"

namespace degu::cuda {

extern thread_local uint4 dynamic_shared[];  // kernels/cuda/launch.cuh

namespace {

inline float emulated_low(uint32_t word) {
  return std::bit_cast<float>(word << 16);
}
inline float emulated_high(uint32_t word) {
  return std::bit_cast<float>(word & 0xffff0000u);
}

// A lane's words of A, and its numbers of D, from and to their places (mma.cuh).
inline void emulated_gather(int lane, const uint32_t* a, const float* d, float (&left)[16][16],
                            float (&sum)[16][8]) {
  const int g = lane / 4, t = lane % 4;
  for (int w = 0; w < 4; ++w) {
    const int row = g + w % 2 * 8, column = w / 2 * 8 + 2 * t;
    left[row][column] = emulated_low(a[w]);
    left[row][column + 1] = emulated_high(a[w]);
  }
  for (int i = 0; i < 4; ++i) sum[g + i / 2 * 8][2 * t + i % 2] = d[i];
}
inline void emulated_scatter(int lane, const float (&sum)[16][8], float* d) {
  for (int i = 0; i < 4; ++i) d[i] = sum[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
}

// Shared memory's own addresses begin with the dynamic part.
inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(static_cast<const std::byte*>(shared) -
                               reinterpret_cast<const std::byte*>(dynamic_shared));
}

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Item {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
  } item{d, a, {b0, b1}};
  emulated::meet_warp(0xffffffffu, &item, [](void* const* all) {
    float left[16][16], right[16][8], sum[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const auto& from = *static_cast<const Item*>(all[lane]);
      const int g = lane / 4, t = lane % 4;
      emulated_gather(lane, from.a, from.d, left, sum);
      for (int w = 0; w < 2; ++w) {
        right[w * 8 + 2 * t][g] = emulated_low(from.b[w]);
        right[w * 8 + 2 * t + 1][g] = emulated_high(from.b[w]);
      }
    }
    emulated::add_product(sum, left, right);
    for (int lane = 0; lane < 32; ++lane) {
      const auto& to = *static_cast<const Item*>(all[lane]);
      emulated_scatter(lane, sum, to.d);
    }
  });
}

inline void mma_int8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     int32_t start) {
  struct Item {
    int32_t* d;
    const uint32_t* a;
    uint32_t b[2];
    int32_t start;
  } item{d, a, {b0, b1}, start};
  emulated::meet_warp(0xffffffffu, &item, [](void* const* all) {
    int8_t left[16][32], right[8][32];
    for (int lane = 0; lane < 32; ++lane) {
      const auto& from = *static_cast<const Item*>(all[lane]);
      const int g = lane / 4, t = lane % 4;
      for (int w = 0; w < 4; ++w)
        std::memcpy(&left[g + w % 2 * 8][w / 2 * 16 + 4 * t], &from.a[w], 4);
      for (int w = 0; w < 2; ++w) std::memcpy(&right[g][w * 16 + 4 * t], &from.b[w], 4);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const auto& to = *static_cast<const Item*>(all[lane]);
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
        int32_t sum = to.start;
        for (int k = 0; k < 32; ++k) sum += int32_t{left[row][k]} * right[column][k];
        to.d[i] = sum;
      }
    }
  });
}

// One rounding: the product of two bf16 numbers is exact in fp32 and their sum with a third one in
// fp64.
inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  const auto one = [](float x, float y, float z) {
    const double exact = static_cast<double>(x) * y + z;
    // To odd in fp32 first, so that the second rounding does not see a tie that was none.
    auto bits = std::bit_cast<uint32_t>(static_cast<float>(exact));
    const double back = std::bit_cast<float>(bits);
    if (back != exact && (bits & 1u) == 0) bits += (back < exact) == (exact > 0) ? 1u : ~0u;
    return uint32_t{__bfloat16_as_ushort(__float2bfloat16_rn(std::bit_cast<float>(bits)))};
  };
  return one(emulated_low(a), emulated_low(b), emulated_low(c)) |
         one(emulated_high(a), emulated_high(b), emulated_high(c)) << 16;
}

inline uint32_t pack_bf16(float low, float high) {
  return uint32_t{__bfloat16_as_ushort(__float2bfloat16_rn(low))} |
         uint32_t{__bfloat16_as_ushort(__float2bfloat16_rn(high))} << 16;
}

// Rows of kWords matrices from lanes 8 i + r; lanes beyond may give any address.
template <int kWords, bool kTransposed>
inline void emulated_load(uint32_t (&word)[kWords], const void* row) {
  struct Item {
    uint32_t* word;
    const void* row;
  } item{word, row};
  emulated::meet_warp(0xffffffffu, &item, [](void* const* all) {
    for (int i = 0; i < kWords; ++i) {
      uint16_t matrix[8][8];
      for (int r = 0; r < 8; ++r) {
        const void* from = static_cast<const Item*>(all[8 * i + r])->row;
        if (reinterpret_cast<uintptr_t>(from) % 16 != 0) emulated::fail("ldmatrix: misaligned row");
        std::memcpy(matrix[r], from, 16);
      }
      for (int lane = 0; lane < 32; ++lane) {
        const int r = lane / 4, c = 2 * (lane % 4);
        const uint16_t low = kTransposed ? matrix[c][r] : matrix[r][c];
        const uint16_t high = kTransposed ? matrix[c + 1][r] : matrix[r][c + 1];
        static_cast<const Item*>(all[lane])->word[i] = low | uint32_t{high} << 16;
      }
    }
  });
}
inline void load_matrices(uint32_t (&word)[4], const void* row) {
  emulated_load<4, false>(word, row);
}
inline void load_matrices(uint32_t (&word)[2], const void* row) {
  emulated_load<2, false>(word, row);
}
inline void load_matrices_transposed(uint32_t (&word)[4], const void* row) {
  emulated_load<4, true>(word, row);
}

inline void copy_async_16(void* shared, const void* from, int bytes) {
  if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(from)) % 16 != 0) {
    emulated::fail("cp.async: misaligned address");
  }
  emulated::ask_copy({shared, from, bytes, 16});
}
inline void copy_async_4(void* shared, const void* from, int bytes) {
  emulated::ask_copy({shared, from, bytes, 4});
}
inline void commit_copies() {
  emulated::end_copy_group();
}
template <int kGroups>
inline void wait_copies() {
  emulated::wait_copy_groups(kGroups);
}

}  // namespace
}  // namespace degu::cuda
