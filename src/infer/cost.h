// What serving costs, and which of several measured ways to serve is the best: plain arithmetic on
// measured numbers.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace degu {

// The machine's price over what it does in that time, per million tokens:
//   price_per_hour / 3600 / tokens_per_second * 1e6.
// The machine is counted as busy with nothing else.
double cost_per_million(double price_per_hour, double tokens_per_second);

// One way to serve (a model, a scheme, a batch size), as measured. Lower is better in all three.
struct ServingPoint {
  double bits_per_byte = 0;  // on held-out text
  double latency = 0;        // seconds between tokens, 95th percentile
  double cost = 0;           // of one request: its prompt's tokens and its answer's
};

// No worse in anything, better in something.
bool dominates(const ServingPoint& a, const ServingPoint& b);
// For each point, whether another one dominates it.
std::vector<bool> dominated(std::span<const ServingPoint> points);

enum class Priority { kQuality, kLatency, kCost };
constexpr auto enum_names(Priority) {
  return std::array<std::string_view, 3>{"quality", "latency", "cost"};
}

// Quality counts as the best when it is within this share of the best.
inline constexpr double kSameQuality = 0.001;

// Index of the point to choose. With b the least bits per byte of all points:
//   quality  among points with at most b (1 + kSameQuality): the cheapest
//   latency  among points with at most b (1 + slack): the lowest latency, then the cheapest
//   cost     among points with at most b (1 + slack): the cheapest, then the lowest latency
// The first of equals. ConfigError without points, with a slack below 0 or numbers that are not
// finite.
size_t recommend(std::span<const ServingPoint> points, Priority priority, double slack);
// That rule in words.
std::string recommendation_rule(Priority priority, double slack);

// The value below which a share `p` in [0, 1] of `values` lies, linear between neighbours; none
// without values.
std::optional<double> percentile(std::vector<double> values, double p);

}  // namespace degu
