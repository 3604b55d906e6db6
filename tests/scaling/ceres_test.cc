// Our solver against Ceres with automatic derivatives, on the same objective from the same starts.
// Ceres' cost is half of rho(r²), which is Huber's function of r with the same delta.
#include <ceres/ceres.h>

#include <catch2/catch.hpp>
#include <cmath>

#include "published_runs.h"
#include "scaling/fit/objective.h"
#include "scaling/fit/solver.h"
#include "scaling/laws/registry.h"
#include "shared_data.h"

namespace degu::scaling {
namespace {

constexpr double kDelta = 1e-3;

struct ChinchillaResidual {
  double ln_n, ln_d, ln_loss;
  template <class T>
  bool operator()(const T* theta, T* residual) const {  // ln E, ln A, ln B, alpha, beta
    const T model =
        exp(theta[0]) + exp(theta[1] - theta[3] * ln_n) + exp(theta[2] - theta[4] * ln_d);
    residual[0] = (log(model) - ln_loss) / kDelta;
    return true;
  }
};

TEST_CASE("Ceres arrives at our optimum and at no better one") {
  const auto path = shared_data("besiroglu_2024_chinchilla_runs.csv");
  if (!path) return;
  const Selection runs = chinchilla_runs(*path, 5);
  const auto law = make_chinchilla();
  const std::vector<double> weights(runs.size(), 1);
  const auto objective = make_lse_objective(make_lse_data(*law, runs.data), weights, kDelta);
  const MultiStart ours = minimise_from_all(*objective, law->starts(), 2);

  int arrived = 0;
  double best = INFINITY;
  std::vector<double> best_theta;
  for (const double e : {0.5, 0.7}) {
    for (const double intercept : {5.0, 8.0}) {
      std::vector<double> theta = {e, intercept, intercept, .5, .5};
      ceres::Problem problem;
      for (const Observation& o : runs.data)
        problem.AddResidualBlock(
            new ceres::AutoDiffCostFunction<ChinchillaResidual, 1, 5>(
                new ChinchillaResidual{std::log(o.x.n), std::log(o.x.d), std::log(o.loss)}),
            new ceres::HuberLoss(1.0), theta.data());
      ceres::Solver::Options options;
      options.linear_solver_type = ceres::DENSE_QR;
      options.max_num_iterations = 2000;
      options.function_tolerance = 1e-15;
      options.gradient_tolerance = 1e-14;
      options.parameter_tolerance = 1e-14;
      options.logging_type = ceres::SILENT;
      ceres::Solver::Summary summary;
      ceres::Solve(options, &problem, &summary);
      const double value = summary.final_cost;
      arrived += value < ours.best.value * (1 + 1e-6);
      if (value >= best) continue;
      best = value;
      best_theta = theta;
    }
  }
  REQUIRE(arrived >= 1);
  CHECK(std::abs(best / ours.best.value - 1) < 1e-8);
  for (int i = 0; i < 5; ++i) CHECK(std::abs(best_theta[i] - ours.best.theta[i]) < 2e-4);
}

}  // namespace
}  // namespace degu::scaling
