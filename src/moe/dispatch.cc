#include "moe/dispatch.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <set>
#include <utility>

#include "base/timer.h"
#include "kernels/api/permute.h"
#include "tensor/device.h"

namespace degu {
namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

int64_t sum(std::span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

// Runs `part`, its time added to `seconds`.
template <class Part>
auto timed(double& seconds, const Part& part) {
  struct Addition {
    ~Addition() { seconds += timer.seconds(); }
    double& seconds;
    Timer timer;
  };
  const Addition addition{seconds, {}};
  return part();
}

}  // namespace

const DispatchChunk& DispatchState::only_chunk() const {
  DEGU_DCHECK(rounds.size() == 1 && rounds.front().chunks.size() == 1);
  return rounds.front().chunks.front();
}

Dispatch::Dispatch(const ExpertSpread& spread, int64_t experts, int64_t top_k,
                   std::span<const int32_t> slot_E)
    : group_(spread.group),
      ranks_(spread.group == nullptr ? 1 : spread.group->size()),
      rank_(spread.group == nullptr ? 0 : spread.group->rank()),
      experts_(experts),
      top_k_(top_k),
      unit_slots_(spread.unit_slots),
      headroom_(spread.headroom),
      slot_E_(slot_E.begin(), slot_E.end()) {
  if (experts_ % ranks_ != 0) {
    throw ConfigError(
        "{} experts cannot be spread evenly over {} ranks; choose cluster.expert_parallel "
        "as a divisor of model.moe.experts",
        experts_, ranks_);
  }
  set_chunks(spread.chunks);
}

void Dispatch::set_chunks(int64_t chunks) {
  chunks_ = ranks_ == 1 ? 1 : chunks;
  DEGU_DCHECK(chunks_ >= 1 && chunks_ <= std::max<int64_t>(1, experts_here()));
  place_of_slot_.clear();
  if (chunks_ == 1) return;
  std::vector<int> chunk_E;
  for (int64_t slot = 0; slot < experts_; ++slot) chunk_E.push_back(chunk_of(slot));
  place_of_slot_ = places_by_turn(chunk_E);
}

int Dispatch::chunk_of(int64_t slot) const {
  return static_cast<int>(slot % experts_here() * chunks_ / experts_here());
}

std::vector<int32_t> Dispatch::places_by_turn(std::span<const int> turn_E) {
  std::vector<int32_t> by_turn(turn_E.size());
  std::iota(by_turn.begin(), by_turn.end(), 0);
  std::stable_sort(by_turn.begin(), by_turn.end(),
                   [&](int32_t a, int32_t b) { return turn_E[at(a)] < turn_E[at(b)]; });
  std::vector<int32_t> places(turn_E.size());
  for (size_t i = 0; i < by_turn.size(); ++i) places[at(by_turn[i])] = static_cast<int32_t>(i);
  return places;
}

std::vector<int32_t> Dispatch::place_of_experts(std::span<const int32_t> place_of_slot) const {
  if (place_of_slot.empty()) return slot_E_;
  std::vector<int32_t> place_E(place_of_slot.begin(), place_of_slot.end());
  for (size_t e = 0; e < slot_E_.size(); ++e) place_E[e] = place_of_slot[at(slot_E_[e])];
  return place_E;
}

int64_t Dispatch::most_rows(int64_t tokens) const {
  const int64_t worst = ranks_ * tokens * std::min(top_k_, experts_here());
  if (headroom_ == 0) return worst;
  // At least what one rank can send to one expert: these rows are not parted.
  const double even = headroom_ * static_cast<double>(tokens * top_k_);
  return std::min(worst, std::max(tokens, static_cast<int64_t>(std::ceil(even))));
}

DispatchState Dispatch::take(Arena& arena, int64_t tokens) const {
  DispatchState state;
  state.row_TK = arena.take(DType::kI32, {tokens, top_k_});
  state.token_R = arena.take(DType::kI32, {tokens * top_k_});
  state.offsets_E = arena.take(DType::kI64, {experts_ + 1});
  if (ranks_ > 1) {
    state.order_R = arena.take(DType::kI32, {most_rows(tokens)});
    state.place_R = arena.take(DType::kI32, {most_rows(tokens)});
  }
  return state;
}

AnyView Dispatch::placed(Context& context, AnyView expert_TK,
                         std::span<const int32_t> place_E) const {
  if (place_E.empty()) return expert_TK;
  const AnyView place_TK = context.scratch().take(DType::kI32, expert_TK.shape);
  renumber(context, expert_TK, place_E, place_TK);
  return place_TK;
}

AnyView Dispatch::offsets_by_unit(Context& context, const UnitSegments& units,
                                  const DispatchState& state) const {
  const AnyView offsets_EU = context.scratch().take(DType::kI64, {experts_ * state.units + 1});
  const std::array<int64_t, 2> whole = {units.offsets.front(), units.offsets.back()};
  unit_offsets(context, state.offsets_E, state.token_R,
               unit_slots_ ? units.offsets : std::span<const int64_t>(whole), offsets_EU);
  return offsets_EU;
}

UnitSegments Dispatch::segments(Context& context, const UnitSegments& units,
                                const DispatchState& state, const DispatchChunk& chunk) const {
  UnitSegments out{.offsets = chunk.unit_offsets,
                   .groups = experts_here(),
                   .slots = slots(),
                   .units = state.units};
  if (state.resident) {
    out.device_offsets = static_cast<const int64_t*>(offsets_by_unit(context, units, state).data);
  }
  return out;
}

// Every row is sent and kept; where an expert's rows lie only the device knows. Of several chunks
// the first has all rows, which takes the most memory.
void Dispatch::plan_resident(int64_t sent, int64_t received, DispatchState& state) const {
  state.dropped = 0;
  state.rounds.assign(1, {.sent_rows = sent, .rows = received, .chunks = {}});
  for (int64_t c = 0; c < chunks_; ++c) {
    DispatchChunk chunk{.first_sent = c == 0 ? 0 : sent,
                        .sent_rows = c == 0 ? sent : 0,
                        .first_row = c == 0 ? 0 : received,
                        .rows = c == 0 ? received : 0};
    chunk.send_rows.assign(at(ranks_), 0);
    chunk.send_rows[0] = chunk.sent_rows;
    chunk.recv_rows.assign(at(ranks_), 0);
    chunk.recv_rows[0] = chunk.rows;
    chunk.expert_offsets.assign(at(experts_here() + 1), chunk.rows);
    chunk.expert_offsets[0] = 0;
    chunk.unit_offsets.assign(at(experts_here() * slots() * state.units + 1), chunk.rows);
    chunk.unit_offsets[0] = 0;
    state.rounds.front().chunks.push_back(std::move(chunk));
  }
}

std::vector<int64_t> Dispatch::gather_counts(Context& context, std::vector<int64_t>& sent_EU,
                                             const DispatchState& state) const {
  state.exchange_seconds = 0;
  if (ranks_ == 1) return sent_EU;
  const auto each = static_cast<int64_t>(sent_EU.size());
  std::vector<int64_t> sent_PEU(at(ranks_ * each));
  timed(state.exchange_seconds, [&] {
    group_
        ->all_gather(context, View<int64_t>(sent_EU.data(), {each}),
                     View<int64_t>(sent_PEU.data(), {ranks_ * each}))
        .wait();
  });
  return sent_PEU;
}

// Every rank comes to the same answer. An owner's rounds are filled in order of (expert, source).
std::vector<int> Dispatch::assign_turns(std::span<const int64_t> sent_PEU, int64_t most_rows,
                                        int64_t units) const {
  std::vector<int> turn_PE(at(ranks_ * experts_), 0);
  for (int64_t owner = 0; owner < ranks_; ++owner) {
    int round = 0;
    int64_t rows = 0;
    for (int64_t e = owner * experts_here(); e < (owner + 1) * experts_here(); ++e) {
      for (int64_t p = 0; p < ranks_; ++p) {
        const int64_t n = sum(sent_PEU.subspan(at((p * experts_ + e) * units), at(units)));
        if (rows + n > most_rows) {
          ++round;
          rows = 0;
        }
        rows += n;
        turn_PE[at(p * experts_ + e)] = round * static_cast<int>(chunks_) + chunk_of(e);
      }
    }
  }
  return turn_PE;
}

// What this rank sends and gets in one turn; first_sent and first_row are left to the caller.
DispatchChunk Dispatch::make_chunk(int turn, std::span<const int64_t> sent_PEU,
                                   std::span<const int> turn_PE, int64_t units) const {
  const int64_t here = experts_here();
  DispatchChunk chunk;
  chunk.send_rows.assign(at(ranks_), 0);
  chunk.recv_rows.assign(at(ranks_), 0);
  chunk.received_PeU.assign(at(ranks_ * here * units), 0);
  for (int64_t e = 0; e < experts_; ++e) {
    if (turn_PE[at(rank_ * experts_ + e)] != turn) continue;
    const int64_t n = sum(sent_PEU.subspan(at((rank_ * experts_ + e) * units), at(units)));
    chunk.send_rows[at(e / here)] += n;
    chunk.sent_rows += n;
  }
  for (int64_t e = 0; e < here; ++e) {
    chunk.expert_offsets.push_back(chunk.rows);
    for (int64_t p = 0; p < ranks_; ++p) {
      const int64_t cell = p * experts_ + rank_ * here + e;
      const bool travels = turn_PE[at(cell)] == turn;
      for (int64_t u = 0; u < units; ++u) {
        if (unit_slots_ || (p == 0 && u == 0)) chunk.unit_offsets.push_back(chunk.rows);
        const int64_t n = travels ? sent_PEU[at(cell * units + u)] : 0;
        chunk.received_PeU[at((p * here + e) * units + u)] = n;
        chunk.recv_rows[at(p)] += n;
        chunk.rows += n;
      }
    }
  }
  chunk.expert_offsets.push_back(chunk.rows);
  chunk.unit_offsets.push_back(chunk.rows);
  return chunk;
}

// One chunk for each turn that some rank has, in their order.
std::vector<DispatchRound> Dispatch::make_rounds(std::span<const int64_t> sent_PEU,
                                                 std::span<const int> turn_PE,
                                                 int64_t units) const {
  std::vector<DispatchRound> rounds;
  int64_t first_sent = 0;
  for (const int turn : std::set<int>(turn_PE.begin(), turn_PE.end())) {
    const size_t index = at(turn / chunks_);
    if (index == rounds.size()) rounds.push_back({.first_sent = first_sent, .chunks = {}});
    DispatchRound& round = rounds[index];
    DispatchChunk chunk = make_chunk(turn, sent_PEU, turn_PE, units);
    chunk.first_sent = first_sent;
    chunk.first_row = round.rows;
    first_sent += chunk.sent_rows;
    round.sent_rows += chunk.sent_rows;
    round.rows += chunk.rows;
    round.chunks.push_back(std::move(chunk));
  }
  return rounds;
}

// By slot and unit. The device has `meanwhile` to do while the numbers travel, and the host waits
// for them alone.
std::vector<int64_t> Dispatch::count_sent(Context& context, AnyView offsets_EU,
                                          DispatchState& state,
                                          const std::function<void()>& meanwhile) const {
  if (!state.counts) state.counts = std::make_shared<Downloads>(context);
  state.counts->clear();
  const View<const int64_t> begin = state.counts->add(offsets_EU).as<const int64_t>();
  state.counts->close();
  meanwhile();
  state.counts->wait();
  std::vector<int64_t> sent_EU(at(experts_ * state.units));
  for (size_t i = 0; i < sent_EU.size(); ++i) {
    const size_t e = i / at(state.units);
    const int64_t place = place_of_slot_.empty() ? static_cast<int64_t>(e) : place_of_slot_[e];
    const int64_t from = place * state.units + static_cast<int64_t>(i % at(state.units));
    sent_EU[i] = begin[from + 1] - begin[from];
  }
  return sent_EU;
}

void Dispatch::plan(Context& context, AnyView expert_TK, int64_t capacity,
                    std::span<const int64_t> capacity_offsets, const UnitSegments& units,
                    DispatchState& state, const std::function<void()>& meanwhile) const {
  const ScratchScope scope(context.scratch());
  const AnyView dropped = context.scratch().take(DType::kI64, {1});
  const auto sort = [&](std::span<const int32_t> place_of_slot) {
    const std::vector<int32_t> place_E = place_of_experts(place_of_slot);
    route_plan(context, placed(context, expert_TK, place_E), experts_, capacity, capacity_offsets,
               state.offsets_E, state.row_TK.rows(0, expert_TK.dim(0)), state.token_R, dropped);
  };
  sort(place_of_slot_);
  state.units = unit_slots_ ? units.units : 1;
  const bool whole = ranks_ == 1 && capacity == 0;
  state.resident =
      context.device() == DeviceType::kPlan || (context.device() == DeviceType::kCuda && whole);
  const int64_t most = ranks_ == 1 ? expert_TK.elements() : state.order_R.elements();
  if (state.resident) {
    meanwhile();
    return plan_resident(expert_TK.elements(), most, state);
  }
  std::vector<int64_t> sent_EU =
      count_sent(context, offsets_by_unit(context, units, state), state, meanwhile);
  state.dropped = expert_TK.elements() - sum(sent_EU);
  const std::vector<int64_t> sent_PEU = gather_counts(context, sent_EU, state);
  const std::vector<int> turn_PE = assign_turns(sent_PEU, most, state.units);
  state.rounds = make_rounds(sent_PEU, turn_PE, state.units);
  if (state.rounds.size() == 1) return;
  // Rows of one round become neighbours.
  sort(places_by_turn(std::span(turn_PE).subspan(at(rank_ * experts_), at(experts_))));
}

// The permutation between the order of arrival, (source, expert, unit), and that of the experts,
// (expert, source, unit), of each chunk.
void Dispatch::begin(Context& context, const DispatchState& state,
                     const DispatchRound& round) const {
  if (ranks_ == 1 || state.resident) return;
  for (const DispatchChunk& chunk : round.chunks) {
    interleave_rows(context, chunk.received_PeU, experts_here(), state.units,
                    state.order_R.rows(chunk.first_row, chunk.rows),
                    state.place_R.rows(chunk.first_row, chunk.rows));
  }
}

Work Dispatch::leave_for_experts(Context& context, AnyView sent_RD, const DispatchState& state,
                                 const DispatchChunk& chunk, AnyView passing_RD) const {
  return timed(state.exchange_seconds, [&] {
    return group_->all_to_all_rows(context, sent_RD, chunk.send_rows, passing_RD, chunk.recv_rows);
  });
}

void Dispatch::arrive(Context& context, Work leg, const DispatchState& state,
                      const DispatchChunk& chunk, AnyView passing_RD, AnyView expert_RD) const {
  timed(state.exchange_seconds, [&] { leg.wait(); });
  gather_rows(context, passing_RD, state.order_R.rows(chunk.first_row, chunk.rows), expert_RD);
}

Work Dispatch::leave_for_tokens(Context& context, AnyView expert_RD, const DispatchState& state,
                                const DispatchChunk& chunk, AnyView passing_RD,
                                AnyView answer_RD) const {
  gather_rows(context, expert_RD, state.place_R.rows(chunk.first_row, chunk.rows), passing_RD);
  return timed(state.exchange_seconds, [&] {
    return group_->all_to_all_rows(context, passing_RD, chunk.recv_rows, answer_RD,
                                   chunk.send_rows);
  });
}

void Dispatch::to_experts(Context& context, AnyView sent_RD, const DispatchState& state,
                          const DispatchChunk& chunk, AnyView expert_RD) const {
  if (ranks_ == 1) {
    DEGU_DCHECK(sent_RD.data == expert_RD.data);
    return;
  }
  const ScratchScope scope(context.scratch());
  const AnyView passing = context.scratch().take(sent_RD.dtype, {chunk.rows, sent_RD.dim(1)});
  arrive(context, leave_for_experts(context, sent_RD, state, chunk, passing), state, chunk, passing,
         expert_RD);
}

void Dispatch::to_tokens(Context& context, AnyView expert_RD, const DispatchState& state,
                         const DispatchChunk& chunk, AnyView answer_RD) const {
  if (ranks_ == 1) {
    DEGU_DCHECK(answer_RD.data == expert_RD.data);
    return;
  }
  const ScratchScope scope(context.scratch());
  const AnyView passing = context.scratch().take(expert_RD.dtype, {chunk.rows, expert_RD.dim(1)});
  Work leg = leave_for_tokens(context, expert_RD, state, chunk, passing, answer_RD);
  timed(state.exchange_seconds, [&] { leg.wait(); });
}

void Dispatch::travel(Context& context, const DispatchState& state, const DispatchRound& round,
                      const RoundRows& rows,
                      const std::function<void(const DispatchChunk&)>& compute) const {
  const auto here = [](AnyView view, const DispatchChunk& chunk) {
    return view.rows(chunk.first_row, chunk.rows);
  };
  const auto there = [&](AnyView view, const DispatchChunk& chunk) {
    return view.rows(chunk.first_sent - round.first_sent, chunk.sent_rows);
  };
  if (round.chunks.size() == 1) {
    const DispatchChunk& all = round.chunks.front();
    to_experts(context, there(rows.sent_RD, all), state, all, here(rows.in_RD, all));
    compute(all);
    if (!rows.out_RD) return;
    return to_tokens(context, here(rows.out_RD, all), state, all, there(rows.answer_RD, all));
  }
  const ScratchScope scope(context.scratch());
  const AnyView passing =
      context.scratch().take(rows.sent_RD.dtype, {round.rows, rows.sent_RD.dim(1)});
  const auto leave = [&](size_t i) {
    const DispatchChunk& chunk = round.chunks[i];
    return leave_for_experts(context, there(rows.sent_RD, chunk), state, chunk,
                             here(passing, chunk));
  };
  Work next = leave(0);
  std::vector<Work> answers;
  for (size_t i = 0; i < round.chunks.size(); ++i) {
    const DispatchChunk& chunk = round.chunks[i];
    Work coming = std::exchange(next, {});
    if (i + 1 < round.chunks.size()) next = leave(i + 1);
    arrive(context, std::move(coming), state, chunk, here(passing, chunk), here(rows.in_RD, chunk));
    compute(chunk);
    if (!rows.out_RD) continue;
    // What arrived has been read, so its place is free for the answers.
    answers.push_back(leave_for_tokens(context, here(rows.out_RD, chunk), state, chunk,
                                       here(passing, chunk), there(rows.answer_RD, chunk)));
  }
  timed(state.exchange_seconds, [&] {
    for (Work& answer : answers) answer.wait();
  });
}

}  // namespace degu
