// Approach 2: at each budget the best size, from a parabola of the loss in ln N or an Akima spline
// of ln L; then power laws N*(C) and D*(C).
//
// The parabola is biased on wide, asymmetric sweeps, so only sizes within a factor (`window`) of
// the budget's best take part. The bootstrap adds noise to the losses: a budget has too few runs to
// resample. Its sigma is that of seed replicates where the table has them, else what the parabolas
// leave over.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <set>

#include "base/random.h"
#include "scaling/fit/fit.h"
#include "scaling/fit/solver.h"

namespace degu::scaling {
namespace {

struct Budget {
  double c = 0;
  std::vector<double> x, log_d, loss;  // x = ln N
  std::vector<size_t> row;             // in the selection
};

// Least-squares polynomial of degree `degree` in (x − centre), constant first.
std::vector<double> polynomial(std::span<const double> x, std::span<const double> y, double centre,
                               int degree) {
  const int count = degree + 1;
  std::vector<double> normal(static_cast<size_t>(count) * count, 0), right(count, 0), out;
  for (size_t i = 0; i < x.size(); ++i) {
    std::vector<double> powers(count, 1);
    for (int k = 1; k < count; ++k) powers[k] = powers[k - 1] * (x[i] - centre);
    for (int a = 0; a < count; ++a) {
      right[a] += powers[a] * y[i];
      for (int b = 0; b < count; ++b) normal[a * count + b] += powers[a] * powers[b];
    }
  }
  if (!solve_damped(normal, right, 0, out)) out.assign(count, 0);
  return out;
}

double horner(std::span<const double> coefficients, double x) {
  double out = 0;
  for (size_t k = coefficients.size(); k-- > 0;) out = out * x + coefficients[k];
  return out;
}

// Akima's cubic through (x, y), x ascending, at least three points; its end slopes by his own
// extrapolation.
class Akima {
 public:
  Akima(std::vector<double> x, std::vector<double> y) : x_(std::move(x)), y_(std::move(y)) {
    const size_t n = x_.size();
    std::vector<double> m(n + 3);  // secants with two more at each end
    for (size_t i = 0; i + 1 < n; ++i) m[i + 2] = (y_[i + 1] - y_[i]) / (x_[i + 1] - x_[i]);
    m[1] = 2 * m[2] - m[3];
    m[0] = 2 * m[1] - m[2];
    m[n + 1] = 2 * m[n] - m[n - 1];
    m[n + 2] = 2 * m[n + 1] - m[n];
    slope_.resize(n);
    for (size_t i = 0; i < n; ++i) {
      const double right = std::abs(m[i + 3] - m[i + 2]), left = std::abs(m[i + 1] - m[i]);
      slope_[i] = right + left > 0 ? (right * m[i + 1] + left * m[i + 2]) / (right + left)
                                   : 0.5 * (m[i + 1] + m[i + 2]);
    }
  }
  double operator()(double at) const {
    const auto above = std::upper_bound(x_.begin() + 1, x_.end() - 1, at);
    const size_t i = static_cast<size_t>(above - x_.begin()) - 1;
    const double h = x_[i + 1] - x_[i], t = (at - x_[i]) / h;
    const double u = t * t, v = u * t;
    return (2 * v - 3 * u + 1) * y_[i] + (v - 2 * u + t) * h * slope_[i] +
           (3 * u - 2 * v) * y_[i + 1] + (v - u) * h * slope_[i + 1];
  }
  // Lowest point on [first, last]: a scan, then a golden section around its best.
  double minimum() const {
    constexpr int kSteps = 512;
    const double low = x_.front(), step = (x_.back() - low) / kSteps;
    int best = 0;
    for (int i = 1; i <= kSteps; ++i)
      if ((*this)(low + i * step) < (*this)(low + best * step)) best = i;
    double left = low + std::max(0, best - 1) * step,
           right = low + std::min(kSteps, best + 1) * step;
    constexpr double kGolden = 0.6180339887498949;
    for (int i = 0; i < 60; ++i) {
      const double a = right - kGolden * (right - left), b = left + kGolden * (right - left);
      ((*this)(a) < (*this)(b) ? right : left) = (*this)(a) < (*this)(b) ? b : a;
    }
    return 0.5 * (left + right);
  }

 private:
  std::vector<double> x_, y_, slope_;
};

class Isoflop {
 public:
  Isoflop(const Selection& selection, const FitOptions& options) : options_(options) {
    std::vector<int> index;
    const std::vector<double> budgets = group_budgets(selection, options.budget_gap, index);
    budgets_.resize(budgets.size());
    for (size_t i = 0; i < selection.size(); ++i) {
      if (index[i] < 0) {
        ++outside_;
        continue;
      }
      Budget& b = budgets_[index[i]];
      b.x.push_back(std::log(selection.data[i].x.n));
      b.log_d.push_back(std::log(selection.data[i].x.d));
      b.loss.push_back(selection.data[i].loss);
      b.row.push_back(i);
      b.c += std::log(selection.flops[i]);
    }
    for (Budget& b : budgets_) b.c = std::exp(b.c / static_cast<double>(b.x.size()));
    std::erase_if(budgets_, [&](const Budget& b) {
      const bool few = std::set<double>(b.x.begin(), b.x.end()).size() < 3;
      if (few) outside_ += static_cast<int>(b.x.size());
      return few;
    });
  }

  const std::vector<Budget>& budgets() const { return budgets_; }
  int outside() const { return outside_; }

  // The minimum of one budget with these losses.
  IsoflopMinimum locate(const Budget& b, std::span<const double> loss) const {
    const std::vector<size_t> near = window(b, loss);
    std::vector<double> x, y, log_d;
    for (const size_t i : near) {
      x.push_back(b.x[i]);
      y.push_back(loss[i]);
      log_d.push_back(b.log_d[i]);
    }
    const auto [low, high] = std::minmax_element(x.begin(), x.end());
    IsoflopMinimum out;
    out.c = b.c;
    out.points = static_cast<int>(near.size());
    out.n_least = std::exp(*low);
    out.n_most = std::exp(*high);
    const double centre = 0.5 * (*low + *high);
    double at;
    if (options_.interpolation == Interpolation::kParabola) {
      const std::vector<double> p = polynomial(x, y, centre, 2);
      const bool opens_up = p[2] > 0;
      at = opens_up ? centre - p[1] / (2 * p[2]) : x[best_of(y)];
      out.at_edge = !opens_up || at < *low || at > *high;
      out.loss = horner(p, at - centre);
      out.coefficients = {p[0] - p[1] * centre + p[2] * centre * centre, p[1] - 2 * p[2] * centre,
                          p[2]};
    } else {
      const Akima spline = akima(x, y);
      at = spline.minimum();
      const double margin = 1e-6 * (*high - *low);
      out.at_edge = at <= *low + margin || at >= *high - margin;
      out.loss = std::exp(spline(at));
    }
    out.n = std::exp(at);
    out.d = std::exp(horner(polynomial(x, log_d, centre, 2), at - centre));
    return out;
  }

  // Standard deviation that the parabolas leave over; none without a spare run.
  std::optional<double> residual_sigma() const {
    double squares = 0;
    int free = 0;
    for (const Budget& b : budgets_) {
      std::vector<double> x, y;
      for (const size_t i : window(b, b.loss)) {
        x.push_back(b.x[i]);
        y.push_back(b.loss[i]);
      }
      const std::vector<double> p = polynomial(x, y, x[0], 2);
      for (size_t i = 0; i < x.size(); ++i) squares += std::pow(horner(p, x[i] - x[0]) - y[i], 2);
      free += static_cast<int>(x.size()) - 3;
    }
    if (free <= 0) return {};
    return std::sqrt(squares / free);
  }

 private:
  static size_t best_of(std::span<const double> y) {
    return static_cast<size_t>(std::min_element(y.begin(), y.end()) - y.begin());
  }

  // Sizes within the window of the best, and the three nearest at least.
  std::vector<size_t> window(const Budget& b, std::span<const double> loss) const {
    const double best = b.x[best_of(loss)];
    std::set<double> distances;
    for (const double x : b.x) distances.insert(std::abs(x - best));
    double reach = std::log(options_.window);
    if (distances.size() >= 3) reach = std::max(reach, *std::next(distances.begin(), 2));
    std::vector<size_t> out;
    std::set<double> sizes;
    const auto collect = [&] {
      out.clear();
      sizes.clear();
      for (size_t i = 0; i < b.x.size(); ++i) {
        if (std::abs(b.x[i] - best) > reach * (1 + 1e-12)) continue;
        out.push_back(i);
        sizes.insert(b.x[i]);
      }
    };
    collect();
    while (sizes.size() < 3) {  // two sizes at the same distance on either side
      reach *= 1.1;
      collect();
    }
    return out;
  }

  // Through the mean ln L of each size. Sizes closer than kSameSize count as one: a spline through
  // two noisy losses side by side would dive between them.
  static Akima akima(std::span<const double> x, std::span<const double> y) {
    constexpr double kSameSize = 0.05;  // of ln N
    std::vector<size_t> order(x.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] < x[b]; });
    std::vector<double> knots, values;
    for (size_t begin = 0; begin < order.size();) {
      size_t end = begin;
      double at = 0, value = 0;
      for (; end < order.size() && x[order[end]] - x[order[begin]] < kSameSize; ++end) {
        at += x[order[end]];
        value += std::log(y[order[end]]);
      }
      const double count = static_cast<double>(end - begin);
      knots.push_back(at / count);
      values.push_back(value / count);
      begin = end;
    }
    if (knots.size() < 3)
      throw NumericError("refused: a budget has {} sizes more than 5 % apart; a spline needs three",
                         knots.size());
    return Akima(std::move(knots), std::move(values));
  }

  const FitOptions& options_;
  std::vector<Budget> budgets_;
  int outside_ = 0;
};

void apply_edge_policy(const FitOptions& options, FitResult& result) {
  std::string edges;
  for (const IsoflopMinimum& m : result.minima)
    if (m.at_edge)
      edges += fmt::format("{}{:.3g} (N {:.3g}, sizes {:.3g} … {:.3g})", edges.empty() ? "" : ", ",
                           m.c, m.n, m.n_least, m.n_most);
  if (edges.empty()) return;
  const EdgePolicy policy = options.force ? EdgePolicy::kForce : options.edge;
  if (policy == EdgePolicy::kRefuse)
    throw NumericError(
        "refused: the minimum is on the edge of the sizes at budget {}. Runs of further sizes are "
        "the "
        "remedy; --edge drop leaves such budgets out, --force keeps them",
        edges);
  if (policy == EdgePolicy::kDrop)
    for (IsoflopMinimum& m : result.minima) m.kept = !m.at_edge;
  result.warnings.push_back(
      fmt::format("minimum on the edge of the sizes at budget {}: {}", edges,
                  policy == EdgePolicy::kDrop ? "left out" : "kept (forced)"));
}

struct PowerLaws {
  PowerFit n, d;
};

PowerLaws power_laws(const std::vector<IsoflopMinimum>& minima) {
  std::vector<double> c, n, d;
  for (const IsoflopMinimum& m : minima) {
    if (!m.kept) continue;
    c.push_back(m.c);
    n.push_back(m.n);
    d.push_back(m.d);
  }
  if (c.size() < 2)
    throw NumericError(
        "refused: {} budget with a minimum; two are needed for an exponent, three for its error",
        c.size());
  return {fit_power(c, n), fit_power(c, d)};
}

void bootstrap_noise(const Isoflop& isoflop, const Selection& selection, const FitOptions& options,
                     FitResult& result) {
  result.bootstrap = options.bootstrap;
  if (options.bootstrap == 0) return;
  const std::optional<double> residual = isoflop.residual_sigma();
  if (!selection.seed_sigma && !residual) {
    result.bootstrap_failed = options.bootstrap;
    result.warnings.push_back(
        "no intervals: three sizes a budget and no seed replicates leave no measure of the noise");
    return;
  }
  const double sigma = selection.seed_sigma ? *selection.seed_sigma : *residual;
  result.choices["bootstrap"] =
      fmt::format("noise of sigma {:.4g} on the losses, from {}", sigma,
                  selection.seed_sigma ? "seed replicates" : "what the parabolas leave over");
  int edges = 0;
  for (int draw = 0; draw < options.bootstrap; ++draw) {
    const RandomStream stream(options.seed, "fit.noise", static_cast<uint64_t>(draw));
    std::vector<IsoflopMinimum> minima;
    for (size_t b = 0; b < isoflop.budgets().size(); ++b) {
      const Budget& budget = isoflop.budgets()[b];
      std::vector<double> loss = budget.loss;
      for (size_t i = 0; i < loss.size(); ++i) loss[i] += sigma * stream.normal(budget.row[i]);
      minima.push_back(isoflop.locate(budget, loss));
      IsoflopMinimum& m = minima.back();
      m.kept = result.minima[b].kept;
      if (!m.at_edge || !m.kept) continue;
      // A draw whose minimum leaves the sizes counts as the outermost size, and is reported.
      const double n = std::clamp(m.n, m.n_least, m.n_most);
      m.d *= m.n / n;
      m.n = n;
      ++edges;
    }
    const PowerLaws laws = power_laws(minima);
    result.draws.push_back(
        {laws.n.slope, laws.d.slope, std::exp(laws.n.log_k), std::exp(laws.d.log_k)});
  }
  if (edges > 0)
    result.warnings.push_back(fmt::format(
        "{:.1f} % of the bootstrap's minima lay on the edge of the sizes and were held there",
        100.0 * edges /
            (static_cast<double>(options.bootstrap) * static_cast<double>(result.minima.size()))));
}

}  // namespace

FitResult fit_isoflop(const Selection& selection, const FitOptions& options) {
  FitResult result;
  result.law = "chinchilla";
  result.approach = 2;
  result.seed = options.seed;
  result.param_names = {"a", "b", "k_N", "k_D"};
  fill_ranges(selection, result);
  const Isoflop isoflop(selection, options);
  result.choices["interpolation"] = options.interpolation == Interpolation::kParabola
                                        ? "parabola of L in ln N"
                                        : "Akima spline of ln L in ln N";
  result.choices["window"] = fmt::format("sizes within x{:g} of the budget's best", options.window);
  result.choices["budgets"] = selection.budget.empty()
                                  ? fmt::format("neighbours in C within x{:g}", options.budget_gap)
                                  : "the table's budget column";
  if (isoflop.outside() > 0)
    result.warnings.push_back(fmt::format(
        "{} runs are in no budget of at least three sizes and were not used", isoflop.outside()));
  for (const Budget& b : isoflop.budgets()) result.minima.push_back(isoflop.locate(b, b.loss));
  apply_edge_policy(options, result);
  const PowerLaws laws = power_laws(result.minima);
  result.params = {laws.n.slope, laws.d.slope, std::exp(laws.n.log_k), std::exp(laws.d.log_k)};
  if (std::isfinite(laws.n.slope_se))
    result.standard_errors = {laws.n.slope_se, laws.d.slope_se, result.params[2] * laws.n.log_k_se,
                              result.params[3] * laws.d.log_k_se};
  result.r2 = laws.n.r2;
  result.objective = laws.n.rss;
  result.rmse_log = std::sqrt(laws.n.rss / static_cast<double>(result.minima.size()));
  bootstrap_noise(isoflop, selection, options, result);
  finish_power_laws(selection, result);
  return result;
}

}  // namespace degu::scaling
