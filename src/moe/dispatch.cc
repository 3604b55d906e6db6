#include "moe/dispatch.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

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

// all_to_all_rows, its time added to `seconds`.
void exchange(Communicator& group, Context& context, AnyView send, Counts send_rows, AnyView recv,
              Counts recv_rows, double& seconds) {
  const Timer timer;
  group.all_to_all_rows(context, send, send_rows, recv, recv_rows).wait();
  seconds += timer.seconds();
}

}  // namespace

const DispatchRound& DispatchState::only_round() const {
  DEGU_DCHECK(rounds.size() == 1);
  return rounds.front();
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
  const OnHost experts(context, expert_TK);
  const OnHost places = OnHost::unfilled(context, place_TK);
  const View<const int32_t> expert = experts.as<const int32_t>();
  const View<int32_t> place = places.as<int32_t>();
  for (int64_t i = 0; i < expert.elements(); ++i) place[i] = place_E[at(expert[i])];
  places.put_back();
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
                                const DispatchState& state, const DispatchRound& round) const {
  UnitSegments out{.offsets = round.unit_offsets,
                   .groups = experts_here(),
                   .slots = slots(),
                   .units = state.units};
  if (state.resident) {
    out.device_offsets = static_cast<const int64_t*>(offsets_by_unit(context, units, state).data);
  }
  return out;
}

// Every row is sent and kept; where an expert's rows lie only the device knows.
void Dispatch::plan_resident(int64_t sent, int64_t received, DispatchState& state) const {
  state.dropped = 0;
  state.rounds.resize(1);
  DispatchRound& round = state.rounds.front();
  round.sent_rows = sent;
  round.rows = received;
  round.send_rows.assign(at(ranks_), 0);
  round.send_rows[0] = sent;
  round.recv_rows.assign(at(ranks_), 0);
  round.recv_rows[0] = received;
  round.expert_offsets.assign(at(experts_here() + 1), received);
  round.expert_offsets[0] = 0;
  round.unit_offsets.assign(at(experts_here() * slots() * state.units + 1), received);
  round.unit_offsets[0] = 0;
}

std::vector<int64_t> Dispatch::gather_counts(Context& context, std::vector<int64_t>& sent_EU,
                                             const DispatchState& state) const {
  state.exchange_seconds = 0;
  if (ranks_ == 1) return sent_EU;
  const auto each = static_cast<int64_t>(sent_EU.size());
  std::vector<int64_t> sent_PEU(at(ranks_ * each));
  const Timer timer;
  group_
      ->all_gather(context, View<int64_t>(sent_EU.data(), {each}),
                   View<int64_t>(sent_PEU.data(), {ranks_ * each}))
      .wait();
  state.exchange_seconds += timer.seconds();
  return sent_PEU;
}

// Every rank comes to the same answer. An owner's rounds are filled in order of (expert, source).
std::vector<int> Dispatch::assign_rounds(std::span<const int64_t> sent_PEU, int64_t most_rows,
                                         int64_t units) const {
  std::vector<int> round_PE(at(ranks_ * experts_), 0);
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
        round_PE[at(p * experts_ + e)] = round;
      }
    }
  }
  return round_PE;
}

// What this rank sends and gets in one round; first_sent is left to the caller.
DispatchRound Dispatch::make_round(int index, std::span<const int64_t> sent_PEU,
                                   std::span<const int> round_PE, int64_t units) const {
  const int64_t here = experts_here();
  DispatchRound round;
  round.send_rows.assign(at(ranks_), 0);
  round.recv_rows.assign(at(ranks_), 0);
  round.received_PeU.assign(at(ranks_ * here * units), 0);
  for (int64_t e = 0; e < experts_; ++e) {
    if (round_PE[at(rank_ * experts_ + e)] != index) continue;
    const int64_t n = sum(sent_PEU.subspan(at((rank_ * experts_ + e) * units), at(units)));
    round.send_rows[at(e / here)] += n;
    round.sent_rows += n;
  }
  for (int64_t e = 0; e < here; ++e) {
    round.expert_offsets.push_back(round.rows);
    for (int64_t p = 0; p < ranks_; ++p) {
      const int64_t cell = p * experts_ + rank_ * here + e;
      const bool travels = round_PE[at(cell)] == index;
      for (int64_t u = 0; u < units; ++u) {
        if (unit_slots_ || (p == 0 && u == 0)) round.unit_offsets.push_back(round.rows);
        const int64_t n = travels ? sent_PEU[at(cell * units + u)] : 0;
        round.received_PeU[at((p * here + e) * units + u)] = n;
        round.recv_rows[at(p)] += n;
        round.rows += n;
      }
    }
  }
  round.expert_offsets.push_back(round.rows);
  round.unit_offsets.push_back(round.rows);
  return round;
}

void Dispatch::plan(Context& context, AnyView expert_TK, int64_t capacity,
                    std::span<const int64_t> capacity_offsets, const UnitSegments& units,
                    DispatchState& state) const {
  const ScratchScope scope(context.scratch());
  const AnyView dropped = context.scratch().take(DType::kI64, {1});
  const auto sort = [&](std::span<const int32_t> place_E) {
    route_plan(context, placed(context, expert_TK, place_E), experts_, capacity, capacity_offsets,
               state.offsets_E, state.row_TK.rows(0, expert_TK.dim(0)), state.token_R, dropped);
  };
  sort(slot_E_);
  state.units = unit_slots_ ? units.units : 1;
  const bool whole = ranks_ == 1 && capacity == 0;
  state.resident =
      context.device() == DeviceType::kPlan || (context.device() == DeviceType::kCuda && whole);
  const int64_t most = ranks_ == 1 ? expert_TK.elements() : state.order_R.elements();
  if (state.resident) return plan_resident(expert_TK.elements(), most, state);

  std::vector<int64_t> sent_EU(at(experts_ * state.units));
  {
    const OnHost offsets(context, offsets_by_unit(context, units, state));
    const View<const int64_t> begin = offsets.as<const int64_t>();
    for (size_t i = 0; i < sent_EU.size(); ++i) {
      sent_EU[i] = begin[static_cast<int64_t>(i) + 1] - begin[static_cast<int64_t>(i)];
    }
  }
  state.dropped = expert_TK.elements() - sum(sent_EU);
  const std::vector<int64_t> sent_PEU = gather_counts(context, sent_EU, state);
  const std::vector<int> round_PE = assign_rounds(sent_PEU, most, state.units);
  const int rounds = 1 + *std::max_element(round_PE.begin(), round_PE.end());
  state.rounds.clear();
  int64_t first_sent = 0;
  for (int i = 0; i < rounds; ++i) {
    state.rounds.push_back(make_round(i, sent_PEU, round_PE, state.units));
    state.rounds.back().first_sent = first_sent;
    first_sent += state.rounds.back().sent_rows;
  }
  if (rounds == 1) return;
  // Rows of one round become neighbours: experts are sorted by the round of this rank's rows.
  const std::span<const int> mine = std::span(round_PE).subspan(at(rank_ * experts_), at(experts_));
  std::vector<int32_t> by_round(at(experts_));
  std::iota(by_round.begin(), by_round.end(), 0);
  std::stable_sort(by_round.begin(), by_round.end(),
                   [&](int32_t a, int32_t b) { return mine[at(a)] < mine[at(b)]; });
  std::vector<int32_t> place_of_slot(at(experts_));
  for (size_t i = 0; i < by_round.size(); ++i) {
    place_of_slot[at(by_round[i])] = static_cast<int32_t>(i);
  }
  std::vector<int32_t> place_E = place_of_slot;
  for (size_t e = 0; e < slot_E_.size(); ++e) place_E[e] = place_of_slot[at(slot_E_[e])];
  sort(place_E);
}

// The permutation between the order of arrival, (source, expert, unit), and that of the experts,
// (expert, source, unit).
void Dispatch::begin(Context& context, const DispatchState& state,
                     const DispatchRound& round) const {
  if (ranks_ == 1 || state.resident) return;
  const int64_t here = experts_here();
  const int64_t units = state.units;
  const std::vector<int64_t>& counts = round.received_PeU;
  std::vector<int64_t> arrival(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), arrival.begin() + 1);
  const OnHost orders = OnHost::unfilled(context, state.order_R.rows(0, round.rows));
  const OnHost places = OnHost::unfilled(context, state.place_R.rows(0, round.rows));
  const View<int32_t> order = orders.as<int32_t>();
  const View<int32_t> place = places.as<int32_t>();
  int64_t row = 0;
  for (int64_t e = 0; e < here; ++e) {
    for (int64_t p = 0; p < ranks_; ++p) {
      for (int64_t u = 0; u < units; ++u) {
        const size_t from = at((p * here + e) * units + u);
        for (int64_t i = 0; i < counts[from]; ++i) {
          order[row + i] = static_cast<int32_t>(arrival[from] + i);
          place[arrival[from] + i] = static_cast<int32_t>(row + i);
        }
        row += counts[from];
      }
    }
  }
  orders.put_back();
  places.put_back();
}

void Dispatch::to_experts(Context& context, AnyView sent_RD, const DispatchState& state,
                          const DispatchRound& round, AnyView expert_RD) const {
  if (ranks_ == 1) {
    DEGU_DCHECK(sent_RD.data == expert_RD.data);
    return;
  }
  const ScratchScope scope(context.scratch());
  const AnyView arrived =
      context.scratch().take(sent_RD.dtype, {std::max<int64_t>(round.rows, 1), sent_RD.dim(1)});
  exchange(*group_, context, sent_RD, round.send_rows, arrived, round.recv_rows,
           state.exchange_seconds);
  gather_rows(context, arrived, state.order_R.rows(0, round.rows), expert_RD.rows(0, round.rows));
}

void Dispatch::to_tokens(Context& context, AnyView expert_RD, const DispatchState& state,
                         const DispatchRound& round, AnyView sent_RD) const {
  if (ranks_ == 1) {
    DEGU_DCHECK(sent_RD.data == expert_RD.data);
    return;
  }
  const ScratchScope scope(context.scratch());
  const AnyView leaving =
      context.scratch().take(expert_RD.dtype, {std::max<int64_t>(round.rows, 1), expert_RD.dim(1)});
  gather_rows(context, expert_RD, state.place_R.rows(0, round.rows), leaving.rows(0, round.rows));
  exchange(*group_, context, leaving, round.recv_rows, sent_RD, round.send_rows,
           state.exchange_seconds);
}

}  // namespace degu
