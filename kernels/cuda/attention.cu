// Forward attention, one kernel for training, prefill and decode.
//
// A tile is the queries of one sequence in one block of 64 positions, with all query heads of one
// key/value head: row r is query r / (H / G), head r % (H / G). Each warp has 16 rows of it and
// passes over the blocks of keys 0 … that of the queries, by an online softmax. Every row's chain
// is the same whichever rows lie beside it and however many blocks of threads share the work:
//   - within a split of 8 blocks (512 keys, anchored at position 0) blocks follow in order;
//   - splits are joined in order, by one formula (`Running::join`), in the tile's registers when
//   one
//     warp passes over all of them, by join_kernel when each split is a tile of its own.
#include <algorithm>
#include <vector>

#include "kernels/cuda/attention_store.cuh"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/table.h"

namespace degu {
namespace {

using namespace degu::cuda;

constexpr int kSplitBlocks = 8;
constexpr float kLowest = -1e30f;
constexpr float kLog2E = 1.4426950408889634f;
constexpr double kLn2 = 0.69314718055994531;

struct Tile {
  int64_t row;       // of the batch: its first query
  int64_t table;     // the sequence's first entry in the page table
  int64_t partial;   // where its rows' partial results are; -1: the tile's results are whole
  int32_t position;  // of its first query in the sequence
  int32_t count;     // queries
  int32_t begin;     // blocks of keys
  int32_t end;
};

// What the splits of one tile become.
struct Join {
  int64_t row;
  int64_t partial;  // of the first split; the others follow, `stride` after each other
  int64_t stride;
  int32_t count;
  int32_t splits;
};

template <class T>
struct Args {
  const T* q;
  T* out;
  float* lse;  // may be null
  const std::byte* pages;
  const int32_t* table;
  const Tile* tiles;
  float* partial;      // [rows of all partial tiles, G], A numbers each
  float* partial_sum;  // the same, base and sum each
  HeadLayout layout;
  int heads;
  int kv_heads;
  int width;
  int slices;  // blocks of threads for a tile and key/value head
  float scale2;
  bool vector;
};

// Factors that join a later state to an earlier one; both bases become the larger one.
struct Factors {
  float before, after;
  __device__ Factors(float& base, float other) {
    const float top = fmaxf(base, other);
    before = exp2f(base - top);
    after = exp2f(other - top);
    base = top;
  }
};
__device__ inline float joined(float before, float after, const Factors& f) {
  return fmaf(after, f.after, before * f.before);
}

// A row's output and logarithm from its sums. + 0 turns -0 into +0: that masked keys were added as
// zeros leaves no trace.
__device__ inline float finished(float sum, float inverse) {
  return sum * inverse + 0.0f;
}
__device__ inline float log_of(float base, float sum) {
  return static_cast<float>((static_cast<double>(base) + log2(static_cast<double>(sum))) * kLn2);
}

// Two rows of a warp's tile, `low` and eight below, as a lane holds them: base, the largest score
// so far in units of log2; sum, of 2^(score - base); out, the same sum weighted with values.
template <int kW>
struct Running {
  float base[2];
  float sum[2];
  float out[kW / 8][4];

  __device__ void clear() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      base[half] = kLowest;
      sum[half] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < kW / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) out[n][e] = 0.0f;
    }
  }

  // Turns a block's scores into weights and moves base, sum and out on to the new base.
  __device__ void weigh(float (&score)[kKeys / 8][4], float scale2) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = fmaxf(score[0][2 * half], score[0][2 * half + 1]);
#pragma unroll
      for (int n = 1; n < kKeys / 8; ++n) {
        top = fmaxf(top, fmaxf(score[n][2 * half], score[n][2 * half + 1]));
      }
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
      const float after = fmaxf(base[half], top * scale2);
      const float factor = exp2f(base[half] - after);
      base[half] = after;
      sum[half] = sum[half] * factor;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          score[n][e] = exp2f(fmaf(score[n][e], scale2, -after));
          sum[half] = sum[half] + score[n][e];
        }
      }
#pragma unroll
      for (int n = 0; n < kW / 8; ++n) {
        out[n][2 * half] = out[n][2 * half] * factor;
        out[n][2 * half + 1] = out[n][2 * half + 1] * factor;
      }
    }
  }

  // Appends a split.
  __device__ void join(const Running& split) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // The lanes that share a row hold a sum each.
      float more = split.sum[half];
      more = more + __shfl_xor_sync(kAllLanes, more, 1);
      more = more + __shfl_xor_sync(kAllLanes, more, 2);
      const Factors f(base[half], split.base[half]);
      sum[half] = joined(sum[half], more, f);
#pragma unroll
      for (int n = 0; n < kW / 8; ++n) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          out[n][e] = joined(out[n][e], split.out[n][e], f);
        }
      }
    }
  }
};

// Writes row `half` of a lane: to the output, or as a partial result.
template <int kW, class T>
__device__ inline void write_row(const Args<T>& args, const Tile& tile, const Running<kW>& total,
                                 int half, int kv_head, int row) {
  const int group = args.heads / args.kv_heads;
  const int rows = tile.count * group;
  if (row >= rows) return;
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
  if (tile.partial >= 0) {
    const int64_t at = tile.partial * args.kv_heads + static_cast<int64_t>(kv_head) * rows + row;
#pragma unroll
    for (int n = 0; n < kW / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int d = n * 8 + column + e;
        if (d < args.width) args.partial[at * args.width + d] = total.out[n][2 * half + e];
      }
    }
    if (column == 0) {
      args.partial_sum[2 * at] = total.base[half];
      args.partial_sum[2 * at + 1] = total.sum[half];
    }
    return;
  }
  const int64_t at = (tile.row + row / group) * args.heads + kv_head * group + row % group;
  T* out = args.out + at * args.width;
  const float inverse = 1.0f / total.sum[half];
#pragma unroll
  for (int n = 0; n < kW / 8; ++n) {
    const float v[2] = {finished(total.out[n][2 * half], inverse),
                        finished(total.out[n][2 * half + 1], inverse)};
    if (args.vector) {
      store<true>(out, n * 8 + column, args.width, v);
    } else {
      store<false>(out, n * 8 + column, args.width, v);
    }
  }
  if (column == 0 && args.lse != nullptr) {
    args.lse[at] = log_of(total.base[half], total.sum[half]);
  }
}

template <class T, int kW, int kWarps>
struct Geometry {
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kRows = kWarps * kRun;
  using Blocks = KvBlocks<T, kW, kThreads>;
  using Keys = Weights<T, kKeys / 8>;
  static int shared_bytes(bool quantized) {
    return Image<T, kRows>::size(kW) + kWarps * Keys::kShared + Blocks::shared_bytes(quantized);
  }
};

template <class T, int kW, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, 1) forward_kernel(Args<T> args) {
  using S = Geometry<T, kW, kWarps>;
  const Tile tile = args.tiles[blockIdx.x];
  const int group = args.heads / args.kv_heads;
  const int kv_head = static_cast<int>(blockIdx.y) / args.slices;
  const int first = static_cast<int>(blockIdx.y) % args.slices * S::kRows;
  const int rows = tile.count * group;
  if (first >= rows) return;
  auto* memory = reinterpret_cast<std::byte*>(dynamic_shared);
  const Image<T, S::kRows> q{memory};
  const int warp = static_cast<int>(threadIdx.x) / 32;
  memory += Image<T, S::kRows>::size(kW);
  std::byte* staging = memory + warp * S::Keys::kShared;
  memory += kWarps * S::Keys::kShared;
  const typename S::Blocks blocks{memory, args.pages + kv_head * args.layout.head_bytes,
                                  args.table + tile.table, args.layout, tile.end};
  load_image<kW, S::kThreads>(q, args.width, args.vector, args.q, [&](int r) -> const T* {
    const int row = first + r;
    if (row >= rows) return nullptr;
    const int64_t at = (tile.row + row / group) * args.heads + kv_head * group + row % group;
    return args.q + at * args.width;
  });
  commit_copies();
  blocks.open(tile.begin);
  const int lane_row = first + warp * kRun + static_cast<int>(threadIdx.x) % 32 / 4;
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
  const bool active = first + warp * kRun < rows;
  Running<kW> split, total;
  total.clear();
  split.clear();
#pragma unroll 1
  for (int block = tile.begin; block < tile.end; ++block) {
    const auto keys = blocks.get(block);
    if (!active) continue;
    float score[kKeys / 8][4] = {};
    dot_rows<kW>(q, warp * kRun, keys, 0, score);
    if ((block + 1) * kKeys > tile.position) {  // the queries' own block: a row sees its past
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int last = tile.position + (lane_row + 8 * half) / group - block * kKeys;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            if (n * 8 + column + e > last) score[n][2 * half + e] = -INFINITY;
          }
        }
      }
    }
    split.weigh(score, args.scale2);
    add_weighted<kW>(typename S::Keys(score, staging), blocks.values(keys), 0, split.out);
    if (block % kSplitBlocks == kSplitBlocks - 1 || block + 1 == tile.end) {
      total.join(split);
      split.clear();
    }
  }
  if (!active) return;
  write_row(args, tile, total, 0, kv_head, lane_row);
  write_row(args, tile, total, 1, kv_head, lane_row + 8);
}

constexpr int kJoinThreads = 128;

// A warp joins the splits of a row at a time.
template <class T>
__global__ void __launch_bounds__(kJoinThreads) join_kernel(Args<T> args, const Join* joins) {
  constexpr int kEach = kMostHeadWidth / 32;
  const Join join = joins[blockIdx.x];
  const auto kv_head = static_cast<int>(blockIdx.y);
  const int group = args.heads / args.kv_heads;
  const int rows = join.count * group;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int row = static_cast<int>(threadIdx.x) / 32; row < rows; row += kJoinThreads / 32) {
    float base = kLowest;
    float sum = 0.0f;
    float out[kEach] = {};
    for (int split = 0; split < join.splits; ++split) {
      const int64_t at = (join.partial + split * join.stride) * args.kv_heads +
                         static_cast<int64_t>(kv_head) * rows + row;
      const Factors f(base, args.partial_sum[2 * at]);
      sum = joined(sum, args.partial_sum[2 * at + 1], f);
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const int d = lane + j * 32;
        if (d < args.width) out[j] = joined(out[j], args.partial[at * args.width + d], f);
      }
    }
    const int64_t at = (join.row + row / group) * args.heads + kv_head * group + row % group;
    const float inverse = 1.0f / sum;
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int d = lane + j * 32;
      if (d < args.width) assign(args.out[at * args.width + d], finished(out[j], inverse));
    }
    if (lane == 0 && args.lse != nullptr) args.lse[at] = log_of(base, sum);
  }
}

// Tiles of sequences that only the device knows: one for each part and split, empty where there is
// none. splits: 1 when whole tiles are wanted, else the most that a sequence can have.
struct Slots {
  Resident of;
  int splits;
  int64_t stride;  // rows of a partial tile, at most

  int64_t parts() const { return int64_t{of.count} * of.parts; }
};
__global__ void __launch_bounds__(kThreads)
    plan_kernel(Slots slots, int64_t total, Tile* tiles, Join* joins) {
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (slot >= total) return;
  const auto index = static_cast<int>(slot / slots.splits);
  const auto split = static_cast<int>(slot % slots.splits);
  const Part part(slots.of, index);
  const int blocks = part.block + 1;
  const int splits = slots.splits == 1 ? 1 : (blocks + kSplitBlocks - 1) / kSplitBlocks;
  Tile tile{};
  if (split < splits) {
    tile = {.row = part.row,
            .table = part.sequence * slots.of.max_pages,
            .partial = splits == 1 ? -1 : slot * slots.stride,
            .position = static_cast<int32_t>(part.position),
            .count = part.count,
            .begin = split * kSplitBlocks,
            .end = splits == 1 ? blocks : min(blocks, (split + 1) * kSplitBlocks)};
  }
  tiles[slot] = tile;
  if (split == 0 && slots.splits > 1) {
    joins[index] = {part.row, slot * slots.stride, slots.stride, splits == 1 ? 0 : part.count,
                    splits};
  }
}

// ---- on the host ----

constexpr int kNarrowRows = kRun;  // one warp: decode
constexpr int kWideRows = 4 * kRun;

struct Plan {
  std::vector<Tile> narrow, wide;
  std::vector<Join> joins;
  int64_t partial_rows = 0;
};

// All queries' tiles, those with the most keys first.
std::vector<Tile> whole_tiles(const Sequences& sequences, int64_t max_pages) {
  std::vector<Tile> tiles;
  each_block_piece(sequences, [&](int64_t s, int64_t row, int64_t position, int64_t count) {
    tiles.push_back({.row = row,
                     .table = s * max_pages,
                     .partial = -1,
                     .position = static_cast<int32_t>(position),
                     .count = static_cast<int32_t>(count),
                     .begin = 0,
                     .end = static_cast<int32_t>(position / kKvPageKeys + 1)});
  });
  std::stable_sort(tiles.begin(), tiles.end(),
                   [](const Tile& a, const Tile& b) { return a.end > b.end; });
  return tiles;
}

// Each split becomes a tile of its own when whole tiles would leave multiprocessors idle. This
// changes who computes what, and no result.
Plan plan_of(const Sequences& sequences, const KvView& kv, int64_t group, int multiprocessors) {
  Plan plan;
  const std::vector<Tile> tiles = whole_tiles(sequences, kv.max_pages);
  int64_t blocks = 0;
  for (const Tile& tile : tiles) {
    const int64_t rows = tile.count * group;
    blocks += rows <= kNarrowRows ? kv.kv_heads : (rows + kWideRows - 1) / kWideRows * kv.kv_heads;
  }
  const bool split = blocks < 2 * int64_t{multiprocessors};
  for (Tile tile : tiles) {
    const int64_t rows = tile.count * group;
    std::vector<Tile>& to = rows <= kNarrowRows ? plan.narrow : plan.wide;
    const int splits = (tile.end + kSplitBlocks - 1) / kSplitBlocks;
    if (!split || splits == 1) {
      to.push_back(tile);
      continue;
    }
    plan.joins.push_back({tile.row, plan.partial_rows, rows, tile.count, splits});
    const int32_t end = tile.end;
    for (int part = 0; part < splits; ++part) {
      tile.begin = part * kSplitBlocks;
      tile.end = std::min(end, tile.begin + kSplitBlocks);
      tile.partial = plan.partial_rows;
      plan.partial_rows += rows;
      to.push_back(tile);
    }
  }
  return plan;
}

// Tiles in the device's memory, and the most queries that one has.
struct TileList {
  const Tile* tiles = nullptr;
  int64_t count = 0;
  int64_t queries = 0;
};

TileList upload(Context& context, const std::vector<Tile>& tiles) {
  int64_t queries = 0;
  for (const Tile& tile : tiles) queries = std::max<int64_t>(queries, tile.count);
  return {on_device(context, std::span<const Tile>(tiles)), static_cast<int64_t>(tiles.size()),
          queries};
}

// All that one call computes.
struct Work {
  TileList narrow, wide;
  const Join* joins = nullptr;
  int64_t join_count = 0;
  int64_t partial_rows = 0;
};

Work planned_here(Context& context, const Sequences& sequences, const KvView& kv, int64_t group) {
  const Plan plan = plan_of(sequences, kv, group, state_of(context).multiprocessors());
  return {.narrow = upload(context, plan.narrow),
          .wide = upload(context, plan.wide),
          .joins = on_device(context, std::span<const Join>(plan.joins)),
          .join_count = static_cast<int64_t>(plan.joins.size()),
          .partial_rows = plan.partial_rows};
}

// The same from sequences on the device, without a word from the host.
Work planned_there(Context& context, const Resident& resident, int64_t kv_heads, int64_t queries,
                   int64_t group) {
  queries = std::min(queries, kKvPageKeys);
  const int64_t rows = queries * group;
  Slots slots{.of = resident, .splits = 1, .stride = rows};
  const int64_t blocks = slots.parts() * kv_heads * ((rows + kWideRows - 1) / kWideRows);
  if (blocks < 2 * int64_t{state_of(context).multiprocessors()}) {
    slots.splits = static_cast<int>((resident.max_pages + kSplitBlocks - 1) / kSplitBlocks);
  }
  const int64_t total = slots.parts() * slots.splits;
  auto* tiles = scratch_of<Tile>(context, total);
  Work work;
  (rows <= kNarrowRows ? work.narrow : work.wide) = {tiles, total, queries};
  Join* joins = nullptr;
  if (slots.splits > 1) {
    work.partial_rows = total * rows;
    work.join_count = slots.parts();
    work.joins = joins = scratch_of<Join>(context, work.join_count);
  }
  launch_kernel(context, "attention", {blocks_for(total, kThreads), kThreads}, &plan_kernel, slots,
                total, tiles, joins);
  return work;
}

template <class T, int kW, int kWarps>
void launch(Context& context, Args<T> args, const TileList& list) {
  if (list.count == 0) return;
  using S = Geometry<T, kW, kWarps>;
  const int64_t rows = list.queries * (args.heads / args.kv_heads);
  args.slices = static_cast<int>((rows + S::kRows - 1) / S::kRows);
  args.tiles = list.tiles;
  const int shared = S::shared_bytes(args.layout.quantized);
  const dim3 grid(static_cast<unsigned>(list.count),
                  static_cast<unsigned>(args.kv_heads * args.slices));
  launch_kernel(context, "attention", {grid, S::kThreads, shared}, &forward_kernel<T, kW, kWarps>,
                args);
}

template <class T>
void forward_typed(Context& context, AnyView q, const KvView& kv, const Sequences& sequences,
                   float scale, AnyView out, AnyView lse) {
  ScratchScope scope(context.scratch());
  const int64_t group = q.dim(1) / kv.kv_heads;
  const Resident resident = resident_of(sequences, kv);
  const bool here = resident.offsets == nullptr;
  const Work work = here ? planned_here(context, sequences, kv, group)
                         : planned_there(context, resident, kv.kv_heads, longest(sequences), group);
  const int64_t partials = work.partial_rows * kv.kv_heads;
  const Args<T> args{.q = static_cast<const T*>(q.data),
                     .out = static_cast<T*>(out.data),
                     .lse = static_cast<float*>(lse.data),
                     .pages = static_cast<const std::byte*>(kv.pages),
                     .table = here ? on_device(context, kv.table) : kv.device_table,
                     .partial = scratch_of<float>(context, partials * kv.head_width),
                     .partial_sum = scratch_of<float>(context, partials * 2),
                     .layout = head_layout<T>(kv.dtype, kv.kv_heads, kv.head_width),
                     .heads = static_cast<int>(q.dim(1)),
                     .kv_heads = static_cast<int>(kv.kv_heads),
                     .width = static_cast<int>(kv.head_width),
                     .scale2 = scale * kLog2E,
                     .vector = vectored<T>(2, kv.head_width, {q.data, out.data})};
  with_head_width("attention", kv.head_width, [&](auto padded) {
    constexpr int kW = decltype(padded)::value;
    // In fp32 four warps' rows of the widest heads do not fit beside the keys.
    constexpr int kWarps = sizeof(T) == 4 && kW == kMostHeadWidth ? 2 : 4;
    launch<T, kW, 1>(context, args, work.narrow);
    launch<T, kW, kWarps>(context, args, work.wide);
  });
  if (work.join_count == 0) return;
  const dim3 grid(static_cast<unsigned>(work.join_count), static_cast<unsigned>(kv.kv_heads));
  launch_kernel(context, "attention", {grid, kJoinThreads}, &join_kernel<T>, args, work.joins);
}

void forward(Context& context, AnyView q_THA, const KvView& kv, const Sequences& sequences,
             float scale, AnyView out_THA, AnyView lse_TH) {
  require_aligned_pages("attention", kv);
  q_THA.dtype == DType::kF32
      ? forward_typed<float>(context, q_THA, kv, sequences, scale, out_THA, lse_TH)
      : forward_typed<bf16>(context, q_THA, kv, sequences, scale, out_THA, lse_TH);
}

}  // namespace

template <>
const AttentionKernels cuda::Table<AttentionKernels>::value = {&attention_page_bytes,
                                                               &attention_store, &forward};

}  // namespace degu
