// A scaling law as an object: what its N counts, where it was fitted, its formula with exact
// derivatives, and the constants its authors printed.
//
// Every law here is a sum of positive power-law terms, so its logarithm is
//
//     ln L(x) = LSE_k z_k(x; theta),      LSE_k z_k = ln sum_k exp(z_k),
//
// where each z_k is affine in the coefficients theta (ln A, alpha, …) once the few *saturation*
// parameters (E_start, R_D*, …) are fixed. That one form gives all laws the same fast fit
// (fit/lse_objective.h).
//
// Two spaces: a law *publishes* values (E, A, alpha) under its authors' names and is fitted in
// *internal* ones (ln E, ln A, alpha), because raw A and B span decades and an optimiser does not
// move them.
//
// Letters clash between papers: `experts` here is always the number of routed experts of a block,
// top_k those a token visits, granularity = (dense feed-forward width) / (expert width). E in
// published values is the irreducible loss.
#pragma once

#include <array>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "shape/accounting.h"

namespace degu::scaling {

// One model and its training, as a law sees it.
struct LawInput {
  double n = 0;              // parameters under the law's own definition
  double d = 0;              // training tokens
  double experts = 1;        // routed experts; 1: dense
  double top_k = 1;          // experts a token visits
  double granularity = 1;    // dense feed-forward width / expert width
  double unique_tokens = 0;  // distinct tokens behind d; 0: all of them
  double weight_bits = 16, activation_bits = 16, kv_bits = 16;
  int group = 0;  // index into a multiplier law's groups
};

struct ParamInfo {
  std::string name;         // as published
  bool log_space = false;   // internal value = ln(published)
  bool saturation = false;  // enters z not affinely
};

// ln of each term and its derivatives, filled by Law::terms.
class Terms {
 public:
  static constexpr int kMaxTerms = 6;
  struct Derivative {
    int term;
    int param;
    double value;  // d z_term / d theta_param
  };
  void reset(int count) {
    count_ = count;
    z_.fill(0);
    derivatives_.clear();
  }
  // z_term += coefficient * theta[param]
  void add(int term, int param, double coefficient, std::span<const double> theta) {
    z_[term] += coefficient * theta[param];
    derivatives_.push_back({term, param, coefficient});
  }
  // Only the derivative: for saturation parameters, whose effect is inside other coefficients.
  void sensitivity(int term, int param, double value) {
    derivatives_.push_back({term, param, value});
  }

  int count() const { return count_; }
  std::span<const double> z() const { return {z_.data(), static_cast<size_t>(count_)}; }
  std::span<const Derivative> derivatives() const { return derivatives_; }
  double log_sum() const;

 private:
  int count_ = 0;
  std::array<double, kMaxTerms> z_{};
  std::vector<Derivative> derivatives_;
};

struct Interval {
  double lo = 0;
  double hi = std::numeric_limits<double>::infinity();
  bool contains(double x) const { return x >= lo && x <= hi; }
};

// Where the authors fitted it. Outside, a prediction is an extrapolation and says so.
struct ValidityRange {
  Interval n, d, experts{1, 1}, granularity{1, 1};
};

struct PublishedConstants {
  std::string label;           // "printed", "refit …"
  std::vector<double> values;  // in the order of params()
};

class Law {
 public:
  virtual ~Law() = default;
  virtual std::string_view name() const = 0;     // as typed after --law
  virtual std::string_view summary() const = 0;  // formula in one line
  virtual std::string_view source() const = 0;   // paper
  // What its N counts. Mixing the definitions is the commonest error in the field.
  virtual ParameterCount n_definition() const = 0;
  virtual ValidityRange range() const = 0;
  virtual std::vector<ParamInfo> params() const = 0;
  virtual std::vector<PublishedConstants> published() const { return {}; }

  // Fills `out` at x for internal values theta (as many as params()).
  virtual void terms(const LawInput& x, std::span<const double> theta, Terms& out) const = 0;

  // The multi-start's points, in internal space.
  virtual std::vector<std::vector<double>> starts() const = 0;

  // The Huber threshold the authors fitted ln L with; infinity: least squares.
  virtual double default_delta() const { return std::numeric_limits<double>::infinity(); }

  virtual bool uses_tokens() const { return true; }  // false: D does not enter
  // Dense laws say nothing about rows with experts.
  bool covers_experts() const { return range().experts.hi > 1; }
  bool affine() const;  // no saturation parameters

  virtual std::vector<double> publish(std::span<const double> internal) const;
  virtual std::vector<double> internalize(std::span<const double> published) const;

  // Loss in nats per token at published values. DataError when their number is wrong.
  double predict(std::span<const double> published, const LawInput& x) const;

  // "N 3.1e12 is outside 7e7 … 1.6e10", one entry per quantity that is out of range.
  std::vector<std::string> out_of_range(const LawInput& x) const;

 protected:
  void require_count(size_t count) const;
};

// Effective number of experts: 1/E^ = 1/(E − 1 + 1/(1/E_start − 1/E_max)) + 1/E_max (Clark et al.
// 2022, eq. 5), which saturates at E_max for many experts and is E_start at E = 1. Both laws that
// use it need ln E^ and its derivatives.
struct SaturatedExperts {
  double log_e;    // ln E^
  double d_start;  // d ln E^ / d E_start
  double d_max;    // d ln E^ / d E_max
};
SaturatedExperts saturated_experts(double experts, double e_start, double e_max);

// Every combination of one value per parameter, the last parameter varying fastest.
std::vector<std::vector<double>> grid_product(const std::vector<std::vector<double>>& values);

}  // namespace degu::scaling
