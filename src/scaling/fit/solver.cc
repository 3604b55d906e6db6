#include "scaling/fit/solver.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>
#include <utility>

namespace degu::scaling {
namespace {

constexpr double kSmallestDamping = 1e-12;
constexpr double kLargestDamping = 1e12;

// Lower Cholesky factor of the leading `n` x `n` of `a` (row major), in place. False: not positive
// definite.
bool cholesky(std::vector<double>& a, int n) {
  for (int j = 0; j < n; ++j) {
    double diagonal = a[j * n + j];
    const double before = diagonal;
    for (int k = 0; k < j; ++k) diagonal -= a[j * n + k] * a[j * n + k];
    // What is left of the diagonal must stand clear of the rounding in what was taken off.
    if (!(diagonal > 1e-15 * before) || !(diagonal > 0)) return false;
    const double root = std::sqrt(diagonal);
    a[j * n + j] = root;
    for (int i = j + 1; i < n; ++i) {
      double v = a[i * n + j];
      for (int k = 0; k < j; ++k) v -= a[i * n + k] * a[j * n + k];
      a[i * n + j] = v / root;
    }
  }
  return true;
}

void substitute(const std::vector<double>& factor, int n, std::vector<double>& x) {
  for (int i = 0; i < n; ++i) {
    for (int k = 0; k < i; ++k) x[i] -= factor[i * n + k] * x[k];
    x[i] /= factor[i * n + i];
  }
  for (int i = n - 1; i >= 0; --i) {
    for (int k = i + 1; k < n; ++k) x[i] -= factor[k * n + i] * x[k];
    x[i] /= factor[i * n + i];
  }
}

}  // namespace

bool solve_damped(std::span<const double> hessian, std::span<const double> b, double lambda,
                  std::vector<double>& x) {
  const int n = static_cast<int>(b.size());
  std::vector<double> a(hessian.begin(), hessian.end());
  double largest = 0;
  for (int i = 0; i < n; ++i) largest = std::max(largest, std::abs(a[i * n + i]));
  for (int i = 0; i < n; ++i)
    a[i * n + i] += lambda * std::max(std::abs(a[i * n + i]), 1e-12 * largest);
  if (!cholesky(a, n)) return false;
  x.assign(b.begin(), b.end());
  substitute(a, n, x);
  return true;
}

bool invert(std::span<const double> matrix, int size, std::vector<double>& inverse) {
  std::vector<double> factor(matrix.begin(), matrix.end());
  if (!cholesky(factor, size)) return false;
  inverse.assign(static_cast<size_t>(size) * size, 0);
  for (int column = 0; column < size; ++column) {
    std::vector<double> x(size, 0);
    x[column] = 1;
    substitute(factor, size, x);
    for (int row = 0; row < size; ++row) inverse[row * size + column] = x[row];
  }
  return true;
}

Solution minimise(const Objective& objective, std::span<const double> start,
                  const SolverOptions& options) {
  const int count = objective.size();
  Solution out{{start.begin(), start.end()}, 0, 1, false};
  Evaluation here, there;
  Curvature curvature = Curvature::kMajorised;
  objective.evaluate(out.theta, curvature, here);
  out.value = here.value;
  if (!std::isfinite(here.value)) return out;

  double lambda = 1e-3;
  int quiet = 0;  // steps in a row whose predicted decrease was below the tolerance
  std::vector<double> step, trial(count), down(count);
  while (out.iterations < options.max_iterations && lambda < kLargestDamping) {
    for (int i = 0; i < count; ++i) down[i] = -here.gradient[i];
    if (!solve_damped(here.hessian, down, lambda, step)) {
      lambda = std::max(lambda * 8, 1e-6);
      continue;
    }
    double predicted = 0;  // half of gᵀ(H + lambda D)⁻¹g bounds what the quadratic model gives
    for (int i = 0; i < count; ++i) {
      trial[i] = out.theta[i] + step[i];
      predicted += 0.5 * down[i] * step[i];
    }
    if (predicted <= options.tolerance * here.value) {
      if (curvature == Curvature::kExact && (lambda <= 1e-8 || ++quiet > 1)) {
        out.converged = true;
        break;
      }
      if (curvature == Curvature::kMajorised) {
        curvature = Curvature::kExact;
        lambda = 1e-3;
        objective.evaluate(out.theta, curvature, here);
        ++out.iterations;
        continue;
      }
    }
    objective.evaluate(trial, curvature, there);
    ++out.iterations;
    const double decrease = here.value - there.value;
    if (!(decrease > 1e-4 * predicted)) {  // also refuses NaN
      lambda = std::max(lambda * 4, 1e-9);
      continue;
    }
    const bool slow = decrease < 1e-2 * here.value;
    lambda = decrease > 0.7 * predicted ? std::max(lambda / 8, kSmallestDamping) : lambda;
    std::swap(out.theta, trial);
    std::swap(here, there);
    out.value = here.value;
    if (curvature == Curvature::kMajorised && slow) {
      curvature = Curvature::kExact;
      lambda = std::max(lambda, 1e-4);
      objective.evaluate(out.theta, curvature, here);
      ++out.iterations;
    }
  }
  return out;
}

void run_parallel(int count, int threads, const std::function<void(int)>& task) {
  threads = std::clamp(threads, 1, std::max(count, 1));
  std::atomic<int> next{0};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto work = [&] {
    for (int i = next++; i < count; i = next++) {
      try {
        task(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
      }
    }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();
  if (failure) std::rethrow_exception(failure);
}

MultiStart minimise_from_all(const Objective& objective,
                             const std::vector<std::vector<double>>& starts, int threads,
                             const SolverOptions& options) {
  MultiStart out;
  out.starts = static_cast<int>(starts.size());
  std::vector<Solution> all(starts.size());
  run_parallel(out.starts, threads,
               [&](int i) { all[i] = minimise(objective, starts[i], options); });
  out.best.value = std::numeric_limits<double>::infinity();
  for (const Solution& solution : all)
    if (solution.value < out.best.value) out.best = solution;
  for (const Solution& solution : all)
    out.arrived += solution.value <= out.best.value * (1 + 1e-6) + 1e-300;
  return out;
}

}  // namespace degu::scaling
