// The model to train next: the best shape, experts and tokens for a training budget, under a memory
// limit and the lifetime's inference bill, from a fitted law.
//
// Training costs the budget exactly. Without inference tokens the plan has the lowest predicted
// loss. With them it is the shape on Sardana's frontier: of all shapes that cost the budget to
// train, the one whose lifetime cost (training and inference) is closest to the cheapest lifetime
// of any shape, trained however long, with the same loss.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "scaling/fit/fit.h"
#include "scaling/plan/shapes.h"

namespace degu::scaling {

// Rates of a machine as `degu bench kernels --out` wrote them, per second, all threads.
struct Hardware {
  std::string file;
  double bf16_flops = 0, fp32_flops = 0, int8_ops = 0, read_bandwidth = 0;
};
// Reads those keys and ignores others. IoError or DataError with the file.
Hardware read_hardware(const std::string& path);

// Share of the peak that the sweep's runs reached, over their FLOPs per token: interpolated in the
// logarithm, held at the ends. Empty: unknown.
class UtilisationCurve {
 public:
  UtilisationCurve() = default;
  UtilisationCurve(std::vector<double> flops_per_token, std::vector<double> utilisation);
  bool empty() const { return log_flops_.empty(); }
  double at(double flops_per_token) const;

 private:
  std::vector<double> log_flops_, value_;
};

struct PlanProblem {
  const Law* law = nullptr;
  const FitResult* fit = nullptr;
  std::vector<ExpertGroup> groups;  // to choose among
  double flops = 0;                 // training budget; or
  double hours = 0;                 // of wall clock at `peak` and the utilisation
  double peak = 0;                  // FLOP/s of the whole machine; 0: times are not known
  UtilisationCurve utilisation;
  double default_utilisation = 0;  // where the curve is empty; 0: unknown
  double inference_tokens = 0;
  double inference_cost =
      1;  // of an inference FLOP relative to a training FLOP (money and utilisation)
  double train_memory = 0;  // bytes on one rank; 0: no limit
  double serve_memory = 0;
  double price_per_hour = 0;  // of the machine
  double extrapolation = 10;  // warn beyond this factor of the data
  int max_draws = 500;        // bootstrap draws carried through
  uint64_t seed = 1;
};

struct PlannedModel {
  ShapeOption option;
  double d = 0;                // training tokens
  double flops = 0;            // training
  double inference_flops = 0;  // of the lifetime
  double loss = 0;
  double loss_lo = 0, loss_hi = 0;  // 95 %, the law's parameters
  // 95 %, with a run's scatter about the law as well. Beyond the runs it is the error on a held-out
  // largest budget that scatters, if the fit has one and it is larger, in proportion to how much
  // further (in ln FLOPs) the plan lies from what was fitted.
  double measured_lo = 0, measured_hi = 0;
  double hours = 0, money = 0;  // of training; NaN when unknown
  double inference_money = 0;
  double lifetime_excess = 0;  // lifetime cost over the cheapest for the same loss, minus 1
};

struct Plan {
  PlannedModel best;
  std::vector<PlannedModel>
      alternatives;  // best of each group, then neighbours in size, then other trade-offs
  std::vector<std::string> labels;                // of the alternatives
  double n_lo = 0, n_hi = 0, d_lo = 0, d_hi = 0;  // 95 % over the draws' own optima
  std::vector<std::pair<std::string, double>>
      group_share;  // share of draws in which a group is best
  int draws = 0;
  size_t considered = 0, too_large = 0;
  std::vector<std::string> warnings;
};

// ConfigError when nothing fits the limits.
Plan make_plan(const PlanProblem& problem, const ShapeSpace& space);

// Groups of the fit that the user may choose, filtered by numbers of experts (empty: all).
// ConfigError for one that was neither measured nor covered by the law.
std::vector<ExpertGroup> allowed_groups(const Law& law, const FitResult& fit,
                                        const std::vector<int>& experts);

// Tokens rounded to whole steps of `step_tokens`, within 3 % of the asked number. ConfigError when
// a step is too large for that.
int64_t round_tokens(double tokens, int64_t step_tokens);

}  // namespace degu::scaling
