#include "infer/cost.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "base/error.h"

namespace degu {

double cost_per_million(double price_per_hour, double tokens_per_second) {
  return price_per_hour / 3600.0 / tokens_per_second * 1e6;
}

bool dominates(const ServingPoint& a, const ServingPoint& b) {
  const bool no_worse =
      a.bits_per_byte <= b.bits_per_byte && a.latency <= b.latency && a.cost <= b.cost;
  const bool better = a.bits_per_byte < b.bits_per_byte || a.latency < b.latency || a.cost < b.cost;
  return no_worse && better;
}

std::vector<bool> dominated(std::span<const ServingPoint> points) {
  std::vector<bool> out;
  for (const ServingPoint& p : points) {
    out.push_back(std::any_of(points.begin(), points.end(),
                              [&](const ServingPoint& other) { return dominates(other, p); }));
  }
  return out;
}

size_t recommend(std::span<const ServingPoint> points, Priority priority, double slack) {
  if (points.empty()) throw ConfigError("there is nothing to recommend: no point was measured");
  if (!(slack >= 0)) throw ConfigError("the quality slack is {}; it must be 0 or more", slack);
  double best = points.front().bits_per_byte;
  for (const ServingPoint& p : points) {
    if (!std::isfinite(p.bits_per_byte) || !std::isfinite(p.latency) || !std::isfinite(p.cost)) {
      throw ConfigError("a measured point is not finite (bits per byte {}, latency {}, cost {})",
                        p.bits_per_byte, p.latency, p.cost);
    }
    best = std::min(best, p.bits_per_byte);
  }
  const double most = best * (1 + (priority == Priority::kQuality ? kSameQuality : slack));
  const auto key = [&](const ServingPoint& p) {
    return priority == Priority::kLatency ? std::tuple(p.latency, p.cost)
                                          : std::tuple(p.cost, p.latency);
  };
  size_t chosen = points.size();
  for (size_t i = 0; i < points.size(); ++i) {
    if (points[i].bits_per_byte > most) continue;
    if (chosen == points.size() || key(points[i]) < key(points[chosen])) chosen = i;
  }
  return chosen;
}

std::string recommendation_rule(Priority priority, double slack) {
  switch (priority) {
    case Priority::kQuality:
      return fmt::format("the cheapest within {:g} % of the best bits per byte",
                         100 * kSameQuality);
    case Priority::kLatency:
      return fmt::format(
          "the lowest p95 inter-token latency within {:g} % of the best bits per byte",
          100 * slack);
    case Priority::kCost:
      return fmt::format("the cheapest within {:g} % of the best bits per byte", 100 * slack);
  }
  return {};
}

std::optional<double> percentile(std::vector<double> values, double p) {
  if (values.empty()) return std::nullopt;
  std::sort(values.begin(), values.end());
  const double at = p * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, values.size() - 1);
  const double part = at - static_cast<double>(low);
  return values[low] + part * (values[high] - values[low]);
}

}  // namespace degu
