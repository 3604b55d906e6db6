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
// experts get more, the rows travel in several rounds through the same memory. The rows of a round
// travel in chunks: each rank's experts are parted into as many runs, and while the experts of one
// chunk are computed, the next one's rows are on their way to them and the last one's on their way
// back. What one rank sends to one expert stays together, so products and gradients keep their
// bits.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "kernels/api/rows.h"
#include "tensor/context.h"
#include "tensor/device.h"

namespace degu {

// One exchange each way. Rows of the expert side count from first_row, those of the token side from
// first_sent.
struct DispatchChunk {
  // token side: rows by rank of the group
  int64_t first_sent = 0;
  int64_t sent_rows = 0;
  std::vector<int64_t> send_rows;
  // expert side; experts of other chunks have no rows
  int64_t first_row = 0;
  int64_t rows = 0;
  std::vector<int64_t> recv_rows;       // by rank of the group
  std::vector<int64_t> received_PeU;    // rows by source rank, expert here and unit
  std::vector<int64_t> expert_offsets;  // [experts here + 1]
  std::vector<int64_t> unit_offsets;    // UnitSegments of the experts here
};

// What lies in the expert side's memory at once: all rows of a pass, or a part of them.
struct DispatchRound {
  int64_t first_sent = 0;
  int64_t sent_rows = 0;
  int64_t rows = 0;
  std::vector<DispatchChunk> chunks;
};

struct DispatchState {
  // token side: rows sorted by round, then by chunk, then by expert
  AnyView row_TK;     // int32: row of each slot, -1 dropped
  AnyView token_R;    // int32: token of each row
  AnyView offsets_E;  // int64: first row of each expert; of one round of one chunk only
  // The host was not told how many rows an expert has: of an accelerator with all experts, from
  // which nothing is dropped, or of a device that only plans. Then expert_offsets and unit_offsets
  // are upper bounds.
  bool resident = false;
  int64_t dropped = 0;
  int64_t units = 1;  // per slot
  std::vector<DispatchRound> rounds;
  // expert side, of the round that `begin` was called for last; unused with one rank
  std::shared_ptr<Downloads> counts;  // for the host, of `plan`
  AnyView order_R;  // int32: received row of each expert-side row, within its chunk
  AnyView place_R;  // int32: its inverse
  // In which the host waited for rows between ranks since `plan` began, and so for slower ranks.
  mutable double exchange_seconds = 0;

  // Of a pass that has no several: one rank, or memory for the worst case and one chunk.
  const DispatchChunk& only_chunk() const;
  RowGroups groups(const DispatchChunk& chunk) const {
    return {.offsets = chunk.expert_offsets,
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
  int64_t chunks = 1;   // see above, at most the experts of a rank; one rank has one
};

// The memory between which a round's rows travel. With one rank the sides are the same rows: the
// same memory stands for both.
struct RoundRows {
  AnyView sent_RD;    // token side, the round's rows alone: what the experts get
  AnyView in_RD;      // expert side
  AnyView out_RD;     // expert side, may be in_RD: what they answer; null: nothing goes back
  AnyView answer_RD;  // token side as sent_RD, may be it
};

class Dispatch {
 public:
  // `slot_E`: where each expert lies; empty: expert e in slot e. ConfigError unless the group's
  // ranks divide the experts.
  Dispatch(const ExpertSpread& spread, int64_t experts, int64_t top_k,
           std::span<const int32_t> slot_E = {});

  // Between passes: in how many chunks rows travel from now on.
  void set_chunks(int64_t chunks);

  int ranks() const { return ranks_; }
  int64_t experts_here() const { return experts_ / ranks_; }
  int64_t slots() const { return unit_slots_ ? ranks_ : 1; }
  // The rows of one round for which the expert side has memory when each rank brings `tokens`.
  int64_t most_rows(int64_t tokens) const;

  DispatchState take(Arena& arena, int64_t tokens) const;

  // Decides where every row goes, in which round and chunk; ranks tell each other how many to
  // expect. `units` are this rank's token rows (one group, one slot). capacity 0: dropless. On an
  // accelerator the host waits for the counts once, and not at all when all experts are here and
  // nothing is dropped; `meanwhile`, called once, gives the device what it can do beside that wait.
  void plan(
      Context& context, AnyView expert_TK, int64_t capacity,
      std::span<const int64_t> capacity_offsets, const UnitSegments& units, DispatchState& state,
      const std::function<void()>& meanwhile = [] {}) const;

  // The rows of each expert by slot and unit, for gradients. What is in scratch memory lives as
  // long as the caller's ScratchScope.
  UnitSegments segments(Context& context, const UnitSegments& units, const DispatchState& state,
                        const DispatchChunk& chunk) const;

  // Before rows of a round travel, in either direction: sets order_R and place_R.
  void begin(Context& context, const DispatchState& state, const DispatchRound& round) const;
  // A round's rows to the experts and their answers back; `compute` is called for each chunk when
  // its rows are there, and makes its answers. Several chunks take as many rows of scratch memory
  // as there are on the expert side, until the end; one does only while its rows travel.
  void travel(Context& context, const DispatchState& state, const DispatchRound& round,
              const RoundRows& rows,
              const std::function<void(const DispatchChunk&)>& compute) const;
  // The same for one chunk, a leg at a time: its token-side rows to its expert-side rows, and back.
  void to_experts(Context& context, AnyView sent_RD, const DispatchState& state,
                  const DispatchChunk& chunk, AnyView expert_RD) const;
  void to_tokens(Context& context, AnyView expert_RD, const DispatchState& state,
                 const DispatchChunk& chunk, AnyView answer_RD) const;

 private:
  // expert_TK with each expert replaced by its place in `place_E`, in scratch memory; itself when
  // that is empty.
  AnyView placed(Context& context, AnyView expert_TK, std::span<const int32_t> place_E) const;
  // Where the sent rows of each expert that come from each unit begin, in scratch memory.
  AnyView offsets_by_unit(Context& context, const UnitSegments& units,
                          const DispatchState& state) const;
  void plan_resident(int64_t sent, int64_t received, DispatchState& state) const;
  std::vector<int64_t> count_sent(Context& context, AnyView offsets_EU, DispatchState& state,
                                  const std::function<void()>& meanwhile) const;
  // sent_EU of every rank of the group, in rank order.
  std::vector<int64_t> gather_counts(Context& context, std::vector<int64_t>& sent_EU,
                                     const DispatchState& state) const;
  // When each rank's rows for each expert travel, [P, E]: round * chunks + chunk.
  std::vector<int> assign_turns(std::span<const int64_t> sent_PEU, int64_t most_rows,
                                int64_t units) const;
  DispatchChunk make_chunk(int turn, std::span<const int64_t> sent_PEU,
                           std::span<const int> turn_PE, int64_t units) const;
  std::vector<DispatchRound> make_rounds(std::span<const int64_t> sent_PEU,
                                         std::span<const int> turn_PE, int64_t units) const;
  // The chunk of the expert in `slot`, where all rows travel in one round.
  int chunk_of(int64_t slot) const;
  // The place of each slot when slots are sorted by the turn in which this rank's rows for them
  // travel.
  static std::vector<int32_t> places_by_turn(std::span<const int> turn_E);
  // The place of each expert, given its slot's; empty: as numbered.
  std::vector<int32_t> place_of_experts(std::span<const int32_t> place_of_slot) const;
  // The legs of a chunk. `passing_RD`: its rows as they arrive, or leave, by source rank.
  Work leave_for_experts(Context& context, AnyView sent_RD, const DispatchState& state,
                         const DispatchChunk& chunk, AnyView passing_RD) const;
  void arrive(Context& context, Work leg, const DispatchState& state, const DispatchChunk& chunk,
              AnyView passing_RD, AnyView expert_RD) const;
  Work leave_for_tokens(Context& context, AnyView expert_RD, const DispatchState& state,
                        const DispatchChunk& chunk, AnyView passing_RD, AnyView answer_RD) const;

  Communicator* group_;
  int ranks_;
  int rank_;
  int64_t experts_;
  int64_t top_k_;
  bool unit_slots_;
  double headroom_;
  int64_t chunks_ = 1;
  std::vector<int32_t> slot_E_;
  std::vector<int32_t> place_of_slot_;  // by chunk; empty with one
};

}  // namespace degu
