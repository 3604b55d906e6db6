#include "scaling/plan/planner.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <numeric>

#include "base/error.h"
#include "base/random.h"
#include "scaling/plan/frontier.h"

namespace degu::scaling {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kSameBudget = 1.1;  // runs are whole steps, so their FLOPs miss a budget by some

class Planner {
 public:
  Planner(const PlanProblem& problem, const ShapeSpace& space) : p_(problem) {
    const ParameterCount definition = p_.law->n_definition();
    for (const ExpertGroup& group : p_.groups) {
      const auto at = std::find(p_.fit->groups.begin(), p_.fit->groups.end(), group);
      const int index =
          at == p_.fit->groups.end() ? 0 : static_cast<int>(at - p_.fit->groups.begin());
      for (ShapeOption& option :
           enumerate_shapes(space, group, index, n_definition(*p_.fit, definition))) {
        ++plan_.considered;
        const bool fits = (p_.train_memory <= 0 || option.train_bytes <= p_.train_memory) &&
                          (p_.serve_memory <= 0 || option.serve_bytes <= p_.serve_memory);
        if (fits) {
          options_.push_back(option);
        } else {
          ++plan_.too_large;
        }
      }
    }
    if (options_.empty())
      throw ConfigError("plan: none of {} shapes fits the memory limit; raise it or allow others",
                        plan_.considered);
    std::stable_sort(options_.begin(), options_.end(),
                     [](const auto& a, const auto& b) { return a.train_flops < b.train_flops; });
    for (const ShapeOption& option : options_) budget_.push_back(budget_of(option));
  }

  Plan run() {
    best_ = choose(p_.fit->params);
    plan_.best = describe(best_);
    carry_draws();
    add_alternatives();
    say_warnings();
    return std::move(plan_);
  }

  static ParameterCount n_definition(const FitResult& fit, ParameterCount fallback) {
    constexpr auto names = enum_names(ParameterCount{});
    for (size_t i = 0; i < names.size(); ++i)
      if (names[i] == fit.n_definition) return static_cast<ParameterCount>(i);
    return fallback;
  }

 private:
  double utilisation(const ShapeOption& option) const {
    if (!p_.utilisation.empty()) return p_.utilisation.at(option.train_flops);
    return p_.default_utilisation > 0 ? p_.default_utilisation : kNan;
  }
  double budget_of(const ShapeOption& option) const {
    return p_.flops > 0 ? p_.flops : p_.hours * 3600 * p_.peak * utilisation(option);
  }
  LawInput input(const ShapeOption& option, double d) const {
    return {.n = option.n,
            .d = d,
            .experts = option.group.experts,
            .top_k = option.group.top_k,
            .granularity = option.group.granularity,
            .group = option.group_index};
  }
  double loss(const std::vector<double>& params, size_t i) const {
    const ShapeOption& option = options_[i];
    return p_.law->predict(params, input(option, budget_[i] / option.train_flops));
  }
  double lifetime(const ShapeOption& option, double d) const {
    return option.train_flops * d +
           p_.inference_cost * option.inference_flops * p_.inference_tokens;
  }

  // Lifetime cost of option i at the budget over the cheapest lifetime with its loss. The cheapest
  // is looked for among the options of at most that loss: every option, at the tokens that bring it
  // there.
  double excess(const std::vector<double>& params, size_t i) const {
    const double target = loss(params, i);
    const double own = lifetime(options_[i], budget_[i] / options_[i].train_flops);
    double cheapest = own;
    for (const ShapeOption& other : options_) {
      const double d = tokens_for_loss(*p_.law, params, input(other, 1), target);
      if (std::isfinite(d)) cheapest = std::min(cheapest, lifetime(other, d));
    }
    return own / cheapest - 1;
  }

  // Among equals in loss (within a tenth of what the data can tell) the most usual width per layer.
  size_t most_usual(const std::vector<double>& score, double tolerance) const {
    const double least = *std::min_element(score.begin(), score.end());
    size_t best = 0;
    double best_aspect = kInfinity;
    for (size_t i = 0; i < score.size(); ++i) {
      if (score[i] > least + tolerance || options_[i].aspect >= best_aspect) continue;
      best_aspect = options_[i].aspect;
      best = i;
    }
    return best;
  }

  std::vector<double> losses(const std::vector<double>& params) const {
    std::vector<double> out(options_.size());
    for (size_t i = 0; i < out.size(); ++i) out[i] = loss(params, i);
    return out;
  }

  size_t choose(const std::vector<double>& params) const {
    const std::vector<double> all = losses(params);
    const double least = *std::min_element(all.begin(), all.end());
    if (p_.inference_tokens <= 0) return most_usual(all, 1e-4 * least);
    // Lifetime: only options near the training optimum or smaller can be on the frontier, so the
    // search skips the rest: those that a cheaper option to serve beats in loss.
    std::vector<double> score(options_.size(), kInfinity);
    for (size_t i = 0; i < options_.size(); ++i) {
      const bool beaten = std::any_of(options_.begin(), options_.end(), [&](const ShapeOption& o) {
        const size_t j = static_cast<size_t>(&o - options_.data());
        return o.inference_flops < options_[i].inference_flops && all[j] < all[i];
      });
      if (!beaten) score[i] = excess(params, i);
    }
    return most_usual(score, 1e-4);
  }

  PlannedModel describe(size_t i) const {
    return describe(options_[i], budget_[i] / options_[i].train_flops);
  }

  PlannedModel describe(const ShapeOption& option, double d) const {
    PlannedModel out;
    out.option = option;
    out.d = d;
    out.flops = option.train_flops * d;
    out.inference_flops = option.inference_flops * p_.inference_tokens;
    out.loss = p_.law->predict(p_.fit->params, input(option, d));
    const double rate = p_.peak * utilisation(option);
    out.hours = rate > 0 ? out.flops / rate / 3600 : kNan;
    out.money = out.hours * p_.price_per_hour;
    out.inference_money = out.inference_flops * p_.inference_cost / rate / 3600 * p_.price_per_hour;
    out.loss_lo = out.loss_hi = out.measured_lo = out.measured_hi = kNan;
    if (p_.fit->draws.empty()) return out;
    const RandomStream noise(p_.seed, "plan.scatter");
    const Scatter scatter = scatter_at(out.flops);
    std::vector<double> law, run;
    // Pivotal: as a resample's fit lies from this fit, so this fit lies from the law. Resamples
    // hold fewer distinct runs, and where that alone makes them predict too much, so does this fit.
    for (size_t k = 0; k < p_.fit->draws.size(); ++k) {
      law.push_back(out.loss * out.loss / p_.law->predict(p_.fit->draws[k], input(option, d)));
      run.push_back(law.back() * std::exp(scatter.sigma * student_t(noise, k, scatter.freedom)));
    }
    const ParamSummary a = summarise(law), b = summarise(run);
    out.loss_lo = a.lo, out.loss_hi = a.hi;
    out.measured_lo = b.lo, out.measured_hi = b.hi;
    return out;
  }

  // Of ln L about the law: a standard deviation, and from how many values it was estimated.
  struct Scatter {
    double sigma = 0;
    int freedom = 1;
  };

  // Beyond the runs, what the law itself is wrong by is the larger part. Its error on the held-out
  // largest budget is the best witness of that, where the fit has one; it was made one step beyond
  // what was fitted and grows with the step.
  Scatter scatter_at(double flops) const {
    const FitResult& fit = *p_.fit;
    const int freedom = std::max(1, fit.n_points - static_cast<int>(fit.params.size()));
    const Scatter runs{fit.rmse_log * std::sqrt(static_cast<double>(fit.n_points) / freedom),
                       freedom};
    if (!(flops > kSameBudget * fit.c.hi) || !fit.held_out) return runs;
    const double step = std::log(flops / fit.c.hi);
    const double tested = std::log(fit.c.hi / fit.held_out->fitted_to);
    const Scatter beyond{fit.held_out->rmse_log * std::max(1.0, step / tested),
                         fit.held_out->points};
    return beyond.sigma > runs.sigma ? beyond : runs;
  }

  // Student's t: a normal error whose size is known from `freedom` values alone.
  static double student_t(const RandomStream& noise, uint64_t index, int freedom) {
    const uint64_t first = index * static_cast<uint64_t>(freedom + 1);
    double squares = 0;
    for (int i = 1; i <= freedom; ++i) {
      const double z = noise.normal(first + static_cast<uint64_t>(i));
      squares += z * z;
    }
    return noise.normal(first) / std::sqrt(squares / freedom);
  }

  // What each resample of the runs would have planned.
  void carry_draws() {
    plan_.n_lo = plan_.n_hi = plan_.d_lo = plan_.d_hi = kNan;
    const size_t count =
        std::min(p_.fit->draws.size(), static_cast<size_t>(std::max(0, p_.max_draws)));
    if (count == 0) return;
    std::vector<double> n, d;
    std::map<ExpertGroup, int> chosen;
    // The lifetime choice costs a search per option; its draws use the fast criterion at the same
    // trade-off: the loss is compared at equal lifetime cost with the best plan.
    const double lifetime_budget =
        lifetime(options_[best_], budget_[best_] / options_[best_].train_flops);
    for (size_t k = 0; k < count; ++k) {
      const std::vector<double>& params = p_.fit->draws[k];
      double least = kInfinity;
      size_t best = 0;
      double best_d = 0;
      for (size_t i = 0; i < options_.size(); ++i) {
        const ShapeOption& o = options_[i];
        double tokens = budget_[i] / o.train_flops;
        if (p_.inference_tokens > 0)
          tokens = (lifetime_budget - p_.inference_cost * o.inference_flops * p_.inference_tokens) /
                   o.train_flops;
        if (!(tokens > 1)) continue;
        const double value = p_.law->predict(params, input(o, tokens));
        if (!(value < least)) continue;
        least = value;
        best = i;
        best_d = tokens;
      }
      n.push_back(options_[best].n);
      d.push_back(best_d);
      ++chosen[options_[best].group];
    }
    const ParamSummary sn = summarise(n), sd = summarise(d);
    plan_.n_lo = sn.lo, plan_.n_hi = sn.hi;
    plan_.d_lo = sd.lo, plan_.d_hi = sd.hi;
    plan_.draws = static_cast<int>(count);
    for (const auto& [group, times] : chosen)
      plan_.group_share.emplace_back(group.label(), times / static_cast<double>(count));
  }

  void add(const std::string& label, const PlannedModel& model) {
    plan_.labels.push_back(label);
    plan_.alternatives.push_back(model);
  }

  // The option of a group with the lowest loss within a range of N.
  std::optional<size_t> lowest(const ExpertGroup& group, double n_least, double n_most) const {
    std::optional<size_t> out;
    double least = kInfinity, aspect = kInfinity;
    for (size_t i = 0; i < options_.size(); ++i) {
      if (options_[i].group != group || options_[i].n < n_least || options_[i].n > n_most) continue;
      const double value = loss(p_.fit->params, i);
      const bool better =
          value < least * (1 - 1e-4) || (value < least * (1 + 1e-4) && options_[i].aspect < aspect);
      if (!better) continue;
      out = i;
      least = value;
      aspect = options_[i].aspect;
    }
    return out;
  }

  void add_alternatives() {
    const ShapeOption& best = options_[best_];
    for (const ExpertGroup& group : p_.groups) {
      if (group == best.group) continue;
      if (const auto i = lowest(group, 0, kInfinity)) add("best " + group.label(), describe(*i));
    }
    // The option of the best's own group nearest to a size.
    for (const double factor : {.25, .5, 2., 4.}) {
      std::optional<size_t> near;
      double least = std::log(1.25);
      for (size_t i = 0; i < options_.size(); ++i) {
        if (options_[i].group != best.group) continue;
        const double off =
            std::abs(std::log(options_[i].n / (factor * best.n))) + .1 * options_[i].aspect;
        if (off >= least) continue;
        least = off;
        near = i;
      }
      if (near) add(fmt::format("{:g} x N", factor), describe(*near));
    }
    if (p_.inference_tokens <= 0) return;
    const std::vector<double> all = losses(p_.fit->params);
    const size_t trained = most_usual(all, 1e-4 * *std::min_element(all.begin(), all.end()));
    if (trained != best_) add("lowest loss for the training budget", describe(trained));
    plan_.best.lifetime_excess = excess(p_.fit->params, best_);
    double cheapest = kInfinity, tokens = 0;
    const ShapeOption* option = nullptr;
    for (const ShapeOption& other : options_) {
      const double d = tokens_for_loss(*p_.law, p_.fit->params, input(other, 1), all[trained]);
      if (!std::isfinite(d) || lifetime(other, d) >= cheapest) continue;
      cheapest = lifetime(other, d);
      option = &other;
      tokens = d;
    }
    if (option) add("the same loss at the least lifetime cost", describe(*option, tokens));
  }

  void say_warnings() {
    const PlannedModel& m = plan_.best;
    if (m.flops > p_.extrapolation * p_.fit->c.hi)
      plan_.warnings.push_back(
          fmt::format("extrapolation: {:.3g} FLOPs are {:.1f} times the largest run's {:.3g}",
                      m.flops, m.flops / p_.fit->c.hi, p_.fit->c.hi));
    if (!p_.fit->n.contains(m.option.n))
      plan_.warnings.push_back(fmt::format("N {:.3g} is outside the runs' {:.3g} … {:.3g}",
                                           m.option.n, p_.fit->n.lo, p_.fit->n.hi));
    if (!p_.fit->d.contains(m.d))
      plan_.warnings.push_back(fmt::format("D {:.3g} is outside the runs' {:.3g} … {:.3g}", m.d,
                                           p_.fit->d.lo, p_.fit->d.hi));
    double least = kInfinity, most = 0;
    for (const ShapeOption& option : options_) {
      if (option.group != m.option.group) continue;
      least = std::min(least, option.n);
      most = std::max(most, option.n);
    }
    if (m.option.n <= least * 1.001 || m.option.n >= most / 1.001)
      plan_.warnings.push_back(
          fmt::format("the best N {:.3g} is at the edge of the shapes considered ({:.3g} … {:.3g})",
                      m.option.n, least, most));
    if (plan_.too_large > 0)
      plan_.warnings.push_back(fmt::format("{} of {} shapes are above the memory limit",
                                           plan_.too_large, plan_.considered));
    if (p_.fit->draws.empty())
      plan_.warnings.push_back(
          "no intervals: the fit was made without --bootstrap or without --out");
  }

  const PlanProblem& p_;
  std::vector<ShapeOption> options_;
  std::vector<double> budget_;
  size_t best_ = 0;
  Plan plan_;
};

}  // namespace

Hardware read_hardware(const std::string& path) {
  if (!std::filesystem::exists(path))
    throw IoError("{}: no such file; `degu bench kernels --out {}` writes it", path, path);
  Hardware out;
  out.file = path;
  try {
    const YAML::Node root = YAML::LoadFile(path);
    const auto get = [&](const char* key) {
      const YAML::Node node = root[key];
      return node ? node.as<double>() : 0.0;
    };
    out.bf16_flops = get("bf16_flops");
    out.fp32_flops = get("fp32_flops");
    out.int8_ops = get("int8_ops");
    out.read_bandwidth = get("read_bandwidth");
  } catch (const YAML::Exception& error) {
    throw DataError("{}: {}", path, error.what());
  }
  if (!(out.bf16_flops > 0) && !(out.fp32_flops > 0))
    throw DataError(
        "{}: neither bf16_flops nor fp32_flops above 0; run `degu bench kernels --out {}`", path,
        path);
  return out;
}

UtilisationCurve::UtilisationCurve(std::vector<double> flops_per_token,
                                   std::vector<double> utilisation) {
  std::vector<size_t> order(flops_per_token.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return flops_per_token[a] < flops_per_token[b]; });
  // Runs within a quarter octave count as one point, their mean.
  for (size_t begin = 0; begin < order.size();) {
    double x = 0, y = 0;
    size_t end = begin;
    for (; end < order.size() && flops_per_token[order[end]] < 1.19 * flops_per_token[order[begin]];
         ++end) {
      x += std::log(flops_per_token[order[end]]);
      y += utilisation[order[end]];
    }
    const double count = static_cast<double>(end - begin);
    log_flops_.push_back(x / count);
    value_.push_back(y / count);
    begin = end;
  }
}

double UtilisationCurve::at(double flops_per_token) const {
  const double x = std::log(flops_per_token);
  if (x <= log_flops_.front()) return value_.front();
  if (x >= log_flops_.back()) return value_.back();
  const auto above = std::upper_bound(log_flops_.begin(), log_flops_.end(), x);
  const size_t i = static_cast<size_t>(above - log_flops_.begin());
  const double t = (x - log_flops_[i - 1]) / (log_flops_[i] - log_flops_[i - 1]);
  return value_[i - 1] + t * (value_[i] - value_[i - 1]);
}

Plan make_plan(const PlanProblem& problem, const ShapeSpace& space) {
  if ((problem.flops > 0) == (problem.hours > 0))
    throw ConfigError("plan: give the budget as one of --flops and --hours");
  if (problem.hours > 0 && !(problem.peak > 0))
    throw ConfigError("--hours needs --hardware HW.yaml from `degu bench kernels --out HW.yaml`");
  if (problem.hours > 0 && problem.utilisation.empty() && !(problem.default_utilisation > 0))
    throw ConfigError(
        "--hours: the fitted runs hold no utilisation; give one with --utilisation (for example "
        "0.3)");
  if (problem.fit->approach != 3)
    throw ConfigError(
        "plan: the fit is by approach {}, which predicts no loss; fit by approach 3 or --law "
        "multipliers",
        problem.fit->approach);
  return Planner(problem, space).run();
}

std::vector<ExpertGroup> allowed_groups(const Law& law, const FitResult& fit,
                                        const std::vector<int>& experts) {
  if (experts.empty()) return fit.groups;
  std::vector<ExpertGroup> out;
  std::string measured;
  for (const ExpertGroup& g : fit.groups) measured += (measured.empty() ? "" : ", ") + g.label();
  for (const int wanted : experts) {
    const double e = std::max(1, wanted);
    const size_t before = out.size();
    for (const ExpertGroup& group : fit.groups)
      if (group.experts == e) out.push_back(group);
    if (out.size() > before) continue;
    const bool interpolates = law.name() != "multipliers" && law.covers_experts() &&
                              !fit.groups.empty() && e > fit.groups.front().experts &&
                              e < fit.groups.back().experts;
    if (!interpolates)
      throw ConfigError("--experts {}: neither measured nor covered by law {}; measured: {}",
                        wanted, law.name(), measured);
    out.push_back(
        {e, fit.groups.back().top_k, fit.groups.back().granularity, fit.groups.back().shared});
  }
  return out;
}

int64_t round_tokens(double tokens, int64_t step_tokens) {
  const int64_t steps =
      std::max<int64_t>(1, std::llround(tokens / static_cast<double>(step_tokens)));
  const double rounded = static_cast<double>(steps * step_tokens);
  if (std::abs(rounded / tokens - 1) > .03)
    throw ConfigError(
        "plan: {:.4g} tokens are not within 3 % of whole steps of {} tokens; lower "
        "train.batch_sequences in the base configuration",
        tokens, step_tokens);
  return steps * step_tokens;
}

}  // namespace degu::scaling
