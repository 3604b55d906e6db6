// What attention's kernels share: how a head's rows lie in pages and in shared memory, how blocks
// of keys and values arrive there, and the two products that attention is made of.
//
// An *image* of R rows is cut into panels of 64 bytes of their width: [panels][R][64 bytes]. The
// four 16-byte chunks of a row change places with the row, so that eight neighbouring rows' chunks
// of the same number lie in different banks. A page holds, for each key/value head, the image of
// its 64 keys and then that of its 64 values, so a block is copied as it is. int8 pages hold 128
// scales (fp32; of the keys, then of the values), then bytes in the places that the elements of the
// images have.
#pragma once

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/tables/attention.h"

namespace degu::cuda {
namespace {

inline constexpr int kKeys = static_cast<int>(kKvPageKeys);
inline constexpr int kRun = 16;  // rows of a warp: those of a product on tensor cores
inline constexpr int kMostHeadWidth = 256;
inline constexpr int kRowBytes = 64;  // of a row in a panel
inline constexpr int kScaleBytes = 2 * kKeys * static_cast<int>(sizeof(float));

// Elements of a row in a panel.
template <class T>
inline constexpr int kPanel = kRowBytes / static_cast<int>(sizeof(T));

template <class T>
constexpr int padded_width(int64_t width) {
  return static_cast<int>((width + kPanel<T> - 1) / kPanel<T> * kPanel<T>);
}

// Where byte `byte` of a row lies in an image of kRows rows.
template <int kRows>
__host__ __device__ constexpr int image_at(int row, int byte) {
  const int chunk = (byte / 16 % 4) ^ (row / 2 % 4);
  return (byte / kRowBytes * kRows + row) * kRowBytes + chunk * 16 + byte % 16;
}
// The same, 32 * step bytes further in the row: for constant steps an exclusive or and a sum.
template <int kRows>
__device__ constexpr int stepped(int at, int step) {
  return (at ^ (step % 2 * 32)) + step / 2 * kRows * kRowBytes;
}

template <class T, int kRows>
struct Image {
  std::byte* bytes;

  static constexpr int size(int width) { return kRows * width * static_cast<int>(sizeof(T)); }
  __device__ const float* floats(int row, int d) const {
    return reinterpret_cast<const float*>(bytes + image_at<kRows>(row, d * 4));
  }
};

// ---- pages ----

struct HeadLayout {
  bool quantized;  // int8
  int half_bytes;  // keys, or values
  int64_t head_bytes;
  int64_t page_bytes;
};

// Of pages whose keys are stored and read as T. An int8 page's size does not depend on T.
template <class T>
HeadLayout head_layout(DType dtype, int64_t kv_heads, int64_t width) {
  HeadLayout layout{.quantized = dtype == DType::kI8};
  layout.half_bytes =
      kKeys * padded_width<T>(width) * (layout.quantized ? 1 : static_cast<int>(sizeof(T)));
  layout.head_bytes = layout.quantized ? kScaleBytes + 2 * kKeys * padded_width<bf16>(width)
                                       : 2 * layout.half_bytes;
  layout.page_bytes = kv_heads * layout.head_bytes;
  return layout;
}

// Zeros `bytes` (a multiple of 16) of shared memory.
template <int kBlockThreads>
__device__ inline void zero_shared(std::byte* at, int bytes) {
  for (int i = static_cast<int>(threadIdx.x) * 16; i < bytes; i += kBlockThreads * 16) {
    *reinterpret_cast<Words<16>*>(at + i) = Words<16>{};
  }
}

// Blocks of keys and values of one head, one after the other in shared memory; the next one is on
// its way while the caller works. kW: the width that kernels compute with; panels between the
// page's width and kW are zeros.
template <class T, int kW, int kBlockThreads>
struct KvBlocks {
  static constexpr int kHalf = Image<T, kKeys>::size(kW);
  static constexpr int kStages = sizeof(T) == 4 && kW == 256 ? 1 : 2;  // what shared memory holds
  static constexpr int kRaw = kScaleBytes + 2 * kKeys * kW;

  std::byte* memory;
  const std::byte* head;  // in page 0
  const int32_t* table;   // the sequence's pages
  HeadLayout layout;
  int end;  // of the blocks that the caller wants

  static int shared_bytes(bool quantized) {
    return quantized ? 2 * kHalf + kStages * kRaw : kStages * 2 * kHalf;
  }

  // Before the first block.
  __device__ void open(int first) const {
    zero_padding(layout.quantized ? 1 : kStages);
    if constexpr (kStages == 2) start(first);
  }
  // Instead of all else, for a single block that is not int8: to `memory`, when the caller has
  // waited for copies and then for the other threads.
  __device__ void open_one(int block) const {
    zero_padding(1);
    start_at(block, memory);
  }

  __device__ void start(int block) const {
    const int stage = block % kStages;
    if (layout.quantized) {
      const std::byte* from = head + table[block] * layout.page_bytes;
      copy(raw(stage), from, kScaleBytes + 2 * layout.half_bytes);
      commit_copies();
    } else {
      start_at(block, memory + stage * 2 * kHalf);
    }
  }

  // Keys of the block; values lie kHalf bytes behind. The whole block calls it, with blocks in
  // order; what the call before returned is then done with.
  __device__ Image<T, kKeys> get(int block) const {
    if constexpr (kStages == 1) {
      __syncthreads();
      start(block);
    }
    wait_copies<0>();
    __syncthreads();
    if constexpr (kStages == 2) {
      if (block + 1 < end) start(block + 1);
    }
    if (!layout.quantized) return {memory + block % kStages * 2 * kHalf};
    const std::byte* from = raw(block % kStages);
    expand(from, from + kScaleBytes, memory);
    expand(from + kScaleBytes / 2, from + kScaleBytes + layout.half_bytes, memory + kHalf);
    __syncthreads();
    return {memory};
  }
  __device__ Image<T, kKeys> values(Image<T, kKeys> keys) const { return {keys.bytes + kHalf}; }

 private:
  __device__ void start_at(int block, std::byte* to) const {
    const std::byte* from = head + table[block] * layout.page_bytes;
    copy(to, from, layout.half_bytes);
    copy(to + kHalf, from + layout.half_bytes, layout.half_bytes);
    commit_copies();
  }

  __device__ void zero_padding(int stages) const {
    const int used =
        layout.quantized ? layout.half_bytes * static_cast<int>(sizeof(T)) : layout.half_bytes;
    if (used == kHalf) return;
    zero_shared<kBlockThreads>(memory, stages * 2 * kHalf);
    __syncthreads();
  }

  __device__ std::byte* raw(int stage) const { return memory + 2 * kHalf + stage * kRaw; }

  __device__ void copy(std::byte* to, const std::byte* from, int bytes) const {
    for (int i = static_cast<int>(threadIdx.x) * 16; i < bytes; i += kBlockThreads * 16) {
      copy_async_16(to + i, from + i, 16);
    }
  }

  // Bytes times their row's scale, rounded to T once; the places stay.
  __device__ void expand(const std::byte* scales, const std::byte* from, std::byte* to) const {
    const auto* scale = reinterpret_cast<const float*>(scales);
    constexpr int N = kPack<T>;
    for (int i = static_cast<int>(threadIdx.x) * 16; i < layout.half_bytes;
         i += kBlockThreads * 16) {
      const Words<16> word = *reinterpret_cast<const Words<16>*>(from + i);
      const float s = scale[i / kPanel<T> % kKeys];
      T* out = reinterpret_cast<T*>(to) + i;
#pragma unroll
      for (int part = 0; part < 16; part += N) {
        float v[N];
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const uint32_t four = word.word[(part + j) / 4];
          const auto q = static_cast<int8_t>(four >> (part + j) % 4 * 8);
          v[j] = static_cast<float>(q) * s;
        }
        store<true>(out + part, 0, N, v);
      }
    }
  }
};

// Starts copying rows of a tensor to an image: row_of(r) points at row r's `width` elements, or is
// null for a row of zeros. With `vector` they are 16-byte aligned and so is `anchor`, any address
// that may be named.
template <int kW, int kBlockThreads, class T, int kRows, class RowOf>
__device__ inline void load_image(Image<T, kRows> image, int width, bool vector, const T* anchor,
                                  RowOf row_of) {
  constexpr int N = kPack<T>;
  constexpr int kChunks = kW / N;
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kChunks; i += kBlockThreads) {
    const int row = i / kChunks;
    const int first = i % kChunks * N;
    const T* from = row_of(row);
    std::byte* to = image.bytes + image_at<kRows>(row, first * static_cast<int>(sizeof(T)));
    if (vector) {
      const bool inside = from != nullptr && first < width;
      copy_async_16(to, inside ? from + first : anchor, inside ? 16 : 0);
    } else {
      float v[N];
      load<false>(from, first, from == nullptr ? 0 : width, v);
      store<true>(reinterpret_cast<T*>(to), 0, N, v);
    }
  }
}

// ---- products ----
//
// A warp's 16 x N results lie as tensor cores leave them: c[n][0], c[n][1] are row lane / 4 and
// columns 8 n + 2 (lane % 4) and the next; c[n][2], c[n][3] are eight rows below. In fp32 the same
// lanes make the same elements with fused multiply-adds, in the order of the inner dimension.

// c += rows a0 … a0 + 15 of a, times rows b0 … of b: sums over the width, in steps of 16 (bf16).
template <int kW, int kARows, int kBRows, int kTiles>
__device__ inline void dot_rows(Image<bf16, kARows> a, int a0, Image<bf16, kBRows> b, int b0,
                                float (&c)[kTiles][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int a_at = image_at<kARows>(a0 + lane % 16, lane / 16 * 16);
  const int b_at = image_at<kBRows>(b0 + lane / 16 * 8 + lane % 8, lane / 8 % 2 * 16);
#pragma unroll
  for (int k = 0; k < kW / 16; ++k) {
    uint32_t x[4];
    load_matrices(x, a.bytes + stepped<kARows>(a_at, k));
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t y[4];
      load_matrices(y, b.bytes + stepped<kBRows>(b_at, k) + n * 8 * kRowBytes);
      mma_bf16(c[n], x, y[0], y[1]);
      mma_bf16(c[n + 1], x, y[2], y[3]);
    }
  }
}

template <int kW, int kARows, int kBRows, int kTiles>
__device__ inline void dot_rows(Image<float, kARows> a, int a0, Image<float, kBRows> b, int b0,
                                float (&c)[kTiles][4]) {
  constexpr int N = kW > 64 ? 2 : 4;  // at a time: the sums of wide heads leave few registers
  const int row = static_cast<int>(threadIdx.x) % 32 / 4;
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll 1
  for (int d = 0; d < kW; d += N) {
    float low[N], high[N];
    load<true>(a.floats(a0 + row, d), 0, N, low);
    load<true>(a.floats(a0 + row + 8, d), 0, N, high);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float y[N];
        load<true>(b.floats(b0 + n * 8 + column + e, d), 0, N, y);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          c[n][e] = fmaf(low[i], y[i], c[n][e]);
          c[n][2 + e] = fmaf(high[i], y[i], c[n][2 + e]);
        }
      }
    }
  }
}

// A warp's 16 x (8 kTiles) results as the left side of the next product, rounded to T.
template <class T, int kTiles>
struct Weights;

template <int kTiles>
struct Weights<bf16, kTiles> {
  static constexpr int kShared = 0;  // bytes of shared memory for a warp
  uint32_t word[kTiles / 2][4];

  __device__ Weights(const float (&c)[kTiles][4], std::byte*) {
#pragma unroll
    for (int k = 0; k < kTiles / 2; ++k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        word[k][2 * half] = pack_bf16(c[2 * k + half][0], c[2 * k + half][1]);
        word[k][2 * half + 1] = pack_bf16(c[2 * k + half][2], c[2 * k + half][3]);
      }
    }
  }
};

// In fp32 they go through shared memory, which the warp may use for the next ones at once.
template <int kTiles>
struct Weights<float, kTiles> {
  static constexpr int kStride = kTiles * 8 + 4;  // rows in different banks
  static constexpr int kShared = kRun * kStride * 4;
  const float* at;

  __device__ Weights(const float (&c)[kTiles][4], std::byte* shared) {
    auto* to = reinterpret_cast<float*>(shared);
    const int row = static_cast<int>(threadIdx.x) % 32 / 4;
    const int column = static_cast<int>(threadIdx.x) % 4 * 2;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        to[row * kStride + n * 8 + column + e] = c[n][e];
        to[(row + 8) * kStride + n * 8 + column + e] = c[n][2 + e];
      }
    }
    __syncwarp();
    at = to;
  }
};

// sum += weights times rows b0 … of b: sums over the rows, in order, in steps of 16 (bf16).
template <int kW, int kTiles, int kBRows>
__device__ inline void add_weighted(const Weights<bf16, kTiles>& weights, Image<bf16, kBRows> b,
                                    int b0, float (&sum)[kW / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int at = image_at<kBRows>(b0 + lane % 16, lane / 16 * 16);
#pragma unroll
  for (int k = 0; k < kTiles / 2; ++k) {
#pragma unroll
    for (int n = 0; n < kW / 8; n += 2) {
      uint32_t y[4];
      load_matrices_transposed(y, b.bytes + stepped<kBRows>(at, n / 2) + k * 16 * kRowBytes);
      mma_bf16(sum[n], weights.word[k], y[0], y[1]);
      mma_bf16(sum[n + 1], weights.word[k], y[2], y[3]);
    }
  }
}

template <int kW, int kTiles, int kBRows>
__device__ inline void add_weighted(const Weights<float, kTiles>& weights, Image<float, kBRows> b,
                                    int b0, float (&sum)[kW / 8][4]) {
  constexpr int kStride = Weights<float, kTiles>::kStride;
  const int row = static_cast<int>(threadIdx.x) % 32 / 4;
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll 1
  for (int k = 0; k < kTiles * 8; k += 2) {
    float low[2], high[2];  // more would not fit the registers of wide heads
    load<true>(weights.at + row * kStride + k, 0, 2, low);
    load<true>(weights.at + (row + 8) * kStride + k, 0, 2, high);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int n = 0; n < kW / 8; ++n) {
        float y[2];
        load<true>(b.floats(b0 + k + i, n * 8 + column), 0, 2, y);
        sum[n][0] = fmaf(low[i], y[0], sum[n][0]);
        sum[n][1] = fmaf(low[i], y[1], sum[n][1]);
        sum[n][2] = fmaf(high[i], y[0], sum[n][2]);
        sum[n][3] = fmaf(high[i], y[1], sum[n][3]);
      }
    }
  }
}

// ---- sequences on the device ----

// Where queries lie when the device has the sequences: `parts` blocks of positions of each
// sequence, enough for the longest; parts of shorter ones are empty.
struct Resident {
  const int64_t* offsets;  // null: the host has the sequences
  const int64_t* first;
  const int32_t* table;
  int64_t max_pages;
  int count;
  int parts;
};

inline int64_t longest(const Sequences& sequences) {
  int64_t most = 0;
  for (int64_t s = 0; s < sequences.count(); ++s) most = std::max(most, sequences.length(s));
  return most;
}

inline Resident resident_of(const Sequences& sequences, const KvView& kv) {
  if (sequences.device_offsets == nullptr || sequences.device_first_position == nullptr ||
      kv.device_table == nullptr) {
    return {};
  }
  const int64_t most = longest(sequences);
  return {.offsets = sequences.device_offsets,
          .first = sequences.device_first_position,
          .table = kv.device_table,
          .max_pages = kv.max_pages,
          .count = static_cast<int>(sequences.count()),
          .parts = static_cast<int>(most < 2 ? 1 : kv_pages_for(most - 1) + 1)};
}

// Part `index` of `parts * count`: consecutive rows of a sequence in one block of positions.
struct Part {
  int sequence;
  int block;
  int64_t row;       // of the batch
  int64_t position;  // of that row in its sequence
  int count;         // rows; 0: the part is empty
  __device__ Part(const Resident& of, int index) : sequence(index % of.count) {
    const int64_t begin = of.first[sequence];
    const int64_t end = begin + of.offsets[sequence + 1] - of.offsets[sequence];
    block = static_cast<int>(begin / kKeys) + index / of.count;
    position = max(begin, static_cast<int64_t>(block) * kKeys);
    row = of.offsets[sequence] + position - begin;
    const int64_t stop = min(end, static_cast<int64_t>(block + 1) * kKeys);
    count = stop > position ? static_cast<int>(stop - position) : 0;
    require(count == 0 || (begin >= 0 && block < of.max_pages));
  }
};

// ---- launching ----

// body(std::integral_constant<int, kW>) with the narrowest width that kernels are made for.
template <class Body>
void with_head_width(const char* op, int64_t width, Body&& body) {
  if (width <= 32) {
    body(std::integral_constant<int, 32>{});
  } else if (width <= 64) {
    body(std::integral_constant<int, 64>{});
  } else if (width <= 128) {
    body(std::integral_constant<int, 128>{});
  } else if (width <= kMostHeadWidth) {
    body(std::integral_constant<int, kMostHeadWidth>{});
  } else {
    CudaState::refuse(op, "head width", width, kMostHeadWidth);
  }
}

inline void require_aligned_pages(const char* op, const KvView& kv) {
  if (reinterpret_cast<uintptr_t>(kv.pages) % 16 != 0) {
    throw ShapeError("{}: pages must start at a multiple of 16 bytes", op);
  }
}

}  // namespace
}  // namespace degu::cuda
