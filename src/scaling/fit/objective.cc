#include "scaling/fit/objective.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace degu::scaling {
namespace {

class GeneralObjective final : public Objective {
 public:
  GeneralObjective(const Law& law, std::span<const Observation> data,
                   std::span<const double> weights, double delta)
      : Objective(delta),
        law_(law),
        data_(data.begin(), data.end()),
        weights_(weights.begin(), weights.end()),
        log_loss_(data.size()),
        params_(static_cast<int>(law.params().size())) {
    for (size_t i = 0; i < data.size(); ++i) log_loss_[i] = std::log(data[i].loss);
  }

  int size() const override { return params_; }

  void evaluate(std::span<const double> theta, Curvature curvature,
                Evaluation& out) const override {
    const int count = params_;
    out.value = 0;
    out.gradient.assign(count, 0);
    out.hessian.assign(static_cast<size_t>(count) * count, 0);
    Terms terms;
    std::vector<double> g(count);
    for (size_t i = 0; i < data_.size(); ++i) {
      if (weights_[i] == 0) continue;
      law_.terms(data_[i].x, theta, terms);
      const double log_sum = terms.log_sum();
      const double r = log_sum - log_loss_[i];
      if (!std::isfinite(r)) {
        out.value = std::numeric_limits<double>::infinity();
        return;
      }
      const double size = std::abs(r);
      const bool inside = size <= delta_;
      const double slope = inside ? r : std::copysign(delta_, r);
      std::fill(g.begin(), g.end(), 0);
      for (const Terms::Derivative& d : terms.derivatives())
        g[d.param] += std::exp(terms.z()[d.term] - log_sum) * d.value;
      const bool exact = curvature == Curvature::kExact;
      const double bend = inside ? 1 : exact ? 0 : delta_ / size;
      const double outer = weights_[i] / scale_ * (exact ? bend - slope : bend);
      out.value += weights_[i] * huber(r, delta_);
      for (int a = 0; a < count; ++a) {
        out.gradient[a] += weights_[i] / scale_ * slope * g[a];
        for (int b = 0; b < count; ++b) out.hessian[a * count + b] += outer * g[a] * g[b];
      }
      if (!exact) continue;
      for (const Terms::Derivative& d : terms.derivatives()) {
        const double p = weights_[i] / scale_ * slope * std::exp(terms.z()[d.term] - log_sum);
        for (const Terms::Derivative& o : terms.derivatives())
          if (o.term == d.term) out.hessian[d.param * count + o.param] += p * d.value * o.value;
      }
    }
    out.value /= scale_;
  }

 private:
  const Law& law_;
  std::vector<Observation> data_;
  std::vector<double> weights_, log_loss_;
  int params_;
};

}  // namespace

Objective::Objective(double delta)
    : delta_(delta), scale_(std::isfinite(delta) ? delta * delta : 1.0) {
  if (!(delta > 0)) throw ConfigError("Huber threshold is {}, it must be above 0", delta);
}

double huber(double r, double delta) {
  const double size = std::abs(r);
  return size <= delta ? 0.5 * r * r : delta * (size - 0.5 * delta);
}

std::unique_ptr<Objective> make_general_objective(const Law& law, std::span<const Observation> data,
                                                  std::span<const double> weights, double delta) {
  return std::make_unique<GeneralObjective>(law, data, weights, delta);
}

}  // namespace degu::scaling
