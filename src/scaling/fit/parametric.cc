// Approach 3: the law's own formula, Huber's loss on ln L, many starts, pairs bootstrap.
#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "base/random.h"
#include "base/timer.h"
#include "scaling/fit/fit.h"
#include "scaling/fit/solver.h"

namespace degu::scaling {
namespace {

// Smallest share of a parameter's own information that the others may leave it; below, the data do
// not tell them apart. The published 240 runs, whose valley is called flat, leave 1e-5.
constexpr double kLeastOwnShare = 1e-10;

std::unique_ptr<Objective> make_objective(const Law& law, std::span<const Observation> data,
                                          const std::shared_ptr<const LseData>& shared,
                                          std::span<const double> weights, double delta) {
  if (shared) return make_lse_objective(shared, weights, delta);
  return make_general_objective(law, data, weights, delta);
}

// r_i and the gradient of the model at theta, one row per observation.
struct Residuals {
  std::vector<double> r;
  std::vector<std::vector<double>> g;
};

Residuals residuals_at(const Law& law, std::span<const Observation> data,
                       std::span<const double> theta) {
  Residuals out;
  Terms terms;
  for (const Observation& o : data) {
    law.terms(o.x, theta, terms);
    const double log_sum = terms.log_sum();
    out.r.push_back(log_sum - std::log(o.loss));
    std::vector<double> g(theta.size(), 0);
    for (const Terms::Derivative& d : terms.derivatives())
      g[d.param] += std::exp(terms.z()[d.term] - log_sum) * d.value;
    out.g.push_back(std::move(g));
  }
  return out;
}

// Why the data cannot tell the law's parameters, or an empty text.
std::string unidentified(const Law& law, std::span<const Observation> data) {
  const size_t params = law.params().size();
  if (data.size() < params + 2)
    return fmt::format("{} runs for the {} parameters of law {}; at least {} are needed",
                       data.size(), params, law.name(), params + 2);
  std::set<double> n, d;
  for (const Observation& o : data) {
    n.insert(o.x.n);
    d.insert(o.x.d);
  }
  if (n.size() < 3)
    return fmt::format("only {} different N; three are needed to see an exponent", n.size());
  if (law.uses_tokens() && d.size() < 3)
    return fmt::format("only {} different D; three are needed to see an exponent", d.size());
  return {};
}

// The same at the optimum: a parameter whose column of the Jacobian is nearly a combination of the
// others.
std::string singular_at(const Law& law, const Residuals& at) {
  const std::vector<ParamInfo> params = law.params();
  const int count = static_cast<int>(params.size());
  std::vector<double> information(static_cast<size_t>(count) * count, 0);
  for (const std::vector<double>& g : at.g)
    for (int i = 0; i < count; ++i)
      for (int j = 0; j < count; ++j) information[i * count + j] += g[i] * g[j];
  std::vector<double> scale(count);
  for (int i = 0; i < count; ++i) {
    scale[i] = std::sqrt(information[i * count + i]);
    if (!(scale[i] > 1e-6 * std::sqrt(static_cast<double>(at.g.size()))))
      return fmt::format("{} has no effect on any run at the optimum", params[i].name);
  }
  for (int i = 0; i < count; ++i)
    for (int j = 0; j < count; ++j) information[i * count + j] /= scale[i] * scale[j];
  std::vector<double> inverse;
  if (!invert(information, count, inverse))
    return "the runs leave a direction among the parameters undetermined";
  for (int i = 0; i < count; ++i)
    if (1 / inverse[i * count + i] < kLeastOwnShare)
      return fmt::format("{} cannot be told from the other parameters (share {:.1e} of its own)",
                         params[i].name, 1 / inverse[i * count + i]);
  return {};
}

// d published / d internal by central differences, row per published value.
std::vector<std::vector<double>> publish_jacobian(const Law& law, std::span<const double> theta) {
  const size_t count = theta.size();
  std::vector<std::vector<double>> out(count, std::vector<double>(count));
  for (size_t j = 0; j < count; ++j) {
    const double h = 1e-6 * std::max(1.0, std::abs(theta[j]));
    std::vector<double> up(theta.begin(), theta.end()), down = up;
    up[j] += h;
    down[j] -= h;
    const std::vector<double> a = law.publish(up), b = law.publish(down);
    for (size_t i = 0; i < count; ++i) out[i][j] = (a[i] - b[i]) / (2 * h);
  }
  return out;
}

// Standard errors by the sandwich H⁻¹ (sum psi² g gᵀ) H⁻¹ n/(n − p), carried to published values;
// empty when H is singular. H = sum psi'(r) g gᵀ, and psi' is 1 only within delta, a fifth of the
// usual scatter: too few runs to rest on. As in quantile regression (Powell 1991) psi' is spread to
// delta/h over |r| <= h, h = 2.5 sigma n^(-1/5), sigma from the median |r|. On the published runs
// and on small sweeps this is within 30 % of the bootstrap, without the spreading it is off by two.
std::vector<double> robust_errors(const Law& law, std::span<const double> theta,
                                  const Residuals& at, double delta) {
  const int count = static_cast<int>(theta.size());
  const double runs = static_cast<double>(at.r.size());
  if (runs <= count) return {};
  std::vector<double> sizes;
  for (const double r : at.r) sizes.push_back(std::abs(r));
  std::nth_element(sizes.begin(), sizes.begin() + static_cast<std::ptrdiff_t>(sizes.size() / 2),
                   sizes.end());
  const double sigma = sizes[sizes.size() / 2] / .6745;
  const double reach = std::max(delta, 2.5 * sigma * std::pow(runs, -.2));
  const double bend = std::isfinite(delta) ? delta / reach : 1;
  std::vector<double> h(static_cast<size_t>(count) * count, 0), outer = h, inverse;
  for (size_t k = 0; k < at.r.size(); ++k) {
    const double psi = std::clamp(at.r[k], -delta, delta);
    const double w = std::abs(at.r[k]) <= reach ? bend : 0;
    for (int i = 0; i < count; ++i)
      for (int j = 0; j < count; ++j) {
        h[i * count + j] += w * at.g[k][i] * at.g[k][j];
        outer[i * count + j] += psi * psi * at.g[k][i] * at.g[k][j];
      }
  }
  if (!invert(h, count, inverse)) return {};
  // Published value p moves with v_p = J_p H⁻¹, so its variance is v_p outer v_pᵀ.
  const std::vector<std::vector<double>> jacobian = publish_jacobian(law, theta);
  std::vector<double> out(count);
  for (int p = 0; p < count; ++p) {
    std::vector<double> v(count, 0);
    for (int i = 0; i < count; ++i)
      for (int j = 0; j < count; ++j) v[i] += jacobian[p][j] * inverse[j * count + i];
    double variance = 0;
    for (int i = 0; i < count; ++i)
      for (int j = 0; j < count; ++j) variance += v[i] * outer[i * count + j] * v[j];
    out[p] = std::sqrt(std::max(0.0, variance * runs / (runs - count)));
  }
  return out;
}

// Rows drawn with replacement within each group of experts, so that no resample loses a group.
std::vector<double> resample(std::span<const Observation> data, int groups, uint64_t seed,
                             uint64_t draw) {
  std::vector<std::vector<size_t>> members(groups);
  for (size_t i = 0; i < data.size(); ++i) members[data[i].x.group].push_back(i);
  const RandomStream stream(seed, "fit.bootstrap", draw);
  std::vector<double> weights(data.size(), 0);
  uint64_t index = 0;
  for (const std::vector<size_t>& rows : members)
    for (size_t k = 0; k < rows.size(); ++k) ++weights[rows[stream.below(index++, rows.size())]];
  return weights;
}

void bootstrap(const Law& law, const Selection& selection,
               const std::shared_ptr<const LseData>& shared, const FitOptions& options,
               double delta, const Solution& best, FitResult& result) {
  const bool grouped = law.name() == "multipliers";
  std::vector<Observation> data = selection.data;
  if (!grouped)
    for (Observation& o : data) o.x.group = 0;
  const int groups = grouped ? static_cast<int>(selection.groups.size()) : 1;
  std::vector<std::vector<double>> draws(options.bootstrap);
  run_parallel(options.bootstrap, options.threads, [&](int i) {
    const std::vector<double> weights = resample(data, groups, options.seed, i);
    const auto objective = make_objective(law, selection.data, shared, weights, delta);
    const Solution solution = minimise(*objective, best.theta);
    std::vector<double> published = law.publish(solution.theta);
    const bool finite =
        std::all_of(published.begin(), published.end(), [](double v) { return std::isfinite(v); });
    if (finite) draws[i] = std::move(published);
  });
  std::erase_if(draws, [](const std::vector<double>& draw) { return draw.empty(); });
  result.bootstrap = options.bootstrap;
  result.bootstrap_failed = options.bootstrap - static_cast<int>(draws.size());
  result.draws = std::move(draws);
  for (size_t p = 0; p < result.params.size(); ++p) {
    std::vector<double> values;
    for (const std::vector<double>& draw : result.draws) values.push_back(draw[p]);
    result.bootstrap_params.push_back(summarise(std::move(values)));
  }
  result.choices["bootstrap"] =
      grouped ? "pairs, resampled within each (E, K, granularity), one start each"
              : "pairs, one start each from the optimum";
}

// E, A, B, alpha, beta where the published parameters begin with them.
bool is_closed_form(const Law& law) {
  return law.name() == "chinchilla" || law.name() == "multipliers";
}

Optimum optimum_of(const FitResult& fit) {
  const auto solve = [](const std::vector<double>& p) {
    return closed_form_optimum(p[1], p[2], p[3], p[4]);
  };
  const auto loss_at = [](const std::vector<double>& p, double n, double d) {
    return p[0] + p[1] * std::pow(n, -p[3]) + p[2] * std::pow(d, -p[4]);
  };
  Optimum out;
  const ClosedFormOptimum best = solve(fit.params);
  out.a = best.a;
  out.b = best.b;
  out.k_n = best.k_n;
  out.k_d = best.k_d;
  out.n_definition = fit.n_definition;
  std::vector<ClosedFormOptimum> draws;
  std::vector<double> a, b;
  for (const std::vector<double>& draw : fit.draws) {
    draws.push_back(solve(draw));
    a.push_back(draws.back().a);
    b.push_back(draws.back().b);
  }
  if (!draws.empty()) {
    out.a_summary = summarise(a);
    out.b_summary = summarise(b);
  }
  const int points = 25;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (int i = 0; i < points; ++i) {
    const double c = fit.c.lo * std::pow(10 * fit.c.hi / fit.c.lo, i / double(points - 1));
    OptimumPoint p{c,
                   best.k_n * std::pow(c, best.a),
                   best.k_d * std::pow(c, best.b),
                   0,
                   nan,
                   nan,
                   nan,
                   nan,
                   nan,
                   nan};
    p.loss = loss_at(fit.params, p.n, p.d);
    if (!draws.empty()) {
      std::vector<double> n, d, loss;
      for (size_t k = 0; k < draws.size(); ++k) {
        n.push_back(draws[k].k_n * std::pow(c, draws[k].a));
        d.push_back(draws[k].k_d * std::pow(c, draws[k].b));
        loss.push_back(loss_at(fit.draws[k], n.back(), d.back()));
      }
      const ParamSummary sn = summarise(n), sd = summarise(d), sl = summarise(loss);
      p.n_lo = sn.lo, p.n_hi = sn.hi, p.d_lo = sd.lo, p.d_hi = sd.hi;
      p.loss_lo = sl.lo, p.loss_hi = sl.hi;
    }
    out.curve.push_back(p);
  }
  return out;
}

HeldOut hold_out(const Law& law, const Selection& selection, const FitOptions& options,
                 const FitResult& fit, const Solution& best) {
  HeldOut out;
  out.from_flops = fit.c.hi / options.holdout_factor;
  std::vector<Observation> kept, held;
  for (size_t i = 0; i < selection.size(); ++i) {
    const double flops = selection.flops[i];
    (flops > out.from_flops ? held : kept).push_back(selection.data[i]);
    if (flops <= out.from_flops) out.fitted_to = std::max(out.fitted_to, flops);
  }
  if (const std::string why = unidentified(law, kept); !why.empty())
    throw NumericError("--holdout largest leaves {}", why);
  const std::vector<double> weights(kept.size(), 1);
  const auto shared = law.affine() ? make_lse_data(law, kept) : nullptr;
  const auto objective = make_objective(law, kept, shared, weights, fit.delta);
  std::vector<std::vector<double>> starts = law.starts();
  starts.push_back(best.theta);
  const std::vector<double> theta =
      minimise_from_all(*objective, starts, options.threads).best.theta;
  const Residuals at = residuals_at(law, held, theta);
  out.points = static_cast<int>(held.size());
  for (const double r : at.r) {
    out.rmse_log += r * r / out.points;
    out.mean_log += r / out.points;
    out.worst_log = std::max(out.worst_log, std::abs(r));
  }
  out.rmse_log = std::sqrt(out.rmse_log);
  return out;
}

void refuse_or_warn(const std::string& why, const FitOptions& options, FitResult& result) {
  if (why.empty()) return;
  if (!options.force)
    throw NumericError(
        "refused: {}. More runs over a wider range are the remedy; --force fits anyway", why);
  result.warnings.push_back("forced: " + why);
}

void say_doubts(const Law& law, FitResult& result) {
  if (result.starts > 1 && result.arrived == 1)
    result.warnings.push_back("a single start of the grid arrived at the best objective");
  if (result.bootstrap_failed > 0)
    result.warnings.push_back(fmt::format("{} of {} bootstrap fits did not end at finite values",
                                          result.bootstrap_failed, result.bootstrap));
  for (size_t p = 0; p < result.bootstrap_params.size(); ++p) {
    const ParamSummary& s = result.bootstrap_params[p];
    if (std::abs(result.params[p]) > 0 && s.hi - s.lo > 4 * std::abs(result.params[p]))
      result.warnings.push_back(
          fmt::format("{} is barely determined: 95 % interval {:.3g} … {:.3g}",
                      result.param_names[p], s.lo, s.hi));
  }
  if (!result.optimum) return;
  if (result.optimum->a <= 0 || result.optimum->a >= 1)
    result.warnings.push_back(
        fmt::format("exponent a of N* is {:.3g}, outside 0 … 1: alpha or beta is not positive",
                    result.optimum->a));
  const double n_star = result.optimum->k_n * std::pow(result.c.hi, result.optimum->a);
  if (law.covers_experts()) return;
  if (!result.n.contains(n_star))
    result.warnings.push_back(fmt::format(
        "at the largest compute {:.3g} the optimum N {:.3g} is outside the runs' {:.3g} … {:.3g}: "
        "minimum on the edge of the grid",
        result.c.hi, n_star, result.n.lo, result.n.hi));
}

}  // namespace

FitResult fit_parametric(const Law& law, const Selection& selection, const FitOptions& options) {
  FitResult result;
  result.law = law.name();
  result.approach = 3;
  result.n_definition = n_definition_of(law, selection);
  result.seed = options.seed;
  fill_ranges(selection, result);
  for (const ParamInfo& p : law.params()) result.param_names.push_back(p.name);
  refuse_or_warn(unidentified(law, selection.data), options, result);

  result.delta = options.delta > 0 ? options.delta : law.default_delta();
  const std::vector<double> weights(selection.size(), 1);
  const auto shared = law.affine() ? make_lse_data(law, selection.data) : nullptr;
  const auto objective = make_objective(law, selection.data, shared, weights, result.delta);
  const MultiStart found = minimise_from_all(*objective, law.starts(), options.threads);
  if (!std::isfinite(found.best.value))
    throw NumericError("law {}: no start of {} reached a finite objective", law.name(),
                       found.starts);
  result.starts = found.starts;
  result.arrived = found.arrived;
  result.objective = objective->plain(found.best.value);
  result.params = law.publish(found.best.theta);
  result.choices["loss"] =
      std::isfinite(result.delta)
          ? fmt::format("Huber on ln L, delta {:g}, sum scaled by 1/delta^2", result.delta)
          : "least squares on ln L";
  result.choices["starts"] = fmt::format("{} from the law's grid", result.starts);

  const Residuals at = residuals_at(law, selection.data, found.best.theta);
  refuse_or_warn(singular_at(law, at), options, result);
  result.standard_errors = robust_errors(law, found.best.theta, at, result.delta);
  double mean = 0, total = 0, rest = 0;
  for (const Observation& o : selection.data)
    mean += std::log(o.loss) / static_cast<double>(selection.size());
  for (size_t i = 0; i < selection.size(); ++i) {
    total += std::pow(std::log(selection.data[i].loss) - mean, 2);
    rest += at.r[i] * at.r[i];
  }
  result.r2 = 1 - rest / total;
  result.rmse_log = std::sqrt(rest / static_cast<double>(selection.size()));
  if (options.bootstrap > 0) {
    const Timer timer;
    bootstrap(law, selection, shared, options, result.delta, found.best, result);
    result.bootstrap_seconds = timer.seconds();
  }
  if (options.holdout) {
    try {
      result.held_out = hold_out(law, selection, options, result, found.best);
    } catch (const NumericError& error) {  // says nothing about the fit to all runs
      result.warnings.push_back(fmt::format("nothing held out: {}", error.what()));
    }
  }
  if (is_closed_form(law)) result.optimum = optimum_of(result);
  say_doubts(law, result);
  return result;
}

}  // namespace degu::scaling
