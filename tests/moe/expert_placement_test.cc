// Which rank holds which experts: valid, as even as exchanges make it, and told in numbers.
#include "moe/expert_placement.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <numeric>

#include "base/error.h"
#include "base/random.h"

namespace degu {
namespace {

using Catch::Matchers::Contains;
using Rows = std::vector<int64_t>;

// Popularity that falls off as a power of the rank, in random order.
Rows skewed_rows(size_t experts, uint64_t seed) {
  const RandomStream stream(seed, "expert rows");
  Rows rows(experts);
  for (size_t e = 0; e < experts; ++e) {
    rows[e] = static_cast<int64_t>(1e5 / static_cast<double>(e + 1)) +
              static_cast<int64_t>(stream.below(e, 2000));
  }
  for (size_t e = experts; e-- > 1;) std::swap(rows[e], rows[stream.below(1000 + e, e + 1)]);
  return rows;
}

Rows loads(const Rows& rows_E, const std::vector<int32_t>& slot_E, int ranks) {
  const size_t each = rows_E.size() / static_cast<size_t>(ranks);
  Rows out(static_cast<size_t>(ranks), 0);
  for (size_t e = 0; e < rows_E.size(); ++e) {
    out[static_cast<size_t>(slot_E[e]) / each] += rows_E[e];
  }
  return out;
}

int64_t most(const Rows& rows) {
  return *std::max_element(rows.begin(), rows.end());
}

std::vector<int32_t> numbered(size_t experts) {
  std::vector<int32_t> slot_E(experts);
  std::iota(slot_E.begin(), slot_E.end(), 0);
  return slot_E;
}

// Of two ranks, by trying all halves.
int64_t best_of_halves(const Rows& rows_E) {
  const auto experts = static_cast<unsigned>(rows_E.size());
  const int64_t all = std::accumulate(rows_E.begin(), rows_E.end(), int64_t{0});
  int64_t best = all;
  for (unsigned half = 0; half < 1u << experts; ++half) {
    if (2 * static_cast<unsigned>(__builtin_popcount(half)) != experts) continue;
    int64_t own = 0;
    for (unsigned e = 0; e < experts; ++e) own += (half >> e & 1u) != 0 ? rows_E[e] : 0;
    best = std::min(best, std::max(own, all - own));
  }
  return best;
}

TEST_CASE("every rank gets as many experts, and no exchange with the busiest would help") {
  for (size_t experts : {4u, 8u, 24u, 64u}) {
    for (int ranks : {1, 2, 4}) {
      for (uint64_t seed = 0; seed < 20; ++seed) {
        INFO(experts << " experts, " << ranks << " ranks, seed " << seed);
        const Rows rows_E = skewed_rows(experts, seed);
        const std::vector<int32_t> slot_E = place_by_rows({rows_E}, ranks).slot_LE.at(0);
        std::vector<int32_t> sorted = slot_E;
        std::sort(sorted.begin(), sorted.end());
        REQUIRE(sorted == numbered(experts));
        const Rows placed = loads(rows_E, slot_E, ranks);
        CHECK(most(placed) <= most(loads(rows_E, numbered(experts), ranks)));
        int64_t exchanged = most(placed);
        for (size_t a = 0; a < experts; ++a) {
          for (size_t b = 0; b < experts; ++b) {
            std::vector<int32_t> other = slot_E;
            std::swap(other[a], other[b]);
            exchanged = std::min(exchanged, most(loads(rows_E, other, ranks)));
          }
        }
        // With several busiest ranks one exchange lowers none of the maximum; then it may stand.
        CHECK(exchanged == most(placed));
      }
    }
  }
}

TEST_CASE("two ranks share eight experts about as evenly as any halves do") {
  double excess = 0;
  constexpr int kCases = 200;
  for (uint64_t seed = 0; seed < kCases; ++seed) {
    const Rows rows_E = skewed_rows(8, seed);
    const int64_t placed = most(loads(rows_E, place_by_rows({rows_E}, 2).slot_LE.at(0), 2));
    const int64_t best = best_of_halves(rows_E);
    CHECK(placed >= best);
    excess += static_cast<double>(placed) / static_cast<double>(best) - 1;
  }
  CHECK(excess / kCases < 0.01);
}

TEST_CASE("a layer worked out by hand") {
  const Rows rows_E = {10, 9, 8, 7, 1, 1, 1, 1};
  const ExpertPlacement placement = place_by_rows({{}, rows_E}, 2);
  CHECK(placement.slot_LE.at(0).empty());  // a dense block
  // 10 | 9, then 8 and 7 to the lighter rank, then ones by turns: {0, 3, 4, 6} and {1, 2, 5, 7}.
  CHECK(placement.slot_LE.at(1) == std::vector<int32_t>{0, 4, 5, 1, 2, 6, 3, 7});
  CHECK(placement.experts_by_slot(1, 8) == std::vector<int32_t>{0, 3, 4, 6, 1, 2, 5, 7});
  CHECK(placement.experts_by_slot(0, 8) == numbered(8));
  CHECK(rank_rows(rows_E, placement.slots(1), 2) == Rows{19, 19});
  CHECK(imbalance(rows_E, placement.slots(1), 2) == 1);
  CHECK(imbalance(rows_E, {}, 2) == Approx(34 / 19.0));
  // Over layers: busiest rows add up before they are divided.
  const ExpertRows both = {rows_E, {3, 3, 3, 3, 0, 0, 0, 0}};
  CHECK(imbalance(both, {}, 2) == Approx((34 + 12) / (19.0 + 6)));
  CHECK(imbalance(ExpertRows{{}, {0, 0}}, {}, 2) == 1);
}

TEST_CASE("even counts stay as they are") {
  CHECK(place_by_rows({Rows(8, 5)}, 4).contiguous());
  CHECK(place_by_rows({Rows(8, 0)}, 2).contiguous());
  CHECK(ExpertPlacement{}.contiguous());
  CHECK_FALSE(ExpertPlacement{{{1, 0}}}.contiguous());
  CHECK_THROWS_WITH(place_by_rows({Rows(6, 1)}, 4), Contains("6 experts") && Contains("4 ranks"));
}

TEST_CASE("a table that is no order of the layer's experts is refused") {
  ModelShape shape{.vocab = 8,
                   .width = 16,
                   .layers = 2,
                   .heads = 1,
                   .moe = {.experts = 4, .top_k = 2, .expert_width = 8, .first_dense_layers = 1}};
  shape = shape.resolved();
  CHECK_NOTHROW(check_placement({}, shape));
  CHECK_NOTHROW(check_placement({{{}, {3, 1, 0, 2}}}, shape));
  struct Case {
    std::vector<std::vector<int32_t>> slot_LE;
    const char* message;
  };
  const Case cases[] = {{{{0, 1, 2, 3}}, "layer 0, which has none"},
                        {{{}, {0, 1, 2, 3}, {0, 1, 2, 3}}, "layer 2, which has none"},
                        {{{}, {0, 1, 2}}, "layer 1: a placement of 3 experts, the layer has 4"},
                        {{{}, {0, 1, 2, 4}}, "layer 1: slot 4"},
                        {{{}, {0, 1, -1, 2}}, "layer 1: slot -1"},
                        {{{}, {0, 1, 2, 1}}, "layer 1: slot 1"}};
  for (const Case& c : cases) {
    INFO(c.message);
    CHECK_THROWS_WITH(check_placement({c.slot_LE}, shape), Contains(c.message));
  }
}

}  // namespace
}  // namespace degu
