// L = c + (g/G^gamma + a)/N^alpha + b/D^beta: Krajewski et al. 2024, arXiv 2402.07871. G =
// granularity.
#include <cmath>

#include "scaling/laws/registry.h"

namespace degu::scaling {
namespace {

enum Param { kC, kA, kAlpha, kB, kBeta, kG, kGamma };

class Krajewski final : public Law {
 public:
  std::string_view name() const override { return "krajewski"; }
  std::string_view summary() const override {
    return "L = c + (g/G^gamma + a)/N^alpha + b/D^beta, G the granularity";
  }
  std::string_view source() const override { return "Krajewski et al. 2024, arXiv 2402.07871"; }
  ParameterCount n_definition() const override { return ParameterCount::kTotalNoEmbedding; }
  // The constants belong to expansion rate 64: G * 64 experts of which a token visits G.
  ValidityRange range() const override {
    return {.n = {1e8, 4e9}, .d = {1e10, 1.4e11}, .experts = {64, 1024}, .granularity = {1, 16}};
  }
  std::vector<ParamInfo> params() const override {
    return {{"c", true}, {"a", true}, {"alpha"}, {"b", true}, {"beta"}, {"g", true}, {"gamma"}};
  }
  std::vector<PublishedConstants> published() const override {
    return {{"printed, expansion rate 64", {.47, 18.1, .115, 30.8, .147, 2.1, .58}}};
  }
  void terms(const LawInput& x, std::span<const double> theta, Terms& out) const override {
    const double ln_n = std::log(x.n);
    out.reset(4);
    out.add(0, kG, 1, theta);
    out.add(0, kGamma, -std::log(x.granularity), theta);
    out.add(0, kAlpha, -ln_n, theta);
    out.add(1, kA, 1, theta);
    out.add(1, kAlpha, -ln_n, theta);
    out.add(2, kB, 1, theta);
    out.add(2, kBeta, -std::log(x.d), theta);
    out.add(3, kC, 1, theta);
  }
  std::vector<std::vector<double>> starts() const override {
    const std::vector<double> intercepts = {0, 5, 10};
    const std::vector<double> exponents = {.1, .3, .6};
    return grid_product(
        {{-1, 0, .5}, intercepts, exponents, intercepts, exponents, {0, 3}, {.3, .8}});
  }
  double default_delta() const override { return .1; }
};

}  // namespace

std::unique_ptr<Law> make_krajewski() {
  return std::make_unique<Krajewski>();
}

}  // namespace degu::scaling
