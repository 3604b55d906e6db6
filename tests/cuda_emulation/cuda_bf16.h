// Rounding to bf16 as cuda_bf16.h has it.
#pragma once

#include "tests/cuda_emulation/cuda_runtime.h"

struct __nv_bfloat16 {
  unsigned short bits;
};

// To nearest, ties to even; NaN becomes the canonical one.
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const unsigned bits = std::bit_cast<unsigned>(value);
  if (value != value) return {0x7fff};
  return {static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) {
  return value.bits;
}
