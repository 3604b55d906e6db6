#include "kernels/cuda/attention_store.cuh"

#include <vector>

#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/reduce.cuh"

namespace degu {
namespace {

using namespace degu::cuda;

constexpr int kStoreThreads = 128;

// Consecutive rows of a sequence that go to one page.
struct Piece {
  int64_t row;  // of the batch
  int32_t page;
  int32_t slot;  // of the first row, in the page
  int32_t count;
};

struct Args {
  const void* keys;  // [T, G, A]
  const void* values;
  std::byte* pages;
  const Piece* pieces;
  Resident resident;  // instead of pieces
  HeadLayout layout;
  int kv_heads;
  int width;
  bool vector;
};

__device__ inline Piece piece_of(const Args& args) {
  if (args.resident.offsets == nullptr) return args.pieces[blockIdx.x];
  const Part part(args.resident, static_cast<int>(blockIdx.x));
  if (part.count == 0) return {};
  const int64_t entry = part.sequence * args.resident.max_pages + part.block;
  return {part.row, args.resident.table[entry], static_cast<int32_t>(part.position % kKeys),
          part.count};
}

template <class T>
__device__ inline const T* head_row(const Args& args, int which, const Piece& piece, int r) {
  const int64_t at = (piece.row + r) * args.kv_heads + blockIdx.y;
  return static_cast<const T*>(which == 0 ? args.keys : args.values) + at * args.width;
}

__device__ inline std::byte* head_of(const Args& args, const Piece& piece) {
  return args.pages + piece.page * args.layout.page_bytes + blockIdx.y * args.layout.head_bytes;
}

// A thread moves chunks of 16 bytes; what lies past the width is padding, zero before and after.
template <class T>
__global__ void __launch_bounds__(kStoreThreads) store_kernel(Args args) {
  constexpr int N = kPack<T>;
  const Piece piece = piece_of(args);
  std::byte* head = head_of(args, piece);
  const int chunks = (args.width + N - 1) / N;
  for (int i = static_cast<int>(threadIdx.x); i < 2 * piece.count * chunks; i += kStoreThreads) {
    const int which = i / (piece.count * chunks);
    const int r = i / chunks % piece.count;
    const int first = i % chunks * N;
    const T* from = head_row<T>(args, which, piece, r);
    float v[N];
    if (args.vector) {
      load<true>(from, first, args.width, v);
    } else {
      load<false>(from, first, args.width, v);
    }
    const int at = image_at<kKeys>(piece.slot + r, first * static_cast<int>(sizeof(T)));
    store<true>(reinterpret_cast<T*>(head + which * args.layout.half_bytes + at), 0, N, v);
  }
}

// A warp rounds a row.
template <class T>
__global__ void __launch_bounds__(kStoreThreads) store_bytes_kernel(Args args) {
  constexpr int kEach = kMostHeadWidth / 32;
  const Piece piece = piece_of(args);
  std::byte* head = head_of(args, piece);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = static_cast<int>(threadIdx.x) / 32; i < 2 * piece.count; i += kStoreThreads / 32) {
    const int which = i / piece.count;
    const int slot = piece.slot + i % piece.count;
    const T* from = head_row<T>(args, which, piece, i % piece.count);
    float v[kEach];
    float top = 0.0f;
    float broken = 0.0f;  // 1 where a number is none or infinite
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      v[j] = lane + j * 32 < args.width ? to_float(from[lane + j * 32]) : 0.0f;
      const float size = fabsf(v[j]);
      top = fmaxf(top, size);
      if (!(size <= 3.4028234663852886e38f)) broken = 1.0f;
    }
    top = warp_max(top);
    const bool finite = warp_max(broken) == 0.0f;
    // The inverse of the smallest normal numbers would overflow; what is below reads as zero.
    const bool usable = finite && top >= 1e-30f;
    const float inverse = usable ? 127.0f / top : 0.0f;
    auto* bytes = reinterpret_cast<int8_t*>(head + kScaleBytes + which * args.layout.half_bytes);
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int d = lane + j * 32;
      if (d >= args.width) continue;
      const float q = usable ? fminf(fmaxf(rintf(v[j] * inverse), -127.0f), 127.0f) : 0.0f;
      const int at = image_at<kKeys>(slot, d * static_cast<int>(sizeof(T)));
      bytes[at / static_cast<int>(sizeof(T))] = static_cast<int8_t>(q);
    }
    if (lane == 0) {
      const float scale = usable ? top / 127.0f : 0.0f;
      reinterpret_cast<float*>(head)[which * kKeys + slot] =
          finite ? scale : __uint_as_float(0x7fc00000u);
    }
  }
}

std::vector<Piece> pieces_of(const Sequences& sequences, const KvView& kv) {
  std::vector<Piece> pieces;
  each_block_piece(sequences, [&](int64_t s, int64_t row, int64_t position, int64_t count) {
    pieces.push_back(
        {.row = row,
         .page = kv.table[static_cast<size_t>(s * kv.max_pages + position / kKvPageKeys)],
         .slot = static_cast<int32_t>(position % kKvPageKeys),
         .count = static_cast<int32_t>(count)});
  });
  return pieces;
}

template <class T>
void store_typed(Context& context, AnyView k, AnyView v, const Sequences& sequences,
                 const KvView& kv) {
  const Resident resident = resident_of(sequences, kv);
  std::vector<Piece> pieces;
  if (resident.offsets == nullptr) pieces = pieces_of(sequences, kv);
  const auto count = resident.offsets == nullptr ? static_cast<int64_t>(pieces.size())
                                                 : int64_t{resident.count} * resident.parts;
  ScratchScope scope(context.scratch());
  const Args args{.keys = k.data,
                  .values = v.data,
                  .pages = static_cast<std::byte*>(kv.pages),
                  .pieces = on_device(context, std::span<const Piece>(pieces)),
                  .resident = resident,
                  .layout = head_layout<T>(kv.dtype, kv.kv_heads, kv.head_width),
                  .kv_heads = static_cast<int>(kv.kv_heads),
                  .width = static_cast<int>(kv.head_width),
                  .vector = vectored<T>(2, kv.head_width, {k.data, v.data})};
  const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(kv.kv_heads));
  if (args.layout.quantized) {
    launch_kernel(context, "kv_store", {grid, kStoreThreads}, &store_bytes_kernel<T>, args);
  } else {
    launch_kernel(context, "kv_store", {grid, kStoreThreads}, &store_kernel<T>, args);
  }
}

void refuse_wide(const char* op, int64_t width) {
  if (width > kMostHeadWidth) CudaState::refuse(op, "head width", width, kMostHeadWidth);
}

}  // namespace

size_t cuda::attention_page_bytes(DType dtype, int64_t kv_heads, int64_t head_width) {
  refuse_wide("kv_page_bytes", head_width);
  const HeadLayout layout = dtype == DType::kF32 ? head_layout<float>(dtype, kv_heads, head_width)
                                                 : head_layout<bf16>(dtype, kv_heads, head_width);
  return static_cast<size_t>(layout.page_bytes);
}

void cuda::attention_store(Context& context, AnyView k_TGA, AnyView v_TGA,
                           const Sequences& sequences, const KvView& kv) {
  refuse_wide("kv_store", kv.head_width);
  require_aligned_pages("kv_store", kv);
  k_TGA.dtype == DType::kF32 ? store_typed<float>(context, k_TGA, v_TGA, sequences, kv)
                             : store_typed<bf16>(context, k_TGA, v_TGA, sequences, kv);
}

}  // namespace degu
