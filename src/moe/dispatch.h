// Tokens travel to their experts and back.
//
// On the token side a rank's T tokens become R = T * K rows sorted by expert
// (kernels/api/permute.h). Experts are spread over the expert-parallel group in contiguous runs, so
// these rows are also sorted by the rank that owns the expert, and one all-to-all with real counts
// moves them. With a placement (moe/expert_placement.h) "expert" here means the slot it lies in. On
// the expert side rows are ordered by (expert, source rank, unit, token): what a
// unit contributes to a weight gradient is the same rows in the same order on every layout.
//
// The expert side has memory for `headroom` times the rows that even loads bring. When some rank's
// experts get more, the rows travel in several rounds through the same memory. What one rank sends
// to one expert stays together, so products and gradients keep their bits.
#pragma once

#include <span>
#include <vector>

#include "comm/communicator.h"
#include "kernels/api/rows.h"
#include "tensor/context.h"

namespace degu {

// One exchange: all rows of a pass, or a part of them.
struct DispatchRound {
  // token side: rows [first_sent, first_sent + sent_rows), by rank of the group
  int64_t first_sent = 0;
  int64_t sent_rows = 0;
  std::vector<int64_t> send_rows;
  // expert side
  int64_t rows = 0;
  std::vector<int64_t> recv_rows;       // by rank of the group
  std::vector<int64_t> received_PeU;    // rows by source rank, expert here and unit
  std::vector<int64_t> expert_offsets;  // [experts here + 1]
  std::vector<int64_t> unit_offsets;    // UnitSegments of the experts here
};

struct DispatchState {
  // token side: rows sorted by round, then by expert
  AnyView row_TK;     // int32: row of each slot, -1 dropped
  AnyView token_R;    // int32: token of each row
  AnyView offsets_E;  // int64: first row of each expert; of one round only
  // The host was not told how many rows an expert has: of an accelerator with all experts, from
  // which nothing is dropped, or of a device that only plans. Then expert_offsets and unit_offsets
  // are upper bounds.
  bool resident = false;
  int64_t dropped = 0;
  int64_t units = 1;  // per slot
  std::vector<DispatchRound> rounds;
  // expert side, of the round that `begin` was called for last; unused with one rank
  AnyView order_R;  // int32: received row of each expert-side row
  AnyView place_R;  // int32: its inverse
  // In which rows travelled between ranks since `plan` began, the wait for slower ranks included.
  mutable double exchange_seconds = 0;

  // Of a pass that cannot have several: one rank, or memory for the worst case.
  const DispatchRound& only_round() const;
  RowGroups groups(const DispatchRound& round) const {
    return {.offsets = round.expert_offsets,
            .device_offsets = resident ? static_cast<const int64_t*>(offsets_E.data) : nullptr};
  }
};

// How the experts of a model lie on ranks.
struct ExpertSpread {
  Communicator* group = nullptr;  // the expert-parallel group; null or one rank: all are here
  // Each source rank's units keep a slot of their own in weight gradients (reproducible training),
  // else all rows are one segment.
  bool unit_slots = false;
  double headroom = 0;  // see above, at least 1; 0: memory for the worst case, never several rounds
};

class Dispatch {
 public:
  // `slot_E`: where each expert lies; empty: expert e in slot e. ConfigError unless the group's
  // ranks divide the experts.
  Dispatch(const ExpertSpread& spread, int64_t experts, int64_t top_k,
           std::span<const int32_t> slot_E = {});

  int ranks() const { return ranks_; }
  int64_t experts_here() const { return experts_ / ranks_; }
  int64_t slots() const { return unit_slots_ ? ranks_ : 1; }
  // The rows of one round for which the expert side has memory when each rank brings `tokens`.
  int64_t most_rows(int64_t tokens) const;

  DispatchState take(Arena& arena, int64_t tokens) const;

  // Decides where every row goes, and in which round; ranks tell each other how many to expect.
  // `units` are this rank's token rows (one group, one slot). capacity 0: dropless. On an
  // accelerator the host waits for the counts once, and not at all when all experts are here and
  // nothing is dropped.
  void plan(Context& context, AnyView expert_TK, int64_t capacity,
            std::span<const int64_t> capacity_offsets, const UnitSegments& units,
            DispatchState& state) const;

  // The rows of each expert by slot and unit, for gradients. What is in scratch memory lives as
  // long as the caller's ScratchScope.
  UnitSegments segments(Context& context, const UnitSegments& units, const DispatchState& state,
                        const DispatchRound& round) const;

  // Before rows of a round travel, in either direction: sets order_R and place_R.
  void begin(Context& context, const DispatchState& state, const DispatchRound& round) const;
  // A round's token-side rows to expert-side rows, and back. With one rank both are the same rows:
  // the caller passes the same memory twice and nothing happens.
  void to_experts(Context& context, AnyView sent_RD, const DispatchState& state,
                  const DispatchRound& round, AnyView expert_RD) const;
  void to_tokens(Context& context, AnyView expert_RD, const DispatchState& state,
                 const DispatchRound& round, AnyView sent_RD) const;

 private:
  // expert_TK with each expert replaced by its place in `place_E`, in scratch memory; itself when
  // that is empty.
  AnyView placed(Context& context, AnyView expert_TK, std::span<const int32_t> place_E) const;
  // Where the sent rows of each expert that come from each unit begin, in scratch memory.
  AnyView offsets_by_unit(Context& context, const UnitSegments& units,
                          const DispatchState& state) const;
  void plan_resident(int64_t sent, int64_t received, DispatchState& state) const;
  // sent_EU of every rank of the group, in rank order.
  std::vector<int64_t> gather_counts(Context& context, std::vector<int64_t>& sent_EU,
                                     const DispatchState& state) const;
  // The round in which each rank's rows for each expert travel, [P, E].
  std::vector<int> assign_rounds(std::span<const int64_t> sent_PEU, int64_t most_rows,
                                 int64_t units) const;
  DispatchRound make_round(int index, std::span<const int64_t> sent_PEU,
                           std::span<const int> round_PE, int64_t units) const;

  Communicator* group_;
  int ranks_;
  int rank_;
  int64_t experts_;
  int64_t top_k_;
  bool unit_slots_;
  double headroom_;
  std::vector<int32_t> slot_E_;
};

}  // namespace degu
