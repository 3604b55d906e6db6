// What kernels/cuda/wgmma.cuh asks of the hardware, done on the host: see there for what each is.
// Products read their registers and shared memory when the warpgroup waits for them, not earlier.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>

#include "tests/cuda_emulation/cuda_runtime.h"
#include "tests/cuda_emulation/emulated_mma.h"

namespace degu::cuda {
namespace {

// Element (k, n) of b.
template <bool kTransposed>
inline float emulated_element(uint64_t descriptor, int k, int n) {
  const auto field = [&](int at) { return static_cast<int>(descriptor >> at & 0x3fffu) << 4; };
  if (descriptor >> 62 != 1) emulated::fail("wgmma: only the swizzle of 128 bytes is known");
  const int begin = field(0), leading = field(16), stride = field(32);
  const int row = kTransposed ? k : n, column = kTransposed ? n : k;
  const int logical = begin + column / 64 * (kTransposed ? leading : 0) + row / 8 * stride +
                      row % 8 * 128 + column % 64 * 2;
  const int at = logical ^ (logical >> 7 & 7) << 4;
  if (at < 0 || at + 2 > static_cast<int>(emulated::kMostShared)) {
    emulated::fail("wgmma: outside of shared memory");
  }
  uint16_t bits = 0;
  std::memcpy(&bits, reinterpret_cast<const std::byte*>(dynamic_shared) + at, sizeof bits);
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

template <bool kTransposed, int kOctets>
inline void warpgroup_mma(float (&d)[kOctets][4], const uint32_t (&a)[4], uint64_t b) {
  struct Item {
    float (*d)[4];
    const uint32_t* a;
    uint64_t b;
  } item{d, a, b};
  emulated::ask_product(&item, [](void* const* all) -> std::function<void()> {
    std::array<Item, 128> items;
    for (size_t i = 0; i < items.size(); ++i) items[i] = *static_cast<const Item*>(all[i]);
    for (const Item& each : items) {
      if (each.b != items[0].b) emulated::fail("wgmma: threads name different matrices");
    }
    return [items] {
      for (int octet = 0; octet < kOctets; ++octet) {
        float right[16][8];
        for (int k = 0; k < 16; ++k) {
          for (int n = 0; n < 8; ++n) {
            right[k][n] = emulated_element<kTransposed>(items[0].b, k, 8 * octet + n);
          }
        }
        for (int warp = 0; warp < 4; ++warp) {
          float left[16][16], sum[16][8];
          for (int lane = 0; lane < 32; ++lane) {
            const Item& from = items[static_cast<size_t>(warp * 32 + lane)];
            emulated_gather(lane, from.a, from.d[octet], left, sum);
          }
          emulated::add_product(sum, left, right);
          for (int lane = 0; lane < 32; ++lane) {
            const Item& to = items[static_cast<size_t>(warp * 32 + lane)];
            emulated_scatter(lane, sum, to.d[octet]);
          }
        }
      }
    };
  });
}
inline void warpgroup_fence() {}
inline void warpgroup_commit() {
  emulated::end_product_group();
}
template <int kGroups>
inline void warpgroup_wait() {
  emulated::wait_product_groups(kGroups);
}
inline void fence_copies() {
  emulated::fence_copies();
}

}  // namespace
}  // namespace degu::cuda
