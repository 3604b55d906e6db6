// L = E + A/N^alpha + B/D^beta: Hoffmann et al. 2022, arXiv 2203.15556. Dense models.
#include <cmath>

#include "scaling/laws/registry.h"

namespace degu::scaling {
namespace {

enum Param { kE, kA, kB, kAlpha, kBeta };

class Chinchilla final : public Law {
 public:
  std::string_view name() const override { return "chinchilla"; }
  std::string_view summary() const override { return "L = E + A/N^alpha + B/D^beta"; }
  std::string_view source() const override { return "Hoffmann et al. 2022, arXiv 2203.15556"; }
  ParameterCount n_definition() const override { return ParameterCount::kTotal; }
  ValidityRange range() const override { return {.n = {4e7, 1.7e10}, .d = {1e8, 5e11}}; }
  std::vector<ParamInfo> params() const override {
    return {{"E", true}, {"A", true}, {"B", true}, {"alpha"}, {"beta"}};
  }
  std::vector<PublishedConstants> published() const override {
    return {
        {"printed (Hoffmann et al. 2022; not the optimum of its own objective)",
         {1.69, 406.4, 410.7, .34, .28}},
        {"refit on the 240 digitised runs, Huber delta 1e-3",
         {1.817218099, 477.825868, 2143.41736, .3473104989, .3671724326}},
        {"Besiroglu et al. 2024, arXiv 2404.10102, bootstrap mean",
         {1.8172, 482.01, 2085.43, .3478, .3658}},
    };
  }
  void terms(const LawInput& x, std::span<const double> theta, Terms& out) const override {
    out.reset(3);
    out.add(0, kA, 1, theta);
    out.add(0, kAlpha, -std::log(x.n), theta);
    out.add(1, kB, 1, theta);
    out.add(1, kBeta, -std::log(x.d), theta);
    out.add(2, kE, 1, theta);
  }
  // The paper's 4,500 starts.
  std::vector<std::vector<double>> starts() const override {
    const std::vector<double> intercepts = {0, 5, 10, 15, 20, 25};
    const std::vector<double> exponents = {0, .5, 1, 1.5, 2};
    return grid_product({{-1, -.5, 0, .5, 1}, intercepts, intercepts, exponents, exponents});
  }
  double default_delta() const override { return 1e-3; }
};

}  // namespace

std::unique_ptr<Law> make_chinchilla() {
  return std::make_unique<Chinchilla>();
}

}  // namespace degu::scaling
