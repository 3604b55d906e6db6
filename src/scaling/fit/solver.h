// Minimisation of an Objective: a damped Newton method that starts on the majorised (convex)
// curvature and finishes on the exact one.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "scaling/fit/objective.h"

namespace degu::scaling {

struct SolverOptions {
  int max_iterations = 300;
  // Stop when Newton's predicted decrease falls below this share of the objective, twice in a row.
  // Relative: the scale of F never decides.
  double tolerance = 1e-15;
};

struct Solution {
  std::vector<double> theta;
  double value = 0;    // F, scaled as the objective does
  int iterations = 0;  // evaluations
  bool converged = false;
};

Solution minimise(const Objective& objective, std::span<const double> start,
                  const SolverOptions& options = {});

struct MultiStart {
  Solution best;
  int starts = 0;
  int arrived = 0;  // starts whose value is within 1e-6 (relative) of the best
  double share() const { return starts ? static_cast<double>(arrived) / starts : 0; }
};

// The best over all starts; ties go to the lower index, so the result does not depend on `threads`.
MultiStart minimise_from_all(const Objective& objective,
                             const std::vector<std::vector<double>>& starts, int threads,
                             const SolverOptions& options = {});

// Calls task(i) for i in [0, count) on `threads` threads; an exception of a task is rethrown.
void run_parallel(int count, int threads, const std::function<void(int)>& task);

// Solves (H + lambda diag(|H|)) x = b for symmetric H (P x P, row major) by Cholesky; false when
// not positive definite.
bool solve_damped(std::span<const double> hessian, std::span<const double> b, double lambda,
                  std::vector<double>& x);
// Inverse of a symmetric positive definite matrix; false when singular to working precision.
bool invert(std::span<const double> matrix, int size, std::vector<double>& inverse);

}  // namespace degu::scaling
