#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "scaling/fit/fit.h"

namespace degu::scaling {

FitResult fit_law(const Law& law, const Selection& selection, const FitOptions& options) {
  if (options.approach == 3) return fit_parametric(law, selection, options);
  if (options.approach != 1 && options.approach != 2)
    throw ConfigError("--approach {}: it is 1, 2 or 3", options.approach);
  if (law.name() != "chinchilla")
    throw ConfigError(
        "--approach {} finds N* and D* of one kind of model without a formula; law {} "
        "is fitted by approach 3",
        options.approach, law.name());
  return options.approach == 1 ? fit_envelope(selection, options) : fit_isoflop(selection, options);
}

std::string n_definition_of(const Law& law, const Selection& selection) {
  constexpr auto names = enum_names(ParameterCount{});
  const auto used = selection.used.find("N");
  if (used != selection.used.end() &&
      std::find(names.begin(), names.end(), used->second) != names.end())
    return used->second;
  return std::string(names[static_cast<size_t>(law.n_definition())]);
}

ClosedFormOptimum closed_form_optimum(double a_coefficient, double b_coefficient, double alpha,
                                      double beta) {
  const double a = beta / (alpha + beta), b = alpha / (alpha + beta);
  const double g = std::pow(alpha * a_coefficient / (beta * b_coefficient), 1 / (alpha + beta));
  return {a, b, g * std::pow(6, -a), std::pow(6, -b) / g};
}

ParamSummary summarise(std::vector<double> values) {
  ParamSummary out;
  const size_t count = values.size();
  if (count == 0) return out;
  for (const double v : values) out.mean += v / static_cast<double>(count);
  for (const double v : values) out.se += (v - out.mean) * (v - out.mean);
  out.se = count > 1 ? std::sqrt(out.se / static_cast<double>(count - 1)) : 0;
  std::sort(values.begin(), values.end());
  // Linear interpolation between order statistics (Hyndman and Fan's type 7).
  const auto quantile = [&](double p) {
    const double at = p * static_cast<double>(count - 1);
    const size_t low = static_cast<size_t>(at);
    const size_t high = std::min(low + 1, count - 1);
    return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
  };
  out.lo = quantile(0.025);
  out.hi = quantile(0.975);
  return out;
}

PowerFit fit_power(std::span<const double> x, std::span<const double> y) {
  const double count = static_cast<double>(x.size());
  double mean_x = 0, mean_y = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    mean_x += std::log(x[i]) / count;
    mean_y += std::log(y[i]) / count;
  }
  double xx = 0, xy = 0, yy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double dx = std::log(x[i]) - mean_x, dy = std::log(y[i]) - mean_y;
    xx += dx * dx;
    xy += dx * dy;
    yy += dy * dy;
  }
  PowerFit out{};
  out.slope = xy / xx;
  out.log_k = mean_y - out.slope * mean_x;
  out.rss = std::max(0.0, yy - out.slope * xy);
  out.r2 = yy > 0 ? 1 - out.rss / yy : 1;
  const double variance =
      count > 2 ? out.rss / (count - 2) : std::numeric_limits<double>::quiet_NaN();
  out.slope_se = std::sqrt(variance / xx);
  out.log_k_se = std::sqrt(variance * (1 / count + mean_x * mean_x / xx));
  return out;
}

void fill_ranges(const Selection& selection, FitResult& result) {
  const auto widen = [](Interval& range, double value) {
    range.lo = std::min(range.lo, value);
    range.hi = std::max(range.hi, value);
  };
  const double infinity = std::numeric_limits<double>::infinity();
  result.n = result.d = result.c = {infinity, -infinity};
  for (size_t i = 0; i < selection.size(); ++i) {
    widen(result.n, selection.data[i].x.n);
    widen(result.d, selection.data[i].x.d);
    widen(result.c, selection.flops[i]);
  }
  result.n_points = static_cast<int>(selection.size());
  result.groups = selection.groups;
}

namespace {

// Loss along the optimum as measured: linear in logarithms between the minima; NaN outside them.
double measured_loss(const FitResult& result, double c) {
  std::vector<std::pair<double, double>> known;
  for (const IsoflopMinimum& m : result.minima)
    if (m.kept) known.emplace_back(std::log(m.c), std::log(m.loss));
  for (const OptimumPoint& p : result.frontier) known.emplace_back(std::log(p.c), std::log(p.loss));
  const double x = std::log(c);
  for (size_t i = 0; i + 1 < known.size(); ++i) {
    const auto& [x0, y0] = known[i];
    const auto& [x1, y1] = known[i + 1];
    if (x < x0 - 1e-9 || x > x1 + 1e-9) continue;
    return std::exp(y0 + (y1 - y0) * (x - x0) / (x1 - x0));
  }
  return std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

void finish_power_laws(const Selection& selection, FitResult& result) {
  for (size_t p = 0; p < result.params.size() && !result.draws.empty(); ++p) {
    std::vector<double> values;
    for (const std::vector<double>& draw : result.draws) values.push_back(draw[p]);
    result.bootstrap_params.push_back(summarise(std::move(values)));
  }
  Optimum optimum{.a = result.params[0],
                  .b = result.params[1],
                  .k_n = result.params[2],
                  .k_d = result.params[3]};
  if (!result.bootstrap_params.empty()) {
    optimum.a_summary = result.bootstrap_params[0];
    optimum.b_summary = result.bootstrap_params[1];
  }
  const auto column = selection.used.find("N");
  if (column != selection.used.end()) optimum.n_definition = column->second;
  result.n_definition = optimum.n_definition;
  constexpr int kPoints = 25;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (int i = 0; i < kPoints; ++i) {
    const double c = result.c.lo * std::pow(10 * result.c.hi / result.c.lo, i / (kPoints - 1.0));
    OptimumPoint p{c,
                   optimum.k_n * std::pow(c, optimum.a),
                   optimum.k_d * std::pow(c, optimum.b),
                   measured_loss(result, c),
                   nan,
                   nan,
                   nan,
                   nan,
                   nan,
                   nan};
    if (!result.draws.empty()) {
      std::vector<double> n, d;
      for (const std::vector<double>& draw : result.draws) {
        n.push_back(draw[2] * std::pow(c, draw[0]));
        d.push_back(draw[3] * std::pow(c, draw[1]));
      }
      const ParamSummary sn = summarise(n), sd = summarise(d);
      p.n_lo = sn.lo, p.n_hi = sn.hi, p.d_lo = sd.lo, p.d_hi = sd.hi;
    }
    optimum.curve.push_back(p);
  }
  result.optimum = std::move(optimum);
  const size_t points =
      result.minima.empty()
          ? result.frontier.size()
          : static_cast<size_t>(std::count_if(result.minima.begin(), result.minima.end(),
                                              [](const IsoflopMinimum& m) { return m.kept; }));
  if (points < 3)
    result.warnings.push_back(fmt::format(
        "only {} points along the optimum: the exponents have no error of their own", points));
}

std::vector<double> group_budgets(const Selection& selection, double gap, std::vector<int>& index) {
  index.assign(selection.size(), -1);
  std::vector<double> budgets;
  const bool named =
      !selection.budget.empty() &&
      std::all_of(selection.budget.begin(), selection.budget.end(), [](double b) { return b > 0; });
  if (named) {
    budgets = selection.budget;
    std::sort(budgets.begin(), budgets.end());
    budgets.erase(std::unique(budgets.begin(), budgets.end()), budgets.end());
    for (size_t i = 0; i < selection.size(); ++i)
      index[i] = static_cast<int>(
          std::lower_bound(budgets.begin(), budgets.end(), selection.budget[i]) - budgets.begin());
    return budgets;
  }
  std::vector<size_t> order(selection.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return selection.flops[a] < selection.flops[b]; });
  // Neighbours in C belong together; what spreads over more than half again its least C, or has
  // fewer than four runs, is no budget.
  size_t begin = 0;
  for (size_t i = 1; i <= order.size(); ++i) {
    if (i < order.size() && selection.flops[order[i]] <= gap * selection.flops[order[i - 1]])
      continue;
    const double least = selection.flops[order[begin]], most = selection.flops[order[i - 1]];
    if (i - begin >= 4 && most <= 1.5 * least) {
      double mean = 0;
      for (size_t j = begin; j < i; ++j) {
        index[order[j]] = static_cast<int>(budgets.size());
        mean += std::log(selection.flops[order[j]]) / static_cast<double>(i - begin);
      }
      budgets.push_back(std::exp(mean));
    }
    begin = i;
  }
  return budgets;
}

}  // namespace degu::scaling
