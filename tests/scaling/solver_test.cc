// The vectorised objective against the plain one, the minimiser against known minima.
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

#include "base/random.h"
#include "scaling/fit/objective.h"
#include "scaling/fit/solver.h"
#include "scaling/laws/multipliers.h"
#include "scaling/laws/registry.h"

namespace degu::scaling {
namespace {

std::vector<Observation> noisy_runs(const Law& law, std::span<const double> published, int count,
                                    double sigma) {
  const RandomStream random(5, "solver_test");
  std::vector<Observation> out;
  for (int i = 0; i < count; ++i) {
    Observation o;
    o.x.n = std::exp(15 + 6 * random.uniform(10 * i));
    o.x.d = std::exp(19 + 6 * random.uniform(10 * i + 1));
    o.x.group = i % 2;
    o.loss = law.predict(published, o.x) * std::exp(sigma * random.normal(10 * i + 2));
    out.push_back(o);
  }
  return out;
}

TEST_CASE("the vectorised objective is the plain one for every affine law and count of points") {
  for (const LawFactory make : law_table()) {
    const std::unique_ptr<Law> law =
        make()->name() == "multipliers" ? make_multipliers({{}, {8, 2, 2}}) : make();
    if (!law->affine()) continue;
    INFO(law->name());
    const std::vector<double> theta = law->starts()[law->starts().size() / 3];
    for (const int count : {1, 7, 8, 9, 33}) {
      std::vector<Observation> data =
          noisy_runs(*make_chinchilla(), {{1.8, 480, 2100, .35, .37}}, count, .01);
      std::vector<double> weights(count);
      for (int i = 0; i < count; ++i) {
        weights[i] = i % 3;
        data[i].x.experts = 1 + 7 * (i % 2);
        data[i].x.top_k = 1 + i % 2;
        data[i].x.granularity = 1 + i % 4;
      }
      for (const double delta : {1e-3, 10.0, std::numeric_limits<double>::infinity()}) {
        const auto fast = make_lse_objective(make_lse_data(*law, data), weights, delta);
        const auto plain = make_general_objective(*law, data, weights, delta);
        for (const Curvature curvature : {Curvature::kMajorised, Curvature::kExact}) {
          Evaluation a, b;
          fast->evaluate(theta, curvature, a);
          plain->evaluate(theta, curvature, b);
          const auto close = [](double x, double y, double scale) {
            return std::abs(x - y) <= 1e-12 * scale + 1e-14 * std::abs(y);
          };
          CHECK(close(a.value, b.value, b.value));
          // Entries are p − p² times slopes of up to delta or |r| < 20: what cancels there is of
          // that size.
          Evaluation majorised;
          plain->evaluate(theta, Curvature::kMajorised, majorised);
          double norm = 0;
          for (const double h : majorised.hessian) norm = std::max(norm, 20 * std::abs(h));
          for (size_t i = 0; i < b.hessian.size(); ++i) {
            INFO(count << " points, delta " << delta << ", entry " << i << ": " << a.hessian[i]
                       << " against " << b.hessian[i]);
            CHECK(close(a.hessian[i], b.hessian[i], norm));
          }
          double largest = 0;
          for (const double g : b.gradient) largest = std::max(largest, std::abs(g));
          for (size_t i = 0; i < b.gradient.size(); ++i)
            CHECK(close(a.gradient[i], b.gradient[i], largest));
        }
      }
    }
  }
}

TEST_CASE("the exact curvature is the gradient's derivative") {
  const auto law = make_chinchilla();
  const std::vector<Observation> data = noisy_runs(*law, {{1.8, 480, 2100, .35, .37}}, 50, .01);
  const std::vector<double> weights(data.size(), 1);
  const auto objective = make_lse_objective(make_lse_data(*law, data), weights, .05);
  const std::vector<double> theta = law->internalize(std::vector<double>{1.7, 500, 2000, .34, .36});
  Evaluation at, up, down;
  objective->evaluate(theta, Curvature::kExact, at);
  for (int j = 0; j < 5; ++j) {
    const double h = 1e-6;
    std::vector<double> moved = theta;
    moved[j] += h;
    objective->evaluate(moved, Curvature::kExact, up);
    moved[j] -= 2 * h;
    objective->evaluate(moved, Curvature::kExact, down);
    CHECK(at.gradient[j] == Approx((up.value - down.value) / (2 * h)).epsilon(1e-5));
    for (int i = 0; i < 5; ++i)
      CHECK(at.hessian[i * 5 + j] ==
            Approx((up.gradient[i] - down.gradient[i]) / (2 * h)).epsilon(1e-4).margin(1e-3));
  }
}

TEST_CASE("exact data give the law back, also through a robust loss with outliers") {
  const auto law = make_chinchilla();
  const std::vector<double> truth = {1.7, 450, 1900, .33, .37};
  std::vector<Observation> data = noisy_runs(*law, truth, 60, 0);
  for (const int outlier : {3, 30}) data[outlier].loss *= 1.4;
  const std::vector<double> weights(data.size(), 1);
  const auto objective = make_lse_objective(make_lse_data(*law, data), weights, 1e-3);
  const MultiStart found = minimise_from_all(*objective, law->starts(), 2);
  const std::vector<double> params = law->publish(found.best.theta);
  CHECK(found.best.converged);
  CHECK(std::abs(params[3] - truth[3]) < 1e-3);
  CHECK(std::abs(params[4] - truth[4]) < 1e-3);
}

TEST_CASE("solve_damped and invert refuse what is not positive definite") {
  const std::vector<double> singular = {1, 1, 1, 1}, good = {4, 1, 1, 3};
  std::vector<double> x, inverse;
  CHECK_FALSE(solve_damped(singular, std::vector<double>{1, 2}, 0, x));
  CHECK(solve_damped(singular, std::vector<double>{1, 2}, 1, x));
  REQUIRE(solve_damped(good, std::vector<double>{1, 2}, 0, x));
  CHECK(x[0] == Approx(1.0 / 11));
  CHECK(x[1] == Approx(7.0 / 11));
  REQUIRE(invert(good, 2, inverse));
  CHECK(inverse[0] == Approx(3.0 / 11));
  CHECK_FALSE(invert(singular, 2, inverse));
}

TEST_CASE("an exception of a task reaches the caller") {
  CHECK_THROWS_AS(run_parallel(8, 3,
                               [](int i) {
                                 if (i == 5) throw NumericError("task {}", i);
                               }),
                  NumericError);
}

}  // namespace
}  // namespace degu::scaling
