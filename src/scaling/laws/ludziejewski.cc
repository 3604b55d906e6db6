// L = a E^^delta N^(alpha + gamma ln E^) + b E^^omega D^(beta + zeta ln E^) + c, E^ the saturated
// number of experts: Ludziejewski et al. 2025, arXiv 2502.05172. Exponents carry their sign: alpha
// and beta are negative.
#include <cmath>

#include "scaling/laws/registry.h"

namespace degu::scaling {
namespace {

enum Param { kA, kAlpha, kDelta, kGamma, kB, kBeta, kOmega, kZeta, kStart, kMax, kC };

class Ludziejewski final : public Law {
 public:
  std::string_view name() const override { return "ludziejewski"; }
  std::string_view summary() const override {
    return "L = a E^^delta N^(alpha + gamma ln E^) + b E^^omega D^(beta + zeta ln E^) + c, E^ "
           "saturated";
  }
  std::string_view source() const override { return "Ludziejewski et al. 2025, arXiv 2502.05172"; }
  ParameterCount n_definition() const override { return ParameterCount::kActiveWithHead; }
  // Top-1 routing at unit granularity only.
  ValidityRange range() const override {
    return {.n = {3e7, 3e9}, .d = {2e9, 2e11}, .experts = {1, 32}};
  }
  std::vector<ParamInfo> params() const override {
    return {{"a", true},
            {"alpha"},
            {"delta"},
            {"gamma"},
            {"b", true},
            {"beta"},
            {"omega"},
            {"zeta"},
            {"E_start", true, true},
            {"E_max", true, true},
            {"c", true}};
  }
  std::vector<PublishedConstants> published() const override {
    return {
        {"printed",
         {35.91, -.1889, -.2285, .0098, 35.98, -.1775, .5529, -.0259, 2.0732, 290.4521, 1.3637}}};
  }
  void terms(const LawInput& x, std::span<const double> theta, Terms& out) const override {
    const double e_start = std::exp(theta[kStart]);
    const double e_max = std::exp(theta[kMax]);
    const SaturatedExperts e = saturated_experts(x.experts, e_start, e_max);
    const double ln_n = std::log(x.n);
    const double ln_d = std::log(x.d);
    out.reset(3);
    out.add(0, kA, 1, theta);
    out.add(0, kAlpha, ln_n, theta);
    out.add(0, kDelta, e.log_e, theta);
    out.add(0, kGamma, e.log_e * ln_n, theta);
    out.add(1, kB, 1, theta);
    out.add(1, kBeta, ln_d, theta);
    out.add(1, kOmega, e.log_e, theta);
    out.add(1, kZeta, e.log_e * ln_d, theta);
    out.add(2, kC, 1, theta);
    const double dz_n = theta[kDelta] + theta[kGamma] * ln_n;
    const double dz_d = theta[kOmega] + theta[kZeta] * ln_d;
    out.sensitivity(0, kStart, dz_n * e.d_start * e_start);
    out.sensitivity(0, kMax, dz_n * e.d_max * e_max);
    out.sensitivity(1, kStart, dz_d * e.d_start * e_start);
    out.sensitivity(1, kMax, dz_d * e.d_max * e_max);
  }
  std::vector<std::vector<double>> starts() const override {
    return grid_product({{2, 4, 6},
                         {-.15, -.3},
                         {-.2, .2},
                         {0},
                         {2, 4, 6},
                         {-.15, -.3},
                         {-.2, .5},
                         {0},
                         {std::log(2.)},
                         {std::log(300.)},
                         {-.5, .3}});
  }
  double default_delta() const override { return 1e-2; }
};

}  // namespace

std::unique_ptr<Law> make_ludziejewski() {
  return std::make_unique<Ludziejewski>();
}

}  // namespace degu::scaling
