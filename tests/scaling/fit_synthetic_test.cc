// All approaches on runs made from a known law, and what is refused.
#include <catch2/catch.hpp>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/random.h"
#include "scaling/fit/fit.h"
#include "scaling/fit/fit_json.h"
#include "scaling/laws/multipliers.h"
#include "scaling/laws/registry.h"

namespace degu::scaling {
namespace {

const std::vector<double> kTruth = {1.7, 450, 1900, .33, .37};

// IsoFLOP runs around the law's optimum: `sizes` per budget, a factor of `step` apart, shifted by
// `shift` steps.
Selection isoflop_runs(const Law& law, std::span<const double> published, int budgets, int sizes,
                       double step, double sigma, double shift = 0,
                       std::vector<ExpertGroup> groups = {{}}) {
  const ClosedFormOptimum best = closed_form_optimum(kTruth[1], kTruth[2], kTruth[3], kTruth[4]);
  const RandomStream random(11, "fit_synthetic_test");
  Selection out;
  out.groups = groups;
  out.used["N"] = "n_total";
  for (size_t g = 0; g < groups.size(); ++g) {
    for (int b = 0; b < budgets; ++b) {
      const double c = 1e18 * std::pow(3, b);
      for (int s = 0; s < sizes; ++s) {
        Observation o;
        o.x.n = best.k_n * std::pow(c, best.a) * std::pow(step, s - (sizes - 1) / 2.0 + shift);
        o.x.d = c / (6 * o.x.n);
        o.x.experts = groups[g].experts;
        o.x.top_k = groups[g].top_k;
        o.x.granularity = groups[g].granularity;
        o.x.group = static_cast<int>(g);
        o.loss = law.predict(published, o.x) * std::exp(sigma * random.normal(out.size()));
        o.row = static_cast<int>(out.size());
        out.data.push_back(o);
        out.flops.push_back(c);
        out.budget.push_back(c);
        out.run.push_back("run " + std::to_string(out.size()));
      }
    }
  }
  return out;
}

TEST_CASE(
    "approach 3 gives exact data's law back, with intervals that hold the truth under noise") {
  const auto law = make_chinchilla();
  const Selection exact = isoflop_runs(*law, kTruth, 5, 6, 1.6, 0);
  const FitResult fit = fit_law(*law, exact, {.threads = 2, .delta = INFINITY});
  for (int i = 0; i < 5; ++i) CHECK(fit.params[i] == Approx(kTruth[i]).epsilon(1e-5));
  const Selection noisy = isoflop_runs(*law, kTruth, 6, 8, 1.8, .003);
  const FitResult again = fit_law(
      *law, noisy, {.bootstrap = 400, .seed = 3, .threads = 2, .delta = .01, .holdout = true});
  for (int i : {0, 3, 4}) {
    CHECK(again.bootstrap_params[i].lo < kTruth[i]);
    CHECK(again.bootstrap_params[i].hi > kTruth[i]);
    // Both measure the same spread.
    CHECK(again.standard_errors[i] == Approx(again.bootstrap_params[i].se).epsilon(.5));
  }
  REQUIRE(again.held_out);
  CHECK(again.held_out->points == 8);
  CHECK(again.held_out->rmse_log < .01);
  CHECK(again.r2 > .99);
}

TEST_CASE("a hold-out that leaves too little is a warning, not the end of the fit") {
  const auto law = make_chinchilla();
  const Selection runs = isoflop_runs(*law, kTruth, 2, 6, 1.6, .001);
  const FitResult fit = fit_law(*law, runs, {.threads = 2, .delta = .01, .holdout = true});
  CHECK_FALSE(fit.held_out);
  REQUIRE(!fit.warnings.empty());
  CHECK_THAT(fit.warnings[0], Catch::Contains("nothing held out"));
}

TEST_CASE("approaches 1 and 2 find the exponents of the optimum") {
  const auto law = make_chinchilla();
  const double a = kTruth[4] / (kTruth[3] + kTruth[4]);
  const Selection runs = isoflop_runs(*law, kTruth, 5, 7, 1.5, 0);
  for (const Interpolation how : {Interpolation::kParabola, Interpolation::kAkima}) {
    const FitResult two = fit_law(*law, runs, {.approach = 2, .interpolation = how});
    REQUIRE(two.minima.size() == 5);
    CHECK(two.params[0] == Approx(a).epsilon(.01));
    CHECK(two.params[0] + two.params[1] == Approx(1).epsilon(1e-3));
    for (const IsoflopMinimum& m : two.minima) CHECK_FALSE(m.at_edge);
  }
  for (const Envelope envelope : {Envelope::kHull, Envelope::kBins}) {
    const FitResult one =
        fit_law(*law, runs, {.approach = 1, .bootstrap = 20, .envelope = envelope});
    CHECK(one.params[0] == Approx(a).epsilon(.01));
    CHECK(one.choices.at("envelope").find(envelope == Envelope::kHull ? "hull" : "bin") !=
          std::string::npos);
  }
  const Selection noisy = isoflop_runs(*law, kTruth, 5, 7, 1.5, .001);
  const FitResult fit = fit_law(*law, noisy, {.approach = 2, .bootstrap = 300});
  CHECK(fit.bootstrap_params[0].lo < a);
  CHECK(fit.bootstrap_params[0].hi > a);
}

TEST_CASE("a minimum on the edge is refused, forced or dropped") {
  const auto law = make_chinchilla();
  Selection runs = isoflop_runs(*law, kTruth, 3, 5, 1.5, 0);
  const Selection beside = isoflop_runs(*law, kTruth, 1, 5, 1.3, 0, 6);
  for (size_t i = 0; i < beside.size(); ++i) {
    runs.data.push_back(beside.data[i]);
    runs.flops.push_back(7e19);
    runs.budget.push_back(7e19);
    runs.run.push_back("beside");
  }
  FitOptions options{.approach = 2};
  CHECK_THROWS_AS(fit_law(*law, runs, options), NumericError);
  options.edge = EdgePolicy::kDrop;
  const FitResult dropped = fit_law(*law, runs, options);
  CHECK_FALSE(dropped.minima.back().kept);
  CHECK(!dropped.warnings.empty());
  options.edge = EdgePolicy::kRefuse;
  options.force = true;
  CHECK(fit_law(*law, runs, options).minima.back().kept);
}

TEST_CASE("too few or too uniform runs are refused") {
  const auto law = make_chinchilla();
  const Selection few = isoflop_runs(*law, kTruth, 1, 6, 1.5, 0);
  CHECK_THROWS_WITH(fit_law(*law, few, {}), Catch::Contains("at least 7"));
  Selection uniform = isoflop_runs(*law, kTruth, 2, 8, 1.5, .001);
  for (Observation& o : uniform.data) o.x.d = 1e10;
  CHECK_THROWS_WITH(fit_law(*law, uniform, {}), Catch::Contains("different D"));
  // D proportional to N: A/N^alpha and B/D^beta look alike.
  Selection line = isoflop_runs(*law, kTruth, 4, 5, 1.5, 0);
  for (Observation& o : line.data) {
    o.x.d = 20 * o.x.n;
    o.loss = 2 + 300 * std::pow(o.x.n, -.3);
  }
  CHECK_THROWS_AS(fit_law(*law, line, {.threads = 2}), NumericError);
  CHECK_THROWS_AS(fit_law(*make_clark(), few, {.approach = 2}), ConfigError);
}

TEST_CASE("multipliers come back from a small sweep, with intervals") {
  const std::vector<ExpertGroup> groups = {{}, {8, 2, 2}, {16, 2, 2}};
  const auto law = make_multipliers(groups);
  std::vector<double> truth = kTruth;
  truth.insert(truth.end(), {2.2, 3.1});
  const Selection runs = isoflop_runs(*law, truth, 3, 5, 1.6, .0005, 0, groups);
  const FitResult fit = fit_law(*law, runs, {.bootstrap = 200, .threads = 2, .delta = .01});
  CHECK(fit.params[5] == Approx(2.2).epsilon(.1));
  CHECK(fit.params[6] == Approx(3.1).epsilon(.1));
  for (const int i : {5, 6})
    CHECK(std::abs(fit.params[i] - truth[i]) < 3 * fit.bootstrap_params[i].se);
  CHECK(fit.bootstrap_failed == 0);
  const auto json = fit_to_json(fit, true);
  CHECK(json["params"]["m E8 K2 G2"].get<double>() == fit.params[5]);
  const FitResult back = fit_from_json(json, "memory");
  CHECK(back.params == fit.params);
  CHECK(back.draws == fit.draws);
  CHECK(back.groups == fit.groups);
  CHECK(back.n.hi == fit.n.hi);
  auto broken = json;
  broken.erase("groups");
  CHECK_THROWS_WITH(fit_from_json(broken, "FIT.json"), Catch::Contains("FIT.json: key \"groups\""));
}

}  // namespace
}  // namespace degu::scaling
