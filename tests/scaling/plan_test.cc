// The planner: published optima over continuous families, then real shapes under budgets, memory
// and a lifetime.
#include <catch2/catch.hpp>
#include <cmath>

#include "base/random.h"
#include "scaling/fit/fit.h"
#include "scaling/laws/registry.h"
#include "scaling/plan/frontier.h"
#include "scaling/plan/planner.h"

namespace degu::scaling {
namespace {

TEST_CASE("the joint law's published optima: 1e20 FLOPs") {
  const auto law = make_ludziejewski();
  const auto family = family_of(*law);
  const std::vector<double> params = law->published()[0].values;
  struct Row {
    double experts, n, d;
  };
  for (const Row& row : {Row{1, 1.73e9, 9.66e9}, Row{32, .675e9, 24.7e9}}) {
    const FrontierProblem problem{
        .law = law.get(), .params = params, .family = family.get(), .group = {row.experts, 1, 1}};
    const FrontierPoint best = best_for_training(problem, 1e20);
    INFO("E " << row.experts << ": N " << best.model.n << ", D " << best.d);
    CHECK(std::abs(best.model.n / row.n - 1) < .02);
    CHECK(std::abs(best.d / row.d - 1) < .02);
    CHECK(best.train_flops == Approx(1e20));
  }
}

// Krajewski et al. 2024, Table 2: training FLOPs, dense-equivalent size 12 d² n, tokens,
// granularity.
TEST_CASE("the granularity law's published optima") {
  const auto law = make_krajewski();
  const auto family = make_krajewski_family();
  const std::vector<double> params = law->published()[0].values;
  struct Row {
    double flops, n, d, granularity;
  };
  const Row rows[] = {{2.95e18, 1e8, 4.37e9, 8},      {1.93e20, 1e9, 2.894e10, 16},
                      {1.41e21, 3e9, 7.290e10, 16},   {6.46e21, 7e9, 1.376e11, 32},
                      {4.16e23, 7e10, 9.4107e11, 32}, {5.69e24, 3e11, 2.96e12, 64},
                      {4.97e25, 1e12, 7.94e12, 64}};
  for (const Row& row : rows) {
    FrontierPoint best;
    double best_granularity = 0;
    for (double g = 1; g <= 256; g *= 2) {
      const FrontierProblem problem{
          .law = law.get(), .params = params, .family = family.get(), .group = {64 * g, g, g}};
      const FrontierPoint point = best_for_training(problem, row.flops);
      if (best_granularity > 0 && point.loss >= best.loss) continue;
      best = point;
      best_granularity = g;
    }
    CHECK(best_granularity == row.granularity);
    const double dense = 12 * std::pow(best.size, 3) / 64;
    CHECK(std::abs(dense / row.n - 1) < .03);
    CHECK(std::abs(best.d / row.d - 1) < .03);
  }
}

TEST_CASE("Chinchilla's optimum by search is the closed form") {
  const auto law = make_chinchilla();
  const auto family = make_six_nd_family();
  const std::vector<double> p = law->published()[1].values;
  const ClosedFormOptimum closed = closed_form_optimum(p[1], p[2], p[3], p[4]);
  const FrontierProblem problem{.law = law.get(), .params = p, .family = family.get(), .group = {}};
  for (const double c : {1e18, 1e21, 5.76e23}) {
    const FrontierPoint best = best_for_training(problem, c);
    CHECK(best.model.n == Approx(closed.k_n * std::pow(c, closed.a)).epsilon(1e-5));
    CHECK(best.d == Approx(closed.k_d * std::pow(c, closed.b)).epsilon(1e-5));
  }
}

TEST_CASE(
    "an inference bill: cheapest for a loss and best for a lifetime are one curve, of smaller "
    "models") {
  const auto law = make_chinchilla();
  const auto family = make_six_nd_family();
  const std::vector<double> p = law->published()[1].values;
  FrontierProblem problem{.law = law.get(), .params = p, .family = family.get(), .group = {}};
  const FrontierPoint alone = best_for_training(problem, 1e22);
  problem.inference_tokens = 1e12;
  const FrontierPoint cheap = cheapest_for_loss(problem, alone.loss);
  CHECK(cheap.loss == Approx(alone.loss).epsilon(1e-9));
  CHECK(cheap.model.n < .8 * alone.model.n);
  CHECK(cheap.d > alone.d);
  const FrontierPoint lifetime = best_for_lifetime(problem, cheap.lifetime_flops);
  CHECK(lifetime.loss == Approx(cheap.loss).epsilon(1e-7));
  CHECK(lifetime.model.n == Approx(cheap.model.n).epsilon(1e-3));
  CHECK_THROWS_AS(cheapest_for_loss(problem, .9 * p[0]), NumericError);
  problem.max_total = 1e8;
  CHECK(best_for_training(problem, 1e22).model.n == Approx(1e8).epsilon(1e-6));
}

// A small sweep's fit: dense and E8 K2 G2, which is worth 1.8 times its active parameters.
struct SmallFit {
  std::vector<ExpertGroup> groups = {{}, {8, 2, 2}};
  std::unique_ptr<Law> law = make_multipliers(groups);
  FitResult fit;
  ShapeSpace space;

  SmallFit() {
    fit.law = "multipliers";
    fit.n_definition = "n_active";
    fit.groups = groups;
    fit.param_names = {"E", "A", "B", "alpha", "beta", "m E8 K2 G2"};
    fit.params = {1.9, 250, 900, .4, .42, 1.8};
    fit.rmse_log = .002;
    fit.n_points = 24;
    const RandomStream random(3, "plan_test");
    for (int i = 0; i < 60; ++i) {
      std::vector<double> draw = fit.params;
      for (size_t j = 0; j < draw.size(); ++j) draw[j] *= 1 + .01 * random.normal(10 * i + j);
      fit.draws.push_back(draw);
    }
    fit.n = {5e4, 2e6};
    fit.d = {1e5, 5e6};
    fit.c = {4e11, 4e12};
    space.base = {.vocab = 1024, .width = 64, .layers = 2, .heads = 2, .mup_base_width = 64};
    space.seen = {{32, 2}, {64, 2}, {96, 3}, {160, 4}};
  }
  PlanProblem problem(double flops) const {
    PlanProblem p;
    p.law = law.get();
    p.fit = &fit;
    p.groups = groups;
    p.flops = flops;
    return p;
  }
};

TEST_CASE("a plan spends the budget by exact FLOPs and no shape of the space beats it") {
  const SmallFit small;
  const Plan plan = make_plan(small.problem(1.2e13), small.space);
  const PlannedModel& best = plan.best;
  CHECK(best.flops == Approx(1.2e13));
  CHECK(training_flops(best.option.shape, small.space.sequence, best.d) == Approx(1.2e13));
  CHECK(best.option.n ==
        Approx(double(parameter_count(best.option.shape, ParameterCount::kActive))));
  CHECK(best.option.group == small.groups[1]);
  CHECK(best.option.shape.moe.experts == 8);
  CHECK(best.loss_lo < best.loss);
  CHECK(best.measured_hi > best.loss_hi);
  for (int g = 0; g < 2; ++g)
    for (const ShapeOption& o :
         enumerate_shapes(small.space, small.groups[g], g, ParameterCount::kActive)) {
      LawInput x{.n = o.n, .d = 1.2e13 / o.train_flops, .group = g};
      CHECK(small.law->predict(small.fit.params, x) > best.loss * (1 - 2e-4));
    }
  CHECK(plan.n_lo <= best.option.n * 1.1);
  CHECK(plan.n_hi >= best.option.n / 1.1);
  REQUIRE(!plan.alternatives.empty());
  CHECK(plan.labels[0] == "best dense");
  for (const PlannedModel& other : plan.alternatives) CHECK(other.loss > best.loss * (1 - 2e-4));
}

TEST_CASE("beyond the runs the held-out error widens what a run may measure") {
  SmallFit small;
  const auto width = [&](double flops) {
    const PlannedModel best = make_plan(small.problem(flops), small.space).best;
    return std::log(best.measured_hi / best.measured_lo);
  };
  const double inside = width(3e12), beyond = width(2e13);
  small.fit.held_out =
      HeldOut{.points = 4, .from_flops = 2e12, .fitted_to = 1.2e12, .rmse_log = .05};
  CHECK(width(3e12) == inside);
  const double near = width(1.2e13), far = width(1.2e14);
  CHECK(near > beyond + .05);  // 4 x .05 and 4 x the draws' own, in quadrature
  CHECK(far > 2 * near);       // the step is log(30) instead of the tested log(3.3)
  small.fit.held_out->points = 1000;
  CHECK(width(1.2e13) < .85 * near);    // an error known from four runs alone reaches further
  small.fit.held_out->rmse_log = 1e-4;  // never narrower than the runs' own scatter
  CHECK(width(2e13) == beyond);
}

TEST_CASE("limits and choices are kept") {
  const SmallFit small;
  const Plan free = make_plan(small.problem(1.2e13), small.space);
  PlanProblem p = small.problem(1.2e13);
  p.serve_memory = .5 * free.best.option.serve_bytes;
  const Plan tight = make_plan(p, small.space);
  CHECK(tight.best.option.serve_bytes <= p.serve_memory);
  CHECK(tight.too_large > 0);
  p.serve_memory = 1;
  CHECK_THROWS_AS(make_plan(p, small.space), ConfigError);
  p = small.problem(1.2e13);
  p.groups = allowed_groups(*small.law, small.fit, {1});
  CHECK(make_plan(p, small.space).best.option.group.dense());
  CHECK_THROWS_WITH(allowed_groups(*small.law, small.fit, {16}),
                    Catch::Contains("measured: dense, E8 K2 G2"));
  p.hours = 1;
  CHECK_THROWS_AS(make_plan(p, small.space), ConfigError);  // both budgets
}

TEST_CASE("the inference bill makes the model smaller and keeps the training budget") {
  const SmallFit small;
  const Plan trained = make_plan(small.problem(1.2e13), small.space);
  PlanProblem p = small.problem(1.2e13);
  p.inference_tokens = 20 * trained.best.d;
  const Plan served = make_plan(p, small.space);
  CHECK(served.best.flops == Approx(1.2e13));
  CHECK(served.best.option.inference_flops < trained.best.option.inference_flops);
  CHECK(served.best.loss > trained.best.loss);
  CHECK(served.best.lifetime_excess < .01);
  CHECK(served.labels.back() == "the same loss at the least lifetime cost");
  const PlannedModel& same = served.alternatives.back();
  CHECK(same.loss == Approx(trained.best.loss).epsilon(1e-6));
  CHECK(same.flops + same.inference_flops <
        trained.best.flops + trained.best.option.inference_flops * p.inference_tokens);
}

TEST_CASE("hours become FLOPs by the peak and the measured utilisation") {
  const SmallFit small;
  PlanProblem p = small.problem(0);
  p.hours = 2;
  p.peak = 1e11;
  CHECK_THROWS_WITH(make_plan(p, small.space), Catch::Contains("--utilisation"));
  p.utilisation = UtilisationCurve({1e5, 1e6, 1e7}, {.05, .1, .2});
  CHECK(p.utilisation.at(1e4) == .05);
  CHECK(p.utilisation.at(1e9) == .2);
  CHECK(p.utilisation.at(std::sqrt(1e13)) == Approx(.15));
  p.price_per_hour = 3;
  const Plan plan = make_plan(p, small.space);
  CHECK(plan.best.hours == Approx(2));
  CHECK(plan.best.money == Approx(6));
  CHECK(plan.best.flops ==
        Approx(2 * 3600 * 1e11 * p.utilisation.at(plan.best.option.train_flops)));
}

TEST_CASE("tokens are whole steps within 3 % of what was asked") {
  CHECK(round_tokens(1e6, 2048) == 488 * 2048);
  CHECK_THROWS_AS(round_tokens(5000, 2048), ConfigError);
}

TEST_CASE("a plan beyond the data says so") {
  const SmallFit small;
  const Plan plan = make_plan(small.problem(1e15), small.space);
  REQUIRE(!plan.warnings.empty());
  CHECK_THAT(plan.warnings[0], Catch::Contains("extrapolation"));
}

}  // namespace
}  // namespace degu::scaling
