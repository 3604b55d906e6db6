// Fits of a law to selected runs by the three approaches of Hoffmann et al. 2022, and what is said
// about them.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "scaling/laws/law.h"
#include "scaling/selection.h"

namespace degu::scaling {

enum class Envelope { kHull, kBins };
constexpr auto enum_names(Envelope) {
  return std::array<std::string_view, 2>{"hull", "bins"};
}
enum class Interpolation { kParabola, kAkima };
constexpr auto enum_names(Interpolation) {
  return std::array<std::string_view, 2>{"parabola", "akima"};
}
enum class EdgePolicy { kRefuse, kForce, kDrop };
constexpr auto enum_names(EdgePolicy) {
  return std::array<std::string_view, 3>{"refuse", "force", "drop"};
}

struct FitOptions {
  int approach = 3;
  int bootstrap = 0;  // resamples; 0: none
  uint64_t seed = 1;
  int threads = 1;       // results do not depend on it
  double delta = 0;      // Huber threshold on ln L; 0: the law's own; infinity: least squares
  bool holdout = false;  // refit without the largest budget and predict it
  double holdout_factor = 1.5;          // rows within this factor of the largest C are held out
  bool force = false;                   // fit although refused; the reason becomes a warning
  Envelope envelope = Envelope::kHull;  // approach 1
  Interpolation interpolation = Interpolation::kParabola;  // approach 2
  double window = 8;         // approach 2: sizes within this factor of the budget's best
  double budget_gap = 1.12;  // without a budget column: a new budget begins where C grows by more
  EdgePolicy edge = EdgePolicy::kRefuse;  // approach 2: a minimum at the edge of the sizes
};

struct ParamSummary {
  double mean = 0, se = 0, lo = 0, hi = 0;  // 95 % percentile interval
};

// One compute and what the fit thinks best there. Intervals are NaN without a bootstrap.
struct OptimumPoint {
  double c = 0, n = 0, d = 0, loss = 0;
  double n_lo = 0, n_hi = 0, d_lo = 0, d_hi = 0, loss_lo = 0, loss_hi = 0;
};

// N* = k_n C^a, D* = k_d C^b (with G: k_n = G 6^-a, k_d = 6^-b / G).
struct Optimum {
  double a = 0, b = 0, k_n = 0, k_d = 0;
  std::string n_definition;
  std::vector<OptimumPoint> curve;
  std::optional<ParamSummary> a_summary, b_summary;
};

// A budget of approach 2.
struct IsoflopMinimum {
  double c = 0, n = 0, d = 0, loss = 0;
  int points = 0;  // within the window
  double n_least = 0, n_most = 0;
  bool at_edge = false, kept = true;
  std::vector<double> coefficients;  // of the parabola in ln N, constant first; empty for Akima
};

struct HeldOut {
  int points = 0;
  double from_flops = 0;  // the runs held out
  double fitted_to = 0;   // FLOPs of the largest run that was fitted
  double rmse_log = 0;    // of ln(predicted) − ln(measured)
  double mean_log = 0;    // bias of the same
  double worst_log = 0;
};

struct FitResult {
  std::string law;
  int approach = 3;
  std::vector<std::string> param_names;
  std::vector<double> params;           // published values
  std::vector<double> standard_errors;  // sandwich (approach 3) or the regression's; empty: unknown
  double objective = 0;  // sum of Huber terms (approach 3), residual sum of squares (1, 2)
  double delta = 0;
  int n_points = 0;
  int starts = 0, arrived = 0;
  double r2 = 0;  // of ln L (approach 3) or of ln N* over ln C (1, 2)
  double rmse_log = 0;
  std::map<std::string, std::string> choices;
  std::optional<Optimum> optimum;
  std::optional<HeldOut> held_out;
  std::vector<IsoflopMinimum> minima;
  std::vector<OptimumPoint> frontier;  // approach 1: the envelope's points
  std::vector<ExpertGroup> groups;
  std::string n_definition;
  // Ranges of the data.
  Interval n, d, c;
  int bootstrap = 0, bootstrap_failed = 0;
  double bootstrap_seconds = 0;  // approach 3
  uint64_t seed = 0;
  std::vector<ParamSummary> bootstrap_params;  // in the order of params
  std::vector<std::vector<double>> draws;      // published values, one row per resample
  std::vector<std::string> warnings;
};

// NumericError when the data cannot identify the law, or an isoFLOP minimum lies on the edge,
// unless options.force (or options.edge) says otherwise. `law` and `selection` must have been made
// for each other (N definition, groups).
FitResult fit_law(const Law& law, const Selection& selection, const FitOptions& options);

// The approaches by themselves.
FitResult fit_parametric(const Law& law, const Selection& selection, const FitOptions& options);
FitResult fit_envelope(const Selection& selection, const FitOptions& options);
FitResult fit_isoflop(const Selection& selection, const FitOptions& options);

// Best N and D of a law of the form E + A/N^alpha + B/D^beta under C = 6 N D.
struct ClosedFormOptimum {
  double a, b, k_n, k_d;
};
ClosedFormOptimum closed_form_optimum(double a_coefficient, double b_coefficient, double alpha,
                                      double beta);

// What N counts in a fit: the run table's column where it is one of degu's, else what the law's
// authors count.
std::string n_definition_of(const Law& law, const Selection& selection);

// Shared by the approaches.
ParamSummary summarise(std::vector<double> values);  // mean, se, 2.5 % and 97.5 %
// Power law y = k x^slope by least squares in logarithms.
struct PowerFit {
  double slope, log_k, r2, slope_se, log_k_se, rss;
};
PowerFit fit_power(std::span<const double> x, std::span<const double> y);
// What approaches 1 and 2 do last: bootstrap summaries, the optimum and its curve, doubts. `params`
// and `draws` are {a, b, k_N, k_D}.
void finish_power_laws(const Selection& selection, FitResult& result);
void fill_ranges(const Selection& selection, FitResult& result);
// Budgets of the data, rounded together; ascending. `index` gets the budget of each observation, −1
// for none.
std::vector<double> group_budgets(const Selection& selection, double gap, std::vector<int>& index);

}  // namespace degu::scaling
