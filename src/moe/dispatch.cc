#include "moe/dispatch.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "base/timer.h"
#include "kernels/api/permute.h"
#include "tensor/device.h"

namespace degu {
namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

// all_to_all_rows, its time added to `seconds`.
void exchange(Communicator& group, Context& context, AnyView send, Counts send_rows, AnyView recv,
              Counts recv_rows, double& seconds) {
  const Timer timer;
  group.all_to_all_rows(context, send, send_rows, recv, recv_rows).wait();
  seconds += timer.seconds();
}

}  // namespace

Dispatch::Dispatch(Communicator* group, int64_t experts, int64_t top_k, bool unit_slots,
                   std::span<const int32_t> slot_E)
    : group_(group),
      ranks_(group == nullptr ? 1 : group->size()),
      experts_(experts),
      top_k_(top_k),
      unit_slots_(unit_slots),
      slot_E_(slot_E.begin(), slot_E.end()) {
  if (experts_ % ranks_ != 0) {
    throw ConfigError(
        "{} experts cannot be spread evenly over {} ranks; choose cluster.expert_parallel "
        "as a divisor of model.moe.experts",
        experts_, ranks_);
  }
}

int64_t Dispatch::most_rows(int64_t tokens) const {
  return ranks_ * tokens * std::min(top_k_, experts_here());
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
  state.send_rows.resize(at(ranks_));
  state.recv_rows.resize(at(ranks_));
  state.expert_offsets.resize(at(experts_here() + 1));
  return state;
}

AnyView Dispatch::slots_of(Context& context, AnyView expert_TK) const {
  if (slot_E_.empty()) return expert_TK;
  const AnyView slot_TK = context.scratch().take(DType::kI32, expert_TK.shape);
  const OnHost experts(context, expert_TK);
  const OnHost slots = OnHost::unfilled(context, slot_TK);
  const View<const int32_t> expert = experts.as<const int32_t>();
  const View<int32_t> slot = slots.as<int32_t>();
  for (int64_t i = 0; i < expert.elements(); ++i) slot[i] = slot_E_[at(expert[i])];
  slots.put_back();
  return slot_TK;
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
                                const DispatchState& state) const {
  UnitSegments out{.offsets = state.unit_offsets,
                   .groups = experts_here(),
                   .slots = slots(),
                   .units = state.units};
  if (state.resident) {
    out.device_offsets = static_cast<const int64_t*>(offsets_by_unit(context, units, state).data);
  }
  return out;
}

// Every row is sent and kept; where an expert's rows lie only the device knows.
void Dispatch::plan_resident(int64_t rows, DispatchState& state) const {
  state.dropped = 0;
  state.sent_rows = state.rows = state.send_rows[0] = state.recv_rows[0] = rows;
  state.expert_offsets.assign(at(experts_ + 1), rows);
  state.expert_offsets[0] = 0;
  state.unit_offsets.assign(at(experts_ * state.units + 1), rows);
  state.unit_offsets[0] = 0;
}

void Dispatch::plan(Context& context, AnyView expert_TK, int64_t capacity,
                    std::span<const int64_t> capacity_offsets, const UnitSegments& units,
                    DispatchState& state) const {
  const ScratchScope scope(context.scratch());
  const AnyView dropped = context.scratch().take(DType::kI64, {1});
  route_plan(context, slots_of(context, expert_TK), experts_, capacity, capacity_offsets,
             state.offsets_E, state.row_TK.rows(0, expert_TK.dim(0)), state.token_R, dropped);
  state.units = unit_slots_ ? units.units : 1;
  state.resident = context.device() != DeviceType::kCpu && ranks_ == 1 && capacity == 0;
  if (state.resident) return plan_resident(expert_TK.elements(), state);

  std::vector<int64_t> sent_EU(at(experts_ * state.units));
  {
    const OnHost offsets(context, offsets_by_unit(context, units, state));
    const View<const int64_t> begin = offsets.as<const int64_t>();
    for (size_t i = 0; i < sent_EU.size(); ++i) {
      sent_EU[i] = begin[static_cast<int64_t>(i) + 1] - begin[static_cast<int64_t>(i)];
    }
    state.sent_rows = begin[static_cast<int64_t>(sent_EU.size())];
  }
  state.dropped = expert_TK.elements() - state.sent_rows;
  const int64_t per_rank = experts_here() * state.units;
  std::vector<int64_t> counts_PeU(sent_EU.size());
  if (ranks_ == 1) {
    counts_PeU = sent_EU;
  } else {
    const std::vector<int64_t> one(at(ranks_), 1);
    state.exchange_seconds = 0;
    exchange(*group_, context, View<int64_t>(sent_EU.data(), {ranks_, per_rank}), one,
             View<int64_t>(counts_PeU.data(), {ranks_, per_rank}), one, state.exchange_seconds);
  }
  for (int64_t p = 0; p < ranks_; ++p) {
    auto total = [&](const std::vector<int64_t>& counts) {
      const auto first = counts.begin() + p * per_rank;
      return std::accumulate(first, first + per_rank, int64_t{0});
    };
    state.send_rows[at(p)] = total(sent_EU);
    state.recv_rows[at(p)] = total(counts_PeU);
  }
  state.rows = std::accumulate(state.recv_rows.begin(), state.recv_rows.end(), int64_t{0});
  order_received(context, counts_PeU, state);
}

// From counts by (source, expert, unit) to offsets by (expert, source, unit), and the permutation
// between the order of arrival and the order of the experts.
void Dispatch::order_received(Context& context, const std::vector<int64_t>& counts_PeU,
                              DispatchState& state) const {
  const int64_t here = experts_here();
  const int64_t units = state.units;
  std::vector<int64_t> arrival(counts_PeU.size() + 1, 0);
  std::partial_sum(counts_PeU.begin(), counts_PeU.end(), arrival.begin() + 1);

  state.unit_offsets.clear();
  const bool moved = ranks_ > 1;
  const OnHost orders =
      OnHost::unfilled(context, moved ? state.order_R.rows(0, state.rows) : AnyView{});
  const OnHost places =
      OnHost::unfilled(context, moved ? state.place_R.rows(0, state.rows) : AnyView{});
  int64_t row = 0;
  for (int64_t e = 0; e < here; ++e) {
    state.expert_offsets[at(e)] = row;
    for (int64_t p = 0; p < ranks_; ++p) {
      for (int64_t u = 0; u < units; ++u) {
        const int64_t from = (p * here + e) * units + u;
        if (unit_slots_ || (p == 0 && u == 0)) state.unit_offsets.push_back(row);
        if (moved) {
          const View<int32_t> order = orders.as<int32_t>();
          const View<int32_t> place = places.as<int32_t>();
          for (int64_t i = 0; i < counts_PeU[at(from)]; ++i) {
            order[row + i] = static_cast<int32_t>(arrival[at(from)] + i);
            place[arrival[at(from)] + i] = static_cast<int32_t>(row + i);
          }
        }
        row += counts_PeU[at(from)];
      }
    }
  }
  state.expert_offsets[at(here)] = row;
  state.unit_offsets.push_back(row);
  if (!moved) return;
  orders.put_back();
  places.put_back();
}

void Dispatch::to_experts(Context& context, AnyView sent_RD, const DispatchState& state,
                          AnyView expert_RD) const {
  if (ranks_ == 1) {
    DEGU_DCHECK(sent_RD.data == expert_RD.data);
    return;
  }
  const ScratchScope scope(context.scratch());
  const AnyView arrived =
      context.scratch().take(sent_RD.dtype, {std::max<int64_t>(state.rows, 1), sent_RD.dim(1)});
  exchange(*group_, context, sent_RD, state.send_rows, arrived, state.recv_rows,
           state.exchange_seconds);
  gather_rows(context, arrived, state.order_R.rows(0, state.rows), expert_RD.rows(0, state.rows));
}

void Dispatch::to_tokens(Context& context, AnyView expert_RD, const DispatchState& state,
                         AnyView sent_RD) const {
  if (ranks_ == 1) {
    DEGU_DCHECK(sent_RD.data == expert_RD.data);
    return;
  }
  const ScratchScope scope(context.scratch());
  const AnyView leaving =
      context.scratch().take(expert_RD.dtype, {std::max<int64_t>(state.rows, 1), expert_RD.dim(1)});
  gather_rows(context, expert_RD, state.place_R.rows(0, state.rows), leaving.rows(0, state.rows));
  exchange(*group_, context, leaving, state.recv_rows, sent_RD, state.send_rows,
           state.exchange_seconds);
}

}  // namespace degu
