#include "moe/expert_placement.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace degu {
namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

// One layer's experts, each with a rank, every rank with as many.
class LayerPlacement {
 public:
  LayerPlacement(std::span<const int64_t> rows_E, int ranks)
      : rows_E_(rows_E),
        each_(static_cast<int64_t>(rows_E.size()) / ranks),
        rank_E_(rows_E.size(), 0),
        load_P_(at(ranks), 0) {}

  void place_longest_first() {
    std::vector<size_t> order(rows_E_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return rows_E_[a] > rows_E_[b]; });
    std::vector<int64_t> held_P(load_P_.size(), 0);
    for (size_t expert : order) {
      size_t best = load_P_.size();
      for (size_t p = 0; p < load_P_.size(); ++p) {
        if (held_P[p] == each_) continue;
        if (best == load_P_.size() || load_P_[p] < load_P_[best]) best = p;
      }
      rank_E_[expert] = best;
      load_P_[best] += rows_E_[expert];
      ++held_P[best];
    }
  }

  // The exchange with the busiest rank that leaves the busier of the two ranks least to do; false
  // when none helps. Each one lowers the ranks' loads, sorted from the busiest on, so there is an
  // end.
  bool exchange_once() {
    const auto busiest =
        static_cast<size_t>(std::max_element(load_P_.begin(), load_P_.end()) - load_P_.begin());
    int64_t least = load_P_[busiest];
    size_t from = 0;
    size_t to = 0;
    for (size_t e = 0; e < rows_E_.size(); ++e) {
      if (rank_E_[e] != busiest) continue;
      for (size_t other = 0; other < rows_E_.size(); ++other) {
        const int64_t moved = rows_E_[e] - rows_E_[other];
        if (rank_E_[other] == busiest || moved <= 0) continue;
        const int64_t after = std::max(load_P_[busiest] - moved, load_P_[rank_E_[other]] + moved);
        if (after >= least) continue;
        least = after;
        from = e;
        to = other;
      }
    }
    if (least == load_P_[busiest]) return false;
    const int64_t moved = rows_E_[from] - rows_E_[to];
    load_P_[busiest] -= moved;
    load_P_[rank_E_[to]] += moved;
    std::swap(rank_E_[from], rank_E_[to]);
    return true;
  }

  std::vector<int32_t> slots() const {
    std::vector<int32_t> next_P(load_P_.size());
    for (size_t p = 0; p < next_P.size(); ++p) {
      next_P[p] = static_cast<int32_t>(static_cast<int64_t>(p) * each_);
    }
    std::vector<int32_t> slot_E(rank_E_.size());
    for (size_t e = 0; e < slot_E.size(); ++e) slot_E[e] = next_P[rank_E_[e]]++;
    return slot_E;
  }

 private:
  std::span<const int64_t> rows_E_;
  int64_t each_;
  std::vector<size_t> rank_E_;
  std::vector<int64_t> load_P_;
};

int64_t busiest(std::span<const int64_t> rows_E, std::span<const int32_t> slot_E, int ranks) {
  const std::vector<int64_t> rows_P = rank_rows(rows_E, slot_E, ranks);
  return *std::max_element(rows_P.begin(), rows_P.end());
}

int64_t sum(std::span<const int64_t> rows_E) {
  return std::accumulate(rows_E.begin(), rows_E.end(), int64_t{0});
}

double over_mean(int64_t busiest_rows, int64_t all_rows, int ranks) {
  if (all_rows == 0) return 1;
  return static_cast<double>(busiest_rows) * ranks / static_cast<double>(all_rows);
}

}  // namespace

bool ExpertPlacement::contiguous() const {
  return std::all_of(slot_LE.begin(), slot_LE.end(), [](const std::vector<int32_t>& slot_E) {
    for (size_t e = 0; e < slot_E.size(); ++e) {
      if (slot_E[e] != static_cast<int32_t>(e)) return false;
    }
    return true;
  });
}

std::span<const int32_t> ExpertPlacement::slots(int block) const {
  if (at(block) >= slot_LE.size()) return {};
  return slot_LE[at(block)];
}

std::vector<int32_t> ExpertPlacement::experts_by_slot(int block, int64_t experts) const {
  std::vector<int32_t> expert_S(at(experts));
  std::iota(expert_S.begin(), expert_S.end(), 0);
  const std::span<const int32_t> slot_E = slots(block);
  for (size_t e = 0; e < slot_E.size(); ++e) expert_S[at(slot_E[e])] = static_cast<int32_t>(e);
  return expert_S;
}

void check_placement(const ExpertPlacement& placement, const ModelShape& shape) {
  for (size_t block = 0; block < placement.slot_LE.size(); ++block) {
    const std::vector<int32_t>& slot_E = placement.slot_LE[block];
    if (slot_E.empty()) continue;
    const auto layer = static_cast<int>(block);
    if (layer >= shape.layers || !shape.is_moe_layer(layer)) {
      throw ConfigError("a placement of experts for layer {}, which has none", layer);
    }
    if (std::ssize(slot_E) != shape.moe.experts) {
      throw ConfigError("layer {}: a placement of {} experts, the layer has {}", layer,
                        slot_E.size(), shape.moe.experts);
    }
    std::vector<bool> taken(slot_E.size(), false);
    for (int32_t slot : slot_E) {
      if (slot < 0 || slot >= std::ssize(slot_E) || taken[at(slot)]) {
        throw ConfigError("layer {}: slot {} is no slot of {}, or is taken twice", layer, slot,
                          slot_E.size());
      }
      taken[at(slot)] = true;
    }
  }
}

ExpertPlacement place_by_rows(const ExpertRows& rows_LE, int ranks) {
  ExpertPlacement placement;
  for (const std::vector<int64_t>& rows_E : rows_LE) {
    std::vector<int32_t>& slot_E = placement.slot_LE.emplace_back();
    if (rows_E.empty()) continue;
    if (std::ssize(rows_E) % ranks != 0) {
      throw ConfigError("{} experts cannot be shared evenly by {} ranks", rows_E.size(), ranks);
    }
    LayerPlacement layer(rows_E, ranks);
    layer.place_longest_first();
    while (layer.exchange_once()) {
    }
    slot_E = layer.slots();
    if (busiest(rows_E, slot_E, ranks) >= busiest(rows_E, {}, ranks)) {
      std::iota(slot_E.begin(), slot_E.end(), 0);
    }
  }
  return placement;
}

std::vector<int64_t> rank_rows(std::span<const int64_t> rows_E, std::span<const int32_t> slot_E,
                               int ranks) {
  const int64_t each = std::ssize(rows_E) / ranks;
  std::vector<int64_t> rows_P(at(ranks), 0);
  for (size_t e = 0; e < rows_E.size(); ++e) {
    const int64_t slot = slot_E.empty() ? static_cast<int64_t>(e) : slot_E[e];
    rows_P[at(slot / each)] += rows_E[e];
  }
  return rows_P;
}

double imbalance(std::span<const int64_t> rows_E, std::span<const int32_t> slot_E, int ranks) {
  return over_mean(busiest(rows_E, slot_E, ranks), sum(rows_E), ranks);
}

double imbalance(const ExpertRows& rows_LE, const ExpertPlacement& placement, int ranks) {
  int64_t busiest_rows = 0;
  int64_t all_rows = 0;
  for (size_t block = 0; block < rows_LE.size(); ++block) {
    if (rows_LE[block].empty()) continue;
    busiest_rows += busiest(rows_LE[block], placement.slots(static_cast<int>(block)), ranks);
    all_rows += sum(rows_LE[block]);
  }
  return over_mean(busiest_rows, all_rows, ranks);
}

}  // namespace degu
