// L = E + A/N'^alpha + B/D'^beta with D' = U_D + U_D R_D* (1 − exp(−R_D/R_D*)) and N' likewise:
// repeated data, Muennighoff et al. 2023, arXiv 2305.16264. U_D unique tokens are seen 1 + R_D
// times; U_N is the compute-optimal size for U_D.
#include <algorithm>
#include <cmath>

#include "scaling/laws/registry.h"

namespace degu::scaling {
namespace {

enum Param { kE, kA, kB, kAlpha, kBeta, kRepeatD, kRepeatN };

// ln of u + u r (1 − exp(−x/r)), x = v/u − 1 ≥ 0 repetitions, and its derivative by r.
struct Effective {
  double log_value;
  double d_r;
};

Effective effective(double value, double unique, double r) {
  if (value <= unique) return {std::log(value), 0};
  const double x = value / unique - 1;
  const double decay = std::exp(-x / r);
  const double factor = 1 + r * (1 - decay);
  return {std::log(unique * factor), (1 - decay - decay * x / r) / factor};
}

class Muennighoff final : public Law {
 public:
  std::string_view name() const override { return "muennighoff"; }
  std::string_view summary() const override {
    return "L = E + A/N'^alpha + B/D'^beta, D' = U_D + U_D R_D (1 - exp(-repeats/R_D)), N' "
           "likewise";
  }
  std::string_view source() const override { return "Muennighoff et al. 2023, arXiv 2305.16264"; }
  ParameterCount n_definition() const override { return ParameterCount::kTotal; }
  ValidityRange range() const override { return {.n = {7e6, 9e9}, .d = {1e8, 9e11}}; }
  std::vector<ParamInfo> params() const override {
    return {{"E", true}, {"A", true},         {"B", true},        {"alpha"},
            {"beta"},    {"R_D", true, true}, {"R_N", true, true}};
  }
  std::vector<PublishedConstants> published() const override {
    return {{"printed, C4", {1.87, 521, 1488, .3527, .3527, 15.387756, 5.309743}}};
  }
  void terms(const LawInput& x, std::span<const double> theta, Terms& out) const override {
    const double unique_d = x.unique_tokens > 0 ? std::min(x.unique_tokens, x.d) : x.d;
    const double r_d = std::exp(theta[kRepeatD]);
    const double r_n = std::exp(theta[kRepeatN]);
    // Compute-optimal N for U_D tokens: N = (G^(1/b') … ) of Chinchilla's optimum solved for its D:
    // D = (C/6)^a'/G and N = G (C/6)^b' give N = G (D G)^(b'/a') with a' = alpha/(alpha+beta), b' =
    // beta/(alpha+beta). U_N enters only as the knee of N', so its own dependence on the
    // coefficients is left out of the derivatives; the fit stays exact where all N <= U_N and
    // approximate in the gradient otherwise.
    const double alpha = theta[kAlpha], beta = theta[kBeta];
    const double ln_g = (std::log(alpha / beta) + theta[kA] - theta[kB]) / (alpha + beta);
    const double ln_unique_n = ln_g + beta / alpha * (std::log(unique_d) + ln_g);
    const double unique_n = std::exp(std::clamp(ln_unique_n, -300., 300.));
    const Effective d = effective(x.d, unique_d, r_d);
    const Effective n = effective(x.n, std::isfinite(unique_n) ? unique_n : x.n, r_n);
    out.reset(3);
    out.add(0, kA, 1, theta);
    out.add(0, kAlpha, -n.log_value, theta);
    out.add(1, kB, 1, theta);
    out.add(1, kBeta, -d.log_value, theta);
    out.add(2, kE, 1, theta);
    out.sensitivity(0, kRepeatN, -alpha * n.d_r * r_n);
    out.sensitivity(1, kRepeatD, -beta * d.d_r * r_d);
  }
  std::vector<std::vector<double>> starts() const override {
    return grid_product({{0, .5}, {5, 10}, {5, 10}, {.3, .5}, {.3, .5}, {1, 2.7}, {1.7}});
  }
  double default_delta() const override { return 1e-3; }
};

}  // namespace

std::unique_ptr<Law> make_muennighoff() {
  return std::make_unique<Muennighoff>();
}

}  // namespace degu::scaling
