// Costs, dominated points and recommendations.
#include "infer/cost.h"

#include <catch2/catch.hpp>

#include <cmath>

#include "base/error.h"
#include "base/random.h"

namespace degu {
namespace {

TEST_CASE("an hour's price over an hour's tokens") {
  // 3.6 an hour is 0.001 a second; at 1000 tokens a second a million takes 1000 seconds.
  CHECK(cost_per_million(3.6, 1000) == Approx(1.0));
  CHECK(cost_per_million(0, 1000) == 0);
  CHECK(cost_per_million(3.6, 500) == Approx(2.0));
}

TEST_CASE("percentiles lie between the values") {
  CHECK(!percentile({}, 0.5));
  CHECK(*percentile({7}, 0.99) == 7);
  CHECK(*percentile({4, 1, 3, 2}, 0.5) == Approx(2.5));
  CHECK(*percentile({4, 1, 3, 2}, 0) == 1);
  CHECK(*percentile({4, 1, 3, 2}, 1) == 4);
  std::vector<double> many(101);
  for (size_t i = 0; i < many.size(); ++i) many[i] = static_cast<double>(100 - i);
  CHECK(*percentile(many, 0.95) == Approx(95));
}

TEST_CASE("a point is dominated only by one that is no worse in anything") {
  const std::vector<ServingPoint> points = {
      {1.00, 0.010, 5.0},   // best quality
      {1.01, 0.010, 4.0},   // cheaper
      {1.01, 0.012, 4.0},   // slower than the one before: dominated
      {1.02, 0.005, 4.5},   // fastest
      {1.02, 0.005, 4.5}};  // its equal: neither dominates the other
  CHECK(dominated(points) == std::vector<bool>{false, false, true, false, false});
}

TEST_CASE("the recommendation follows its rule") {
  const std::vector<ServingPoint> points = {{1.0000, 0.010, 9.0},
                                            {1.0005, 0.011, 6.0},  // as good as the best
                                            {1.0080, 0.004, 7.0},
                                            {1.0090, 0.009, 3.0},
                                            {1.2000, 0.001, 1.0}};  // fast, cheap and bad
  CHECK(recommend(points, Priority::kQuality, 0.01) == 1);
  CHECK(recommend(points, Priority::kLatency, 0.01) == 2);
  CHECK(recommend(points, Priority::kCost, 0.01) == 3);
  CHECK(recommend(points, Priority::kCost, 0.5) == 4);
  CHECK(recommend(points, Priority::kLatency, 0) == 0);
  CHECK_THROWS_AS(recommend({}, Priority::kCost, 0.01), ConfigError);
  CHECK_THROWS_AS(recommend(points, Priority::kCost, -1), ConfigError);
  const std::vector<ServingPoint> broken = {{1, NAN, 1}};
  CHECK_THROWS_AS(recommend(broken, Priority::kCost, 0.01), ConfigError);
}

TEST_CASE("what is recommended within the slack is dominated by nothing within it") {
  const RandomStream stream(5, "points");
  for (uint64_t round = 0; round < 200; ++round) {
    std::vector<ServingPoint> points;
    for (uint64_t i = 0; i < 12; ++i) {
      const uint64_t at = (round * 12 + i) * 3;
      points.push_back({1 + 0.02 * stream.uniform(at), static_cast<double>(stream.below(at + 1, 4)),
                        static_cast<double>(stream.below(at + 2, 4))});
    }
    for (const Priority priority : {Priority::kLatency, Priority::kCost}) {
      const ServingPoint& chosen = points[recommend(points, priority, 0.01)];
      for (const ServingPoint& p : points) {
        // Ties in the first two go to the first listed, whatever their quality.
        const bool strictly = p.latency < chosen.latency || p.cost < chosen.cost;
        CHECK_FALSE((dominates(p, chosen) && strictly));
      }
    }
  }
}

}  // namespace
}  // namespace degu
