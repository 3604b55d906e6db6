// L = A N_eff^−alpha + B D^−beta + E, N_eff = N prod_x (1 − exp(−P_x/gamma_x)) over the bits P_x of
// weights, activations and key/value cache: Kumar et al. 2024, arXiv 2411.04330 (training
// precision; the post-training term is fitted to measurements of quantized checkpoints, not here).
// Their B was not found: use the form, not the constants.
#include <array>
#include <cmath>

#include "scaling/laws/registry.h"

namespace degu::scaling {
namespace {

enum Param { kE, kA, kB, kAlpha, kBeta, kWeight, kActivation, kKv };

class Kumar final : public Law {
 public:
  std::string_view name() const override { return "kumar"; }
  std::string_view summary() const override {
    return "L = E + A/N_eff^alpha + B/D^beta, N_eff = N prod_x (1 - exp(-bits_x/gamma_x))";
  }
  std::string_view source() const override { return "Kumar et al. 2024, arXiv 2411.04330"; }
  ParameterCount n_definition() const override { return ParameterCount::kTotalNoEmbedding; }
  ValidityRange range() const override { return {.n = {3e7, 2e9}, .d = {1e9, 2.6e10}}; }
  std::vector<ParamInfo> params() const override {
    return {{"E", true},
            {"A", true},
            {"B", true},
            {"alpha"},
            {"beta"},
            {"gamma_weights", true, true},
            {"gamma_activations", true, true},
            {"gamma_kv", true, true}};
  }
  void terms(const LawInput& x, std::span<const double> theta, Terms& out) const override {
    const std::array<double, 3> bits = {x.weight_bits, x.activation_bits, x.kv_bits};
    double ln_n = std::log(x.n);
    std::array<double, 3> slope{};  // d ln N_eff / d ln gamma_x
    for (int i = 0; i < 3; ++i) {
      const double gamma = std::exp(theta[kWeight + i]);
      const double lost = std::exp(-bits[i] / gamma);
      ln_n += std::log1p(-lost);
      slope[i] = -lost / (1 - lost) * bits[i] / gamma;
    }
    out.reset(3);
    out.add(0, kA, 1, theta);
    out.add(0, kAlpha, -ln_n, theta);
    out.add(1, kB, 1, theta);
    out.add(1, kBeta, -std::log(x.d), theta);
    out.add(2, kE, 1, theta);
    for (int i = 0; i < 3; ++i) out.sensitivity(0, kWeight + i, -theta[kAlpha] * slope[i]);
  }
  std::vector<std::vector<double>> starts() const override {
    return grid_product(
        {{0, .5, 1}, {5, 10}, {5, 10}, {.3, .5}, {.3, .5}, {std::log(2.7)}, {std::log(2.2)}, {0}});
  }
  double default_delta() const override { return 1e-3; }
};

}  // namespace

std::unique_ptr<Law> make_kumar() {
  return std::make_unique<Kumar>();
}

}  // namespace degu::scaling
