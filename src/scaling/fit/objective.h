// What a fit minimises:  F(theta) = (1/s) sum_i w_i rho_delta(r_i),  r_i = LSE_k z_k(x_i; theta) −
// ln L_i, rho_delta Huber's function (r²/2 for |r| <= delta, else delta (|r| − delta/2)), s =
// delta² (1 for least squares).
//
// The sum, not the mean, and divided by delta²: the plain objective is about 1e-3, below the
// absolute stopping rules of common optimisers, which then stop at their start. Reported objectives
// are multiplied back.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "scaling/laws/law.h"

namespace degu::scaling {

struct Observation {
  LawInput x;
  double loss = 0;  // nats per token
  double weight = 1;
  int row = 0;  // in the run table
};

// kMajorised: Gauss-Newton with weights min(1, delta/|r|), a convex upper bound of F in r; safe far
// away. kExact: the second derivative of F itself, which vanishes for |r| > delta; needed to
// arrive.
enum class Curvature { kMajorised, kExact };

struct Evaluation {
  double value = 0;
  std::vector<double> gradient;  // P
  std::vector<double> hessian;   // P x P, row major, symmetric
};

class Objective {
 public:
  virtual ~Objective() = default;
  virtual int size() const = 0;  // P
  virtual void evaluate(std::span<const double> theta, Curvature curvature,
                        Evaluation& out) const = 0;
  // F times s: the plain sum.
  double plain(double value) const { return value * scale_; }

 protected:
  explicit Objective(double delta);
  double delta_;
  double scale_;
};

double huber(double r, double delta);

// Vectorised evaluation for laws whose terms are affine in theta: eight points at a time, in an
// order that depends on neither the instruction set nor the threads. Data are laid out once and
// shared; `weights` (one per observation, as a bootstrap counts them) are the objective's own.
class LseData;
std::shared_ptr<const LseData> make_lse_data(const Law& law, std::span<const Observation> data);
std::unique_ptr<Objective> make_lse_objective(std::shared_ptr<const LseData> data,
                                              std::span<const double> weights, double delta);

// Any law, one point at a time, by Law::terms. The curvature leaves out second derivatives of z.
std::unique_ptr<Objective> make_general_objective(const Law& law, std::span<const Observation> data,
                                                  std::span<const double> weights, double delta);

}  // namespace degu::scaling
