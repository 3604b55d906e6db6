// Gradients of attention. With s = scale * q·k, p = exp(s - lse) and delta = dot(dout, out):
//   dp = dout·v;  ds = p * (dp - delta);  dv += p * dout;  dk += scale * ds * q;  dq += scale * ds
//   * k
// p and ds are rounded to the type of the view before they meet another operand; scale is applied
// to the finished sums. No sum is shared between blocks of threads:
//   queries_kernel  dq of the queries of a block of 64 positions and one head: over blocks of keys
//   in
//                   order
//   keys_kernel     dk, dv of a block of 64 keys and one key/value head: over its query heads in
//                   order, of each over the queries from the block's first position on, in order
#include <algorithm>
#include <vector>

#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/table.h"

namespace degu {
namespace {

using namespace degu::cuda;

constexpr float kLog2E = 1.4426950408889634f;
// Columns of a warp's tile of scores: what fits its registers.
template <class T>
inline constexpr int kStep = sizeof(T) == 4 ? 16 : 32;

// A block of 64 positions of a sequence: queries in one kernel, keys in the other.
struct Block {
  int64_t row;     // of the batch: the sequence's first
  int64_t table;   // the sequence's first entry in the page table
  int32_t length;  // rows of the sequence
  int32_t block;
};

template <class T>
struct Args {
  const T* q;
  const T* out;
  const float* lse;
  const T* dout;
  T* dq;
  T* dk;
  T* dv;
  float* delta;  // [T, H]
  const std::byte* pages;
  const int32_t* table;
  const Block* blocks;
  HeadLayout layout;
  int64_t rows;  // T * H
  int heads;
  int kv_heads;
  int width;
  float scale;
  float scale2;
  bool vector;
};

// A warp per row and head.
template <class T>
__global__ void __launch_bounds__(kThreads) delta_kernel(Args<T> args) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (row >= args.rows) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float sum = 0.0f;
  for (int d = lane; d < args.width; d += 32) {
    sum = fmaf(to_float(args.dout[row * args.width + d]), to_float(args.out[row * args.width + d]),
               sum);
  }
  sum = warp_sum(sum);
  if (lane == 0) args.delta[row] = sum;
}

// Turns scores into p, and dp (dout·v) into ds. In terms of the tile's
// columns: visible(half, column) says whether the row sees it; stat(half, column) gives lse *
// log2(e) and delta of the query.
struct Stat {
  float lse2;
  float delta;
};
template <int kTiles, class Visible, class StatOf>
__device__ inline void score_gradients(float (&p)[kTiles][4], float (&ds)[kTiles][4], float scale2,
                                       Visible visible, StatOf stat_of) {
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int half = i / 2;
      const int at = n * 8 + column + i % 2;
      const bool seen = visible(half, at);
      const Stat stat = stat_of(half, at);
      const float weight = seen ? exp2f(fmaf(p[n][i], scale2, -stat.lse2)) : 0.0f;
      p[n][i] = weight;
      ds[n][i] = seen ? weight * (ds[n][i] - stat.delta) : 0.0f;
    }
  }
}

// Two rows of a lane's sums, times scale, to rows of a tensor; row_of(half) may be null.
template <int kW, class T, class RowOf>
__device__ inline void write_rows(const Args<T>& args, const float (&sum)[kW / 8][4], float scale,
                                  RowOf row_of) {
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    T* to = row_of(half);
    if (to == nullptr) continue;
#pragma unroll
    for (int n = 0; n < kW / 8; ++n) {
      const float v[2] = {sum[n][2 * half] * scale, sum[n][2 * half + 1] * scale};
      if (args.vector) {
        store<true>(to, n * 8 + column, args.width, v);
      } else {
        store<false>(to, n * 8 + column, args.width, v);
      }
    }
  }
}

// Warps of a block of threads: fewer where shared memory holds no more rows.
template <class T, int kW>
inline constexpr int kWarps = sizeof(T) == 4 && kW == kMostHeadWidth ? 2 : 4;

// ---- dq ----

template <class T, int kW>
struct QueryGeometry {
  static constexpr int kBlockThreads = kWarps<T, kW> * 32;
  static constexpr int kRows = kWarps<T, kW> * kRun;
  static constexpr int kSlices = kKeys / kRows;
  using Blocks = KvBlocks<T, kW, kBlockThreads>;
  using Factor = Weights<T, kStep<T> / 8>;
  static constexpr int kImage = Image<T, kRows>::size(kW);
  static int shared_bytes() {
    return 2 * kImage + kWarps<T, kW> * Factor::kShared + Blocks::shared_bytes(false);
  }
};

template <class T, int kW>
__global__ void __launch_bounds__(kWarps<T, kW> * 32, 1) queries_kernel(Args<T> args) {
  using G = QueryGeometry<T, kW>;
  const Block block = args.blocks[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y) / G::kSlices;
  const int kv_head = head / (args.heads / args.kv_heads);
  const int first = block.block * kKeys + static_cast<int>(blockIdx.y) % G::kSlices * G::kRows;
  if (first >= block.length) return;
  auto* memory = reinterpret_cast<std::byte*>(dynamic_shared);
  const Image<T, G::kRows> q{memory};
  const Image<T, G::kRows> dout{memory + G::kImage};
  const int warp = static_cast<int>(threadIdx.x) / 32;
  std::byte* staging = memory + 2 * G::kImage + warp * G::Factor::kShared;
  memory += 2 * G::kImage + kWarps<T, kW> * G::Factor::kShared;
  const typename G::Blocks blocks{memory, args.pages + kv_head * args.layout.head_bytes,
                                  args.table + block.table, args.layout, block.block + 1};
  const auto row_at = [&](int position) { return (block.row + position) * args.heads + head; };
  const auto load_rows = [&](Image<T, G::kRows> image, const T* from) {
    load_image<kW, G::kBlockThreads>(image, args.width, args.vector, from, [&](int r) {
      return first + r < block.length ? from + row_at(first + r) * args.width : nullptr;
    });
  };
  load_rows(q, args.q);
  load_rows(dout, args.dout);
  commit_copies();
  blocks.open(0);
  const int position = first + warp * kRun + static_cast<int>(threadIdx.x) % 32 / 4;
  Stat stat[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (position + 8 * half >= block.length) continue;
    const int64_t at = row_at(position + 8 * half);
    stat[half] = {args.lse[at] * kLog2E, args.delta[at]};
  }
  float sum[kW / 8][4] = {};
#pragma unroll 1
  for (int b = 0; b <= block.block; ++b) {
    const auto keys = blocks.get(b);
#pragma unroll 1
    for (int step = 0; step < kKeys; step += kStep<T>) {
      float p[kStep<T> / 8][4] = {}, ds[kStep<T> / 8][4] = {};
      dot_rows<kW>(q, warp * kRun, keys, step, p);
      dot_rows<kW>(dout, warp * kRun, blocks.values(keys), step, ds);
      const int key = b * kKeys + step;
      score_gradients(
          p, ds, args.scale2,
          [&](int half, int column) {
            return key + column <= position + 8 * half && position + 8 * half < block.length;
          },
          [&](int half, int) { return stat[half]; });
      add_weighted<kW>(typename G::Factor(ds, staging), keys, step, sum);
    }
  }
  write_rows<kW>(args, sum, args.scale, [&](int half) -> T* {
    const int at = position + 8 * half;
    return at < block.length ? args.dq + row_at(at) * args.width : nullptr;
  });
}

// ---- dk, dv ----

// In heads of 256 registers hold the sums of one gradient at a time: two passes.
enum class Gradients { kBoth, kKeys, kValues };

template <class T, int kW>
struct KeyGeometry {
  static constexpr int kBlockThreads = kWarps<T, kW> * 32;
  static constexpr int kRows = kWarps<T, kW> * kRun;
  static constexpr int kSlices = kKeys / kRows;
  static constexpr int kStages = sizeof(T) == 4 && kW == kMostHeadWidth ? 1 : 2;
  using Factor = Weights<T, kStep<T> / 8>;
  static constexpr int kHalf = Image<T, kKeys>::size(kW);
  static constexpr int kImage = Image<T, kStep<T>>::size(kW);
  static constexpr int kStats = kStep<T> * static_cast<int>(sizeof(Stat));
  static constexpr int kStage = 2 * kImage + kStats;
  static int shared_bytes() {
    return 2 * kHalf + kStages * kStage + kWarps<T, kW> * Factor::kShared;
  }
};

// The queries that see a block of keys, a step at a time: heads of the group, then positions.
template <class T, int kW>
struct Queries {
  using G = KeyGeometry<T, kW>;
  const Args<T>& args;
  const Block& block;
  std::byte* memory;
  int head;   // the first of the group
  int first;  // step of the sequence's queries
  int steps;  // of a head

  __device__ int position(int i) const { return (first + i % steps) * kStep<T>; }

  __device__ void start(int i) const {
    std::byte* stage = memory + i % G::kStages * G::kStage;
    const int begin = position(i);
    const auto row_at = [&](int r) {
      return (block.row + begin + r) * args.heads + head + i / steps;
    };
    const auto load_rows = [&](std::byte* to, const T* from) {
      load_image<kW, G::kBlockThreads>(
          Image<T, kStep<T>>{to}, args.width, args.vector, from, [&](int r) {
            return begin + r < block.length ? from + row_at(r) * args.width : nullptr;
          });
    };
    load_rows(stage, args.q);
    load_rows(stage + G::kImage, args.dout);
    commit_copies();
    const int r = static_cast<int>(threadIdx.x);
    if (r < kStep<T>) {
      const bool inside = begin + r < block.length;
      reinterpret_cast<Stat*>(stage + 2 * G::kImage)[r] =
          inside ? Stat{args.lse[row_at(r)] * kLog2E, args.delta[row_at(r)]} : Stat{};
    }
  }

  // As KvBlocks::get: the queries, behind them dout, behind it their Stats.
  __device__ std::byte* get(int i, int count) const {
    if constexpr (G::kStages == 1) {
      __syncthreads();
      start(i);
    }
    wait_copies<0>();
    __syncthreads();
    if constexpr (G::kStages == 2) {
      if (i + 1 < count) start(i + 1);
    }
    return memory + i % G::kStages * G::kStage;
  }
};

template <class T, int kW, Gradients kWhich>
__global__ void __launch_bounds__(kWarps<T, kW> * 32, 1) keys_kernel(Args<T> args) {
  using G = KeyGeometry<T, kW>;
  constexpr bool kDk = kWhich != Gradients::kValues;
  constexpr bool kDv = kWhich != Gradients::kKeys;
  const Block block = args.blocks[blockIdx.x];
  const int kv_head = static_cast<int>(blockIdx.y) / G::kSlices;
  const int slice = static_cast<int>(blockIdx.y) % G::kSlices * G::kRows;
  if (block.block * kKeys + slice >= block.length) return;
  auto* memory = reinterpret_cast<std::byte*>(dynamic_shared);
  const Image<T, kKeys> keys{memory};
  const Image<T, kKeys> values{memory + G::kHalf};
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int own = slice + warp * kRun;  // the warp's first key in the block
  std::byte* staging = memory + 2 * G::kHalf + G::kStages * G::kStage + warp * G::Factor::kShared;
  // One block of keys, all the way through.
  using Blocks = KvBlocks<T, kW, G::kBlockThreads>;
  const Blocks blocks{memory, args.pages + kv_head * args.layout.head_bytes,
                      args.table + block.table, args.layout, 0};
  blocks.open_one(block.block);
  const int group = args.heads / args.kv_heads;
  const int first = block.block * kKeys / kStep<T>;
  const int steps = (block.length + kStep<T> - 1) / kStep<T> - first;
  const Queries<T, kW> queries{args, block, memory + 2 * G::kHalf, kv_head * group, first, steps};
  if constexpr (G::kStages == 2) queries.start(0);
  const int key = block.block * kKeys + own + static_cast<int>(threadIdx.x) % 32 / 4;
  float dk[kDk ? kW / 8 : 1][4] = {}, dv[kDv ? kW / 8 : 1][4] = {};
  const int count = group * steps;
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    std::byte* stage = queries.get(i, count);
    const Image<T, kStep<T>> q{stage};
    const Image<T, kStep<T>> dout{stage + G::kImage};
    const auto* stats = reinterpret_cast<const Stat*>(stage + 2 * G::kImage);
    float p[kStep<T> / 8][4] = {}, ds[kStep<T> / 8][4] = {};
    dot_rows<kW>(keys, own, q, 0, p);
    if constexpr (kDk) dot_rows<kW>(values, own, dout, 0, ds);
    const int begin = queries.position(i);
    score_gradients(
        p, ds, args.scale2,
        [&](int half, int column) {
          return key + 8 * half <= begin + column && begin + column < block.length;
        },
        [&](int, int column) { return stats[column]; });
    if constexpr (kDv) add_weighted<kW>(typename G::Factor(p, staging), dout, 0, dv);
    if constexpr (kDk) add_weighted<kW>(typename G::Factor(ds, staging), q, 0, dk);
  }
  const auto row_of = [&](T* to, int half) -> T* {
    if (key + 8 * half >= block.length) return nullptr;
    return to + ((block.row + key + 8 * half) * args.kv_heads + kv_head) * args.width;
  };
  if constexpr (kDk) {
    write_rows<kW>(args, dk, args.scale, [&](int half) { return row_of(args.dk, half); });
  }
  if constexpr (kDv) {
    write_rows<kW>(args, dv, 1.0f, [&](int half) { return row_of(args.dv, half); });
  }
}

// ---- on the host ----

// Blocks of all sequences; `late`: those with the most blocks before them first, else those with
// the most after them.
std::vector<Block> blocks_of(const Sequences& sequences, int64_t max_pages, bool late) {
  std::vector<Block> blocks;
  for (int64_t s = 0; s < sequences.count(); ++s) {
    const int64_t length = sequences.length(s);
    for (int64_t b = 0; b < kv_pages_for(length); ++b) {
      blocks.push_back({sequences.offsets[static_cast<size_t>(s)], s * max_pages,
                        static_cast<int32_t>(length), static_cast<int32_t>(b)});
    }
  }
  const auto work = [late](const Block& each) {
    return late ? int64_t{each.block} + 1 : kv_pages_for(each.length) - each.block;
  };
  std::stable_sort(blocks.begin(), blocks.end(),
                   [&](const Block& a, const Block& b) { return work(a) > work(b); });
  return blocks;
}

template <class T, int kW, Gradients kWhich>
void launch_keys(Context& context, const Args<T>& args, int64_t blocks) {
  using G = KeyGeometry<T, kW>;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(args.kv_heads * G::kSlices));
  launch_kernel(context, "attention_backward", {grid, G::kBlockThreads, G::shared_bytes()},
                &keys_kernel<T, kW, kWhich>, args);
}

template <class T, int kW>
void launch(Context& context, Args<T> args, const Sequences& sequences, int64_t max_pages) {
  using G = QueryGeometry<T, kW>;
  const std::vector<Block> queries = blocks_of(sequences, max_pages, true);
  const std::vector<Block> keys = blocks_of(sequences, max_pages, false);
  args.blocks = on_device(context, std::span<const Block>(queries));
  const dim3 grid(static_cast<unsigned>(queries.size()),
                  static_cast<unsigned>(args.heads * G::kSlices));
  launch_kernel(context, "attention_backward", {grid, G::kBlockThreads, G::shared_bytes()},
                &queries_kernel<T, kW>, args);
  args.blocks = on_device(context, std::span<const Block>(keys));
  const auto count = static_cast<int64_t>(keys.size());
  if constexpr (kW == kMostHeadWidth) {
    launch_keys<T, kW, Gradients::kKeys>(context, args, count);
    launch_keys<T, kW, Gradients::kValues>(context, args, count);
  } else {
    launch_keys<T, kW, Gradients::kBoth>(context, args, count);
  }
}

template <class T>
void backward_typed(Context& context, AnyView q, const KvView& kv, const Sequences& sequences,
                    float scale, AnyView out, AnyView lse, AnyView dout, AnyView dq, AnyView dk,
                    AnyView dv) {
  ScratchScope scope(context.scratch());
  const int64_t rows = q.dim(0) * q.dim(1);
  const Args<T> args{
      .q = static_cast<const T*>(q.data),
      .out = static_cast<const T*>(out.data),
      .lse = static_cast<const float*>(lse.data),
      .dout = static_cast<const T*>(dout.data),
      .dq = static_cast<T*>(dq.data),
      .dk = static_cast<T*>(dk.data),
      .dv = static_cast<T*>(dv.data),
      .delta = scratch_of<float>(context, rows),
      .pages = static_cast<const std::byte*>(kv.pages),
      .table = on_device(context, kv.table),
      .layout = head_layout<T>(kv.dtype, kv.kv_heads, kv.head_width),
      .rows = rows,
      .heads = static_cast<int>(q.dim(1)),
      .kv_heads = static_cast<int>(kv.kv_heads),
      .width = static_cast<int>(kv.head_width),
      .scale = scale,
      .scale2 = scale * kLog2E,
      .vector = vectored<T>(2, kv.head_width, {q.data, dout.data, dq.data, dk.data, dv.data})};
  with_head_width("attention_backward", kv.head_width, [&](auto padded) {
    launch_kernel(context, "attention_backward", {blocks_for(rows, kThreads / 32), kThreads},
                  &delta_kernel<T>, args);
    launch<T, decltype(padded)::value>(context, args, sequences, kv.max_pages);
  });
}

void backward(Context& context, AnyView q_THA, const KvView& kv, const Sequences& sequences,
              float scale, AnyView out_THA, AnyView lse_TH, AnyView dout_THA, AnyView dq_THA,
              AnyView dk_TGA, AnyView dv_TGA) {
  require_aligned_pages("attention_backward", kv);
  kv.dtype == DType::kF32 ? backward_typed<float>(context, q_THA, kv, sequences, scale, out_THA,
                                                  lse_TH, dout_THA, dq_THA, dk_TGA, dv_TGA)
                          : backward_typed<bf16>(context, q_THA, kv, sequences, scale, out_THA,
                                                 lse_TH, dout_THA, dq_THA, dk_TGA, dv_TGA);
}

}  // namespace

template <>
const AttentionBackwardKernels cuda::Table<AttentionBackwardKernels>::value = {&backward};

}  // namespace degu
