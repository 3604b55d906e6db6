// int8 pages (kernels/cpu/attention.h): storing keys and values, and making a head's tiles of them.
// Compiled once per instruction set, in an unnamed namespace like kernels/cpu/simd.h.
#pragma once

#include <cmath>
#include <limits>

#include "kernels/cpu/attention_tiles.h"

namespace degu {
namespace {

// One key/value head of one int8 page.
struct BytePage {
  float* key_scale;    // [64]
  float* value_scale;  // [64]
  int8_t* keys;
  int8_t* values;

  BytePage(const KvView& kv, const PageLayout& layout, int64_t sequence, int64_t block,
           int64_t kv_head) {
    const BytePageLayout bytes(layout.head_width);
    const int64_t page = kv.table[static_cast<size_t>(sequence * kv.max_pages + block)];
    auto* at = static_cast<std::byte*>(kv.pages) +
               static_cast<size_t>(page * kv.kv_heads + kv_head) * bytes.head_bytes();
    key_scale = reinterpret_cast<float*>(at);
    value_scale = key_scale + kKvPageKeys;
    keys = reinterpret_cast<int8_t*>(value_scale + kKvPageKeys);
    values = keys + bytes.keys;
  }
};

// Rounds x[0 .. width) and hands each byte to put(d, byte). Returns the scale.
template <class T, class Put>
float round_vector(const T* x, int64_t width, Put&& put) {
  float top = 0;
  bool finite = true;
  for (int64_t d = 0; d < width; ++d) {
    const float a = std::abs(static_cast<float>(x[d]));
    finite = finite && a <= std::numeric_limits<float>::max();
    top = std::max(top, a);
  }
  // The inverse of the smallest normal numbers would overflow; what is below reads as zero.
  const bool usable = finite && top >= 1e-30f;
  const float inverse = usable ? 127.0f / top : 0.0f;
  for (int64_t d = 0; d < width; ++d) {
    const float q = usable ? std::nearbyint(static_cast<float>(x[d]) * inverse) : 0.0f;
    put(d, static_cast<int8_t>(std::clamp(q, -127.0f, 127.0f)));
  }
  if (!finite) return std::numeric_limits<float>::quiet_NaN();
  return usable ? top / 127.0f : 0.0f;
}

template <class T>
void store_key(const BytePage& page, const PageLayout& layout, int64_t slot, const T* x) {
  page.key_scale[slot] = round_vector(x, layout.head_width, [&](int64_t d, int8_t q) {
    page.keys[(d / kPack<T> * kBlock + slot) * kPack<T> + d % kPack<T>] = q;
  });
}

template <class T>
void store_value(const BytePage& page, const PageLayout& layout, int64_t slot, const T* x) {
  page.value_scale[slot] = round_vector(x, layout.head_width, [&](int64_t d, int8_t q) {
    page.values[(slot / kPack<T> * layout.columns + d) * kPack<T> + slot % kPack<T>] = q;
  });
}

#if defined(__AVX512F__)
inline VecF load_bytes(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}
#elif defined(__AVX2__)
inline VecF load_bytes(const int8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))};
}
#else
inline VecF load_bytes(const int8_t* p) {
  float wide[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) wide[i] = static_cast<float>(p[i]);
  return load(wide);
}
#endif

// The head's keys and values as `tiles` (PageLayout of T): byte * scale, one rounding.
template <class T>
void expand(const BytePage& page, const PageLayout& layout, T* tiles) {
  alignas(64) float scale[kBlock * 2];
  for (int64_t i = 0; i < kBlock * kPack<T>; ++i) scale[i] = page.key_scale[i / kPack<T>];
  const int64_t row = kBlock * kPack<T>;
  for (int64_t w = 0; w < layout.key_words; ++w) {
    for (int64_t i = 0; i < row; i += kLanes) {
      store(tiles + w * row + i, load_bytes(page.keys + w * row + i) * load(scale + i));
    }
  }
  T* values = tiles + layout.key_elements();
  const int64_t pair = layout.columns * kPack<T>;
  for (int64_t p = 0; p < kBlock / kPack<T>; ++p) {
    // Neighbours of a word are neighbouring keys.
    for (int64_t i = 0; i < kLanes; ++i) scale[i] = page.value_scale[p * kPack<T> + i % kPack<T>];
    const VecF scales = load(scale);
    for (int64_t i = 0; i < pair; i += kLanes) {
      store(values + p * pair + i, load_bytes(page.values + p * pair + i) * scales);
    }
  }
}

}  // namespace
}  // namespace degu
