// Tokens travel to their experts and back.
//
// On the token side a rank's T tokens become R = T * K rows sorted by expert
// (kernels/api/permute.h). Experts are spread over the expert-parallel group in contiguous runs, so
// these rows are also sorted by the rank that owns the expert, and one all-to-all with real counts
// moves them. With a placement (moe/expert_placement.h) "expert" here means the slot it lies in. On
// the expert side rows are ordered by (expert, source rank, unit, token): what a
// unit contributes to a weight gradient is the same rows in the same order on every layout.
#pragma once

#include <span>
#include <vector>

#include "comm/communicator.h"
#include "kernels/api/rows.h"
#include "tensor/context.h"

namespace degu {

struct DispatchState {
  // token side
  AnyView row_TK;     // int32: row of each slot, -1 dropped
  AnyView token_R;    // int32: token of each row
  AnyView offsets_E;  // int64: first row of each expert
  // The host was not told how many rows an expert has: of an accelerator with all experts, from
  // which nothing is dropped. Then expert_offsets and unit_offsets are upper bounds.
  bool resident = false;
  int64_t sent_rows = 0;
  int64_t dropped = 0;
  // expert side
  AnyView order_R;  // int32: received row of each expert-side row; unused with one rank
  AnyView place_R;  // int32: its inverse
  std::vector<int64_t> send_rows, recv_rows;  // per rank of the group
  std::vector<int64_t> expert_offsets;        // [experts here + 1]
  std::vector<int64_t> unit_offsets;          // UnitSegments of the experts here
  int64_t rows = 0;                           // on this rank's experts
  int64_t units = 1;                          // per slot
  // In which rows travelled between ranks since `plan` began, the wait for slower ranks included.
  mutable double exchange_seconds = 0;

  RowGroups groups() const {
    return {.offsets = expert_offsets,
            .device_offsets = resident ? static_cast<const int64_t*>(offsets_E.data) : nullptr};
  }
};

class Dispatch {
 public:
  // `group` is the expert-parallel group; null or one rank: all experts are here. With `unit_slots`
  // each source rank's units keep a slot of their own (reproducible training), else all rows are
  // one segment. `slot_E`: where each expert lies; empty: expert e in slot e.
  Dispatch(Communicator* group, int64_t experts, int64_t top_k, bool unit_slots,
           std::span<const int32_t> slot_E = {});

  int ranks() const { return ranks_; }
  int64_t experts_here() const { return experts_ / ranks_; }
  int64_t slots() const { return unit_slots_ ? ranks_ : 1; }
  // The most rows that this rank's experts can receive when each rank brings `tokens`.
  int64_t most_rows(int64_t tokens) const;

  DispatchState take(Arena& arena, int64_t tokens) const;

  // Decides where every row goes and tells the other ranks how many to expect. `units` are this
  // rank's token rows (one group, one slot). capacity 0: dropless. On an accelerator the host waits
  // for the counts once, and not at all when all experts are here and nothing is dropped.
  void plan(Context& context, AnyView expert_TK, int64_t capacity,
            std::span<const int64_t> capacity_offsets, const UnitSegments& units,
            DispatchState& state) const;

  // The rows of each expert by slot and unit, for gradients. What is in scratch memory lives as
  // long as the caller's ScratchScope.
  UnitSegments segments(Context& context, const UnitSegments& units,
                        const DispatchState& state) const;

  // Token-side rows to expert-side rows, and back. With one rank both are the same rows: the caller
  // passes the same memory twice and nothing happens.
  void to_experts(Context& context, AnyView sent_RD, const DispatchState& state,
                  AnyView expert_RD) const;
  void to_tokens(Context& context, AnyView expert_RD, const DispatchState& state,
                 AnyView sent_RD) const;

 private:
  // The slots of a token's experts, in scratch memory; expert_TK itself without a placement.
  AnyView slots_of(Context& context, AnyView expert_TK) const;
  // Where the sent rows of each expert that come from each unit begin, in scratch memory.
  AnyView offsets_by_unit(Context& context, const UnitSegments& units,
                          const DispatchState& state) const;
  void plan_resident(int64_t rows, DispatchState& state) const;
  void order_received(Context& context, const std::vector<int64_t>& counts_PeU,
                      DispatchState& state) const;

  Communicator* group_;
  int ranks_;
  int64_t experts_;
  int64_t top_k_;
  bool unit_slots_;
  std::vector<int32_t> slot_E_;
};

}  // namespace degu
