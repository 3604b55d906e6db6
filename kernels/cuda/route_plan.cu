// A stable counting sort of (token, slot) pairs by expert, without a word to the host.
//
// The pairs are cut into pieces of a few warps' steps; with a capacity, pieces end where capacity
// groups do. Each piece counts its experts; a scan along the pieces of each expert, then one over
// the experts, gives the row where each piece's first pair of an expert goes; each piece places its
// pairs in order. Only integers are added, so nothing depends on who comes first.
#include "kernels/cuda/route_plan.cuh"

#include <algorithm>
#include <vector>

#include "kernels/cuda/launch.cuh"

namespace degu::cuda {
namespace {

constexpr int64_t kPieceSlots = 256;
constexpr int kWarps = 4;                                    // pieces or experts per block
constexpr int64_t kMostExperts = (48 << 10) / (4 * kWarps);  // one counter each in shared memory

struct Args {
  const int32_t* expert;  // [slots]
  const int32_t* piece;   // [pieces + 1] first slots; null: multiples of kPieceSlots
  const int32_t*
      group_piece;   // [pieces] first piece of the piece's capacity group; null: no capacity
  int32_t* before;   // [experts, pieces] pairs of the expert in earlier pieces
  int32_t* start;    // the same among those kept; is `before` without a capacity
  int32_t* total;    // [experts] kept
  int64_t* offsets;  // [experts + 1]
  int32_t* row;      // [slots]
  int32_t* token;    // [rows]
  int64_t* dropped;
  int32_t capacity;
  int32_t slots;
  int32_t pieces;
  int32_t experts;
  int32_t top_k;
};

__device__ inline int32_t piece_begin(const Args& args, int32_t p) {
  if (args.piece != nullptr) return args.piece[p];
  return min(args.slots, p * static_cast<int32_t>(kPieceSlots));
}

// Sum of the lanes before this one; `total` becomes that of all.
__device__ inline int32_t lanes_before(int32_t value, int32_t& total) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int32_t sum = value;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int32_t other = __shfl_up_sync(kAllLanes, sum, offset);
    if (lane >= offset) sum += other;
  }
  total = __shfl_sync(kAllLanes, sum, 31);
  return sum - value;
}

__global__ void count_kernel(Args args) {
  auto* counters = reinterpret_cast<int32_t*>(dynamic_shared);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto p = static_cast<int32_t>(blockIdx.x * kWarps + threadIdx.x / 32);
  if (p >= args.pieces) return;  // whole warps, and no block-wide barrier below
  int32_t* count = counters + static_cast<int>(threadIdx.x) / 32 * args.experts;
  for (int32_t e = lane; e < args.experts; e += 32) count[e] = 0;
  __syncwarp();
  const int32_t end = piece_begin(args, p + 1);
  for (int32_t i = piece_begin(args, p) + lane; i < end; i += 32) {
    const int32_t e = args.expert[i];
    require(e >= 0 && e < args.experts);
    atomicAdd(count + e, 1);
  }
  __syncwarp();
  for (int32_t e = lane; e < args.experts; e += 32) {
    args.start[static_cast<int64_t>(e) * args.pieces + p] = count[e];
  }
}

// One warp per expert: `start` holds counts and becomes their sums over earlier pieces.
__global__ void scan_kernel(Args args) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto e = static_cast<int32_t>(blockIdx.x * kWarps + threadIdx.x / 32);
  if (e >= args.experts) return;
  int32_t* start = args.start + static_cast<int64_t>(e) * args.pieces;
  int32_t* before = args.before + static_cast<int64_t>(e) * args.pieces;
  const bool limited = args.group_piece != nullptr;
  int32_t running = 0, total = 0;
  for (int32_t base = 0; base < args.pieces; base += 32) {
    const int32_t p = base + lane;
    const int32_t count = p < args.pieces ? start[p] : 0;
    const int32_t earlier = lanes_before(count, total);
    if (p < args.pieces) before[p] = running + earlier;
    running += total;
  }
  if (limited) {
    __syncwarp();  // lanes read what others wrote
    running = 0;
    for (int32_t base = 0; base < args.pieces; base += 32) {
      const int32_t p = base + lane;
      int32_t kept = 0;
      if (p < args.pieces) {
        const int32_t used = before[p] - before[args.group_piece[p]];
        kept = min(used + start[p], args.capacity) - min(used, args.capacity);
      }
      const int32_t earlier = lanes_before(kept, total);
      if (p < args.pieces) start[p] = running + earlier;
      running += total;
    }
  }
  if (lane == 0) args.total[e] = running;
}

__global__ void offsets_kernel(Args args) {
  const int lane = static_cast<int>(threadIdx.x);
  int32_t running = 0, total = 0;
  for (int32_t base = 0; base < args.experts; base += 32) {
    const int32_t e = base + lane;
    const int32_t earlier = lanes_before(e < args.experts ? args.total[e] : 0, total);
    if (e < args.experts) args.offsets[e] = running + earlier;
    running += total;
  }
  if (lane == 0) {
    args.offsets[args.experts] = running;
    *args.dropped = args.slots - running;
  }
}

__global__ void place_kernel(Args args) {
  auto* counters = reinterpret_cast<int32_t*>(dynamic_shared);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto p = static_cast<int32_t>(blockIdx.x * kWarps + threadIdx.x / 32);
  if (p >= args.pieces) return;
  int32_t* seen = counters + static_cast<int>(threadIdx.x) / 32 * args.experts;
  for (int32_t e = lane; e < args.experts; e += 32) seen[e] = 0;
  __syncwarp();
  const bool limited = args.group_piece != nullptr;
  const int32_t end = piece_begin(args, p + 1);
  for (int32_t base = piece_begin(args, p); base < end; base += 32) {
    const int32_t i = base + lane;
    const int32_t e = i < end ? args.expert[i] : -1;
    const unsigned same = __match_any_sync(kAllLanes, e);
    const int rank = __popc(same & ((1u << lane) - 1u));
    const int32_t nth = e >= 0 ? seen[e] + rank : 0;  // of the piece's pairs of this expert
    __syncwarp();
    if (e >= 0 && rank == 0) seen[e] += __popc(same);
    __syncwarp();
    if (e < 0) continue;  // past the end: the last step of the loop
    const int64_t at = static_cast<int64_t>(e) * args.pieces + p;
    bool kept = true;
    if (limited) {
      const int64_t first = static_cast<int64_t>(e) * args.pieces + args.group_piece[p];
      kept = args.before[at] - args.before[first] + nth < args.capacity;
    }
    const auto row = static_cast<int32_t>(args.offsets[e]) + args.start[at] + nth;
    args.row[i] = kept ? row : -1;
    if (kept) args.token[row] = i / args.top_k;
  }
}

struct UnitArgs {
  const int64_t* offsets;  // [experts + 1]
  const int32_t* token;    // [rows]
  const int64_t* units;    // [count + 1] first tokens
  int64_t* out;            // [experts * count + 1]
  int32_t experts;
  int32_t count;
};

// A thread per (expert, unit): the first row of the expert whose token is not before the unit's.
__global__ void unit_kernel(UnitArgs args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t last = static_cast<int64_t>(args.experts) * args.count;
  if (i > last) return;
  if (i == last) {
    args.out[i] = args.offsets[args.experts];
    return;
  }
  const int64_t e = i / args.count;
  const int64_t token = args.units[i % args.count];
  int64_t low = args.offsets[e], high = args.offsets[e + 1];
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (args.token[middle] < token) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  args.out[i] = low;
}

// Pieces that end where capacity groups do.
struct Pieces {
  std::vector<int32_t> begin;
  std::vector<int32_t> first_of_group;
};

Pieces cut_groups(std::span<const int64_t> group_offsets, int64_t top_k) {
  Pieces cut;
  for (size_t g = 0; g + 1 < group_offsets.size(); ++g) {
    const auto first = static_cast<int32_t>(cut.begin.size());
    const int64_t end = group_offsets[g + 1] * top_k;
    for (int64_t i = group_offsets[g] * top_k; i < end; i += kPieceSlots) {
      cut.begin.push_back(static_cast<int32_t>(i));
      cut.first_of_group.push_back(first);
    }
  }
  cut.begin.push_back(static_cast<int32_t>(group_offsets.back() * top_k));
  return cut;
}

}  // namespace

void route_plan(Context& context, AnyView expert_TK, int64_t experts, int64_t capacity,
                std::span<const int64_t> group_offsets, int64_t* offsets_E, AnyView row_TK,
                AnyView token_R, int64_t* dropped) {
  constexpr const char* kOp = "route_plan";
  constexpr int64_t kMostSlots = int64_t{1} << 30;
  const int64_t slots = expert_TK.elements();
  if (experts > kMostExperts) CudaState::refuse(kOp, "experts", experts, kMostExperts);
  if (slots > kMostSlots) CudaState::refuse(kOp, "T * K", slots, kMostSlots);
  const bool limited = capacity > 0;
  ScratchScope scope(context.scratch());
  Args args{.expert = static_cast<const int32_t*>(expert_TK.data),
            .total = scratch_of<int32_t>(context, experts),
            .offsets = offsets_E,
            .row = static_cast<int32_t*>(row_TK.data),
            .token = static_cast<int32_t*>(token_R.data),
            .dropped = dropped,
            .capacity = static_cast<int32_t>(std::min(capacity, slots)),
            .slots = static_cast<int32_t>(slots),
            .pieces = static_cast<int32_t>((slots + kPieceSlots - 1) / kPieceSlots),
            .experts = static_cast<int32_t>(experts),
            .top_k = static_cast<int32_t>(expert_TK.dim(1))};
  if (limited) {
    const Pieces cut = cut_groups(group_offsets, expert_TK.dim(1));
    args.pieces = static_cast<int32_t>(cut.first_of_group.size());
    args.piece = on_device(context, std::span<const int32_t>(cut.begin));
    args.group_piece = on_device(context, std::span<const int32_t>(cut.first_of_group));
  }
  args.start = scratch_of<int32_t>(context, experts * args.pieces);
  args.before = limited ? scratch_of<int32_t>(context, experts * args.pieces) : args.start;

  CudaState& state = state_of(context);
  const unsigned piece_blocks = blocks_for(args.pieces, kWarps);
  const auto counters = static_cast<int>(experts * kWarps * int64_t{sizeof(int32_t)});
  if (token_R.bytes() > 0) state.zero(token_R.data, token_R.bytes());
  if (args.pieces > 0) {
    launch_kernel(context, kOp, {piece_blocks, kWarps * 32, counters}, &count_kernel, args);
  }
  launch_kernel(context, kOp, {blocks_for(experts, kWarps), kWarps * 32}, &scan_kernel, args);
  launch_kernel(context, kOp, {1, 32}, &offsets_kernel, args);
  if (args.pieces > 0) {
    launch_kernel(context, kOp, {piece_blocks, kWarps * 32, counters}, &place_kernel, args);
  }
}

void unit_offsets(Context& context, AnyView offsets_E, AnyView token_R,
                  std::span<const int64_t> units, AnyView offsets_EU) {
  ScratchScope scope(context.scratch());
  const UnitArgs args{.offsets = static_cast<const int64_t*>(offsets_E.data),
                      .token = static_cast<const int32_t*>(token_R.data),
                      .units = on_device(context, units),
                      .out = static_cast<int64_t*>(offsets_EU.data),
                      .experts = static_cast<int32_t>(offsets_E.elements() - 1),
                      .count = static_cast<int32_t>(units.size() - 1)};
  launch_kernel(context, "unit_offsets", {blocks_for(offsets_EU.elements(), kThreads), kThreads},
                &unit_kernel, args);
}

}  // namespace degu::cuda
