// Approach 1: the lower envelope of all runs' losses over compute, then power laws N*(C) and D*(C)
// along it.
//
// Two envelopes, which differ by up to .1 in the exponent: the lower convex hull of ln L over ln C
// (default: no parameter, and a run must be better than the line between its neighbours to count),
// and the minimum of each bin of ln C.
//
// Where the smallest or the largest size is the best, a size beyond might be better still: such
// points pull the exponent down. EdgePolicy::kDrop leaves them out, the others keep and name them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "base/random.h"
#include "scaling/fit/fit.h"

namespace degu::scaling {
namespace {

constexpr int kBinsPerDecade = 10;

struct Cloud {
  std::vector<double> log_c, log_l, n, d;
};

// Indices on the falling part of the lower hull, ascending in C.
std::vector<size_t> lower_hull(const Cloud& cloud, std::span<const size_t> members) {
  std::vector<size_t> order(members.begin(), members.end());
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return cloud.log_c[a] != cloud.log_c[b] ? cloud.log_c[a] < cloud.log_c[b]
                                            : cloud.log_l[a] < cloud.log_l[b];
  });
  std::vector<size_t> hull;
  for (const size_t i : order) {
    if (!hull.empty() && cloud.log_c[hull.back()] == cloud.log_c[i]) continue;
    while (hull.size() >= 2) {
      const size_t a = hull[hull.size() - 2], b = hull.back();
      const double turn = (cloud.log_c[b] - cloud.log_c[a]) * (cloud.log_l[i] - cloud.log_l[a]) -
                          (cloud.log_l[b] - cloud.log_l[a]) * (cloud.log_c[i] - cloud.log_c[a]);
      if (turn > 0) break;
      hull.pop_back();
    }
    hull.push_back(i);
  }
  const auto lowest = std::min_element(hull.begin(), hull.end(), [&](size_t a, size_t b) {
    return cloud.log_l[a] < cloud.log_l[b];
  });
  if (!hull.empty()) hull.erase(lowest + 1, hull.end());
  return hull;
}

// The best of each bin, where it is also better than every cheaper one.
std::vector<size_t> bin_minima(const Cloud& cloud, std::span<const size_t> members) {
  std::map<int, size_t> best;
  for (const size_t i : members) {
    const int bin = static_cast<int>(std::floor(cloud.log_c[i] / M_LN10 * kBinsPerDecade));
    const auto [at, fresh] = best.try_emplace(bin, i);
    if (!fresh && cloud.log_l[i] < cloud.log_l[at->second]) at->second = i;
  }
  std::vector<size_t> out;
  for (const auto& [bin, i] : best)
    if (out.empty() || cloud.log_l[i] < cloud.log_l[out.back()]) out.push_back(i);
  return out;
}

struct Laws {
  PowerFit n, d;
  std::vector<size_t> points;
  size_t at_edge = 0;  // of the envelope's points, before any was dropped
};

// False when fewer than three points or two sizes make up the envelope.
bool fit_along(const Cloud& cloud, std::span<const size_t> members, const FitOptions& options,
               Laws& out) {
  out.points =
      options.envelope == Envelope::kHull ? lower_hull(cloud, members) : bin_minima(cloud, members);
  const auto sizes = std::minmax_element(cloud.n.begin(), cloud.n.end());
  const double least = *sizes.first, most = *sizes.second;
  const auto at_edge = [&](size_t i) { return cloud.n[i] == least || cloud.n[i] == most; };
  out.at_edge = static_cast<size_t>(std::count_if(out.points.begin(), out.points.end(), at_edge));
  if (options.edge == EdgePolicy::kDrop && !options.force) std::erase_if(out.points, at_edge);
  std::vector<double> c, n, d;
  for (const size_t i : out.points) {
    c.push_back(std::exp(cloud.log_c[i]));
    n.push_back(cloud.n[i]);
    d.push_back(cloud.d[i]);
  }
  if (c.size() < 3 || std::set<double>(n.begin(), n.end()).size() < 2) return false;
  out.n = fit_power(c, n);
  out.d = fit_power(c, d);
  return true;
}

}  // namespace

FitResult fit_envelope(const Selection& selection, const FitOptions& options) {
  FitResult result;
  result.law = "chinchilla";
  result.approach = 1;
  result.seed = options.seed;
  result.param_names = {"a", "b", "k_N", "k_D"};
  fill_ranges(selection, result);
  result.choices["envelope"] =
      options.envelope == Envelope::kHull
          ? "lower convex hull of ln L over ln C"
          : fmt::format("minimum of each bin of ln C, {} per decade", kBinsPerDecade);
  Cloud cloud;
  std::map<std::string, std::vector<size_t>> runs;
  for (size_t i = 0; i < selection.size(); ++i) {
    cloud.log_c.push_back(std::log(selection.flops[i]));
    cloud.log_l.push_back(std::log(selection.data[i].loss));
    cloud.n.push_back(selection.data[i].x.n);
    cloud.d.push_back(selection.data[i].x.d);
    runs[selection.run[i]].push_back(i);
  }
  std::vector<size_t> all(selection.size());
  std::iota(all.begin(), all.end(), size_t{0});
  Laws best{};
  if (!fit_along(cloud, all, options, best))
    throw NumericError(
        "refused: the envelope has {} points{}; three of two sizes are needed. More budgets or "
        "sizes "
        "are the remedy",
        best.points.size(),
        options.edge == EdgePolicy::kDrop ? " beside those of the outermost sizes" : "");
  if (best.at_edge > 0) {
    const bool dropped = options.edge == EdgePolicy::kDrop && !options.force;
    result.warnings.push_back(fmt::format(
        "{} of the envelope's {} points belong to the smallest or the largest size, beyond which "
        "the best may lie: {}",
        best.at_edge, best.points.size() + (dropped ? best.at_edge : 0),
        dropped ? "left out" : "kept (--edge drop leaves them out)"));
  }
  result.params = {best.n.slope, best.d.slope, std::exp(best.n.log_k), std::exp(best.d.log_k)};
  result.standard_errors = {best.n.slope_se, best.d.slope_se, result.params[2] * best.n.log_k_se,
                            result.params[3] * best.d.log_k_se};
  result.r2 = best.n.r2;
  result.objective = best.n.rss;
  result.rmse_log = std::sqrt(best.n.rss / static_cast<double>(best.points.size()));
  for (const size_t i : best.points)
    result.frontier.push_back({.c = selection.flops[i],
                               .n = cloud.n[i],
                               .d = cloud.d[i],
                               .loss = selection.data[i].loss});

  std::vector<const std::vector<size_t>*> members;
  members.reserve(runs.size());
  for (const auto& [name, rows] : runs) members.push_back(&rows);
  for (int draw = 0; draw < options.bootstrap; ++draw) {
    const RandomStream stream(options.seed, "fit.envelope", static_cast<uint64_t>(draw));
    std::vector<size_t> rows;
    for (size_t k = 0; k < members.size(); ++k) {
      const std::vector<size_t>& run = *members[stream.below(k, members.size())];
      rows.insert(rows.end(), run.begin(), run.end());
    }
    Laws laws{};
    if (fit_along(cloud, rows, options, laws)) {
      result.draws.push_back(
          {laws.n.slope, laws.d.slope, std::exp(laws.n.log_k), std::exp(laws.d.log_k)});
    } else {
      ++result.bootstrap_failed;
    }
  }
  result.bootstrap = options.bootstrap;
  if (options.bootstrap > 0) result.choices["bootstrap"] = "whole runs, resampled";
  finish_power_laws(selection, result);
  return result;
}

}  // namespace degu::scaling
