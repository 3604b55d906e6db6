// The fitter on published runs against published, recomputed optima (docs/laws.md).
#include <catch2/catch.hpp>
#include <cmath>

#include "published_runs.h"
#include "scaling/fit/fit.h"
#include "scaling/laws/registry.h"
#include "shared_data.h"

namespace degu::scaling {
namespace {

constexpr const char* kChinchillaRuns = "besiroglu_2024_chinchilla_runs.csv";
constexpr const char* kClarkRuns = "clark_2022_routed_curves.csv.gz";

struct Expected {
  int dropped;
  int points;
  double e, a, b, alpha, beta, objective;
};

TEST_CASE("approach 3 finds the optimum of the published runs") {
  const auto path = shared_data(kChinchillaRuns);
  if (!path) return;
  const Expected cases[] = {
      {5, 240, 1.817218099, 477.825868, 2143.41736, .3473104989, .3671724326, .0010182740178},
      {0, 245, 1.891338499, 495.726009, 12845.6133, .3493128937, .4530492956, .0018260105231},
  };
  for (const Expected& expected : cases) {
    const Selection runs = chinchilla_runs(*path, expected.dropped);
    CHECK(static_cast<int>(runs.excluded.size()) == expected.dropped);
    const FitResult fit = fit_law(*make_chinchilla(), runs, {.threads = 2});
    REQUIRE(fit.n_points == expected.points);
    CHECK(fit.starts == 4500);
    CHECK(fit.arrived > 450);
    CHECK(std::abs(fit.objective / expected.objective - 1) < 1e-8);
    CHECK(std::abs(fit.params[0] - expected.e) < 1e-5);
    CHECK(std::abs(fit.params[1] / expected.a - 1) < 1e-3);
    CHECK(std::abs(fit.params[2] / expected.b - 1) < 1e-3);
    CHECK(std::abs(fit.params[3] - expected.alpha) < 2e-5);
    CHECK(std::abs(fit.params[4] - expected.beta) < 2e-5);
  }
}

TEST_CASE("the objective at published constants") {
  const auto path = shared_data(kChinchillaRuns);
  if (!path) return;
  const Selection runs = chinchilla_runs(*path, 5);
  const auto law = make_chinchilla();
  struct Row {
    std::vector<double> params;
    double objective, tolerance;
  };
  const Row rows[] = {
      {{1.69, 406.4, 410.7, .34, .28}, .004121009, 1e-6},
      {{1.6934, 406.40, 410.72, .33917084, .2849083}, .00123, 5e-3},  // E is known rounded
      {{1.8172, 482.01, 2085.43, .3478, .3658}, .001022843, 1e-6},
      {{1.817218099, 477.825868, 2143.41736, .3473104989, .3671724326}, .0010182740178, 1e-8}};
  for (const Row& row : rows) {
    double sum = 0;
    for (const Observation& o : runs.data)
      sum += huber(std::log(law->predict(row.params, o.x)) - std::log(o.loss), 1e-3);
    CHECK(sum == Approx(row.objective).epsilon(row.tolerance));
  }
  // The printed constants prescribe five times the tokens.
  const ClosedFormOptimum printed = closed_form_optimum(406.4, 410.7, .34, .28);
  const double c = 5.76e23;
  CHECK(printed.k_d * std::pow(c, printed.b) / (printed.k_n * std::pow(c, printed.a)) ==
        Approx(92.6).epsilon(1e-3));
}

TEST_CASE("the optimum of the published runs prescribes about 18 tokens per parameter") {
  const auto path = shared_data(kChinchillaRuns);
  if (!path) return;
  const FitResult fit = fit_law(*make_chinchilla(), chinchilla_runs(*path, 5), {.threads = 2});
  REQUIRE(fit.optimum);
  const Optimum& best = *fit.optimum;
  const auto n_star = [&](double c) { return best.k_n * std::pow(c, best.a); };
  const auto d_star = [&](double c) { return best.k_d * std::pow(c, best.b); };
  CHECK(std::abs(n_star(1e21) / 2.79174e9 - 1) < 1e-5);
  CHECK(std::abs(d_star(1e21) / 5.970e10 - 1) < 1e-4);
  CHECK(std::abs(n_star(5.76e23) / 7.31904e10 - 1) < 1e-5);
  CHECK(std::abs(d_star(5.76e23) / n_star(5.76e23) - 17.92) < 5e-3);
}

TEST_CASE("bootstrap standard errors agree with the published ones") {
  const auto path = shared_data(kChinchillaRuns);
  if (!path) return;
  const Selection runs = chinchilla_runs(*path, 5);
  const FitResult fit =
      fit_law(*make_chinchilla(), runs, {.bootstrap = 4000, .seed = 1, .threads = 2});
  REQUIRE(fit.bootstrap_failed == 0);
  const double se[] = {.0257, 124.5, 1293, .0154, .0206};
  const double tolerance[] = {.05, .06, .15, .05, .05};
  for (int i = 0; i < 5; ++i) {
    INFO(fit.param_names[i] << " " << fit.bootstrap_params[i].se << " against " << se[i]);
    CHECK(std::abs(fit.bootstrap_params[i].se / se[i] - 1) < tolerance[i]);
  }
  // Without resampling the sandwich says nearly the same (B's own distribution is too skewed for
  // it).
  for (const int i : {0, 1, 3, 4})
    CHECK(std::abs(fit.standard_errors[i] / fit.bootstrap_params[i].se - 1) < .3);
  // Published percentile intervals, within a fifth of their width.
  const double intervals[][2] = {{1.769, 1.871}, {.317, .373}, {.331, .415}};
  const int which[] = {0, 3, 4};
  for (int i = 0; i < 3; ++i) {
    const double width = intervals[i][1] - intervals[i][0];
    CHECK(std::abs(fit.bootstrap_params[which[i]].lo - intervals[i][0]) < .2 * width);
    CHECK(std::abs(fit.bootstrap_params[which[i]].hi - intervals[i][1]) < .2 * width);
  }
  REQUIRE(fit.optimum->a_summary);
  CHECK(std::abs(fit.optimum->a_summary->lo - .481) < .015);
  CHECK(std::abs(fit.optimum->a_summary->hi - .556) < .015);
}

TEST_CASE("neither threads nor a repetition change a fit") {
  const auto path = shared_data(kChinchillaRuns);
  if (!path) return;
  const Selection runs = chinchilla_runs(*path, 5);
  const FitResult one = fit_law(*make_chinchilla(), runs, {.bootstrap = 50, .threads = 1});
  const FitResult three = fit_law(*make_chinchilla(), runs, {.bootstrap = 50, .threads = 3});
  CHECK(one.params == three.params);
  CHECK(one.objective == three.objective);
  CHECK(one.draws == three.draws);
}

TEST_CASE("Clark's laws are refitted on the released runs") {
  const auto path = shared_data(kClarkRuns);
  if (!path) return;
  struct Router {
    const char* name;
    int points;
    double params[6];
    double rmse_log10;
    double linear[4];
  };
  const Router routers[] = {
      {"S-Base",
       58,
       {-.08303, -.11804, .00992, 1.1136, 2.075, 238.7},
       .0032,
       {-.08012123, -.08813133, .00741573, 1.07897391}},
      {"RL-R",
       59,
       {-.08273, -.12342, .01123, 1.1070, 1.722, 470.1},
       .0032,
       {-.08042923, -.10283219, .00936249, 1.08171387}},
      {"Hash",
       56,
       {-.08736, -.13836, .01264, 1.1595, 4.269, 427.3},
       .0030,
       {-.08087318, -.09493595, .00864814, 1.08899724}},
  };
  const double half_digit[] = {6e-6, 6e-6, 6e-6, 6e-5, 6e-4, 6e-2};
  for (const Router& router : routers) {
    INFO(router.name);
    const Selection runs = clark_runs(*path, router.name);
    REQUIRE(static_cast<int>(runs.size()) == router.points);
    const FitResult fit = fit_law(*make_clark(), runs, {.threads = 2});
    for (int i = 0; i < 6; ++i) {
      INFO(fit.param_names[i] << " " << fit.params[i]);
      CHECK(std::abs(fit.params[i] - router.params[i]) < half_digit[i]);
    }
    CHECK(std::abs(fit.rmse_log / M_LN10 - router.rmse_log10) < 6e-5);
    const FitResult linear = fit_law(*make_clark_unsaturated(), runs, {});
    for (int i = 0; i < 4; ++i) CHECK(std::abs(linear.params[i] - router.linear[i]) < 1e-8);
    // The same from the grid of the saturated law, whichever start arrived first.
    CHECK(fit.arrived >= fit.starts / 2);
  }
}

// Effective parameter count: the dense size with the loss of (N, E).
TEST_CASE("the refit gives the paper's effective parameter count, the printed constants do not") {
  const auto law = make_clark();
  const auto epc = [&](const std::vector<double>& p, double n, double experts) {
    const double ln_e = saturated_experts(experts, p[4], p[5]).log_e;
    const double ln_start = std::log(p[4]);  // E^ at E = 1
    const auto slope = [&](double ln) { return p[0] + p[2] * ln / M_LN10; };
    return std::pow(n, slope(ln_e) / slope(ln_start)) *
           std::exp((ln_e - ln_start) * p[1] / slope(ln_start));
  };
  const std::vector<PublishedConstants> known = law->published();
  CHECK(std::abs(epc(known[3].values, 5e6, 128) / 54.4e6 - 1) < 5e-3);
  CHECK(std::abs(epc(known[0].values, 5e6, 128) / 55e6 - 1) > .05);
}

}  // namespace
}  // namespace degu::scaling
