// log10 L = a log10 N + b log10 E^ + c log10 N log10 E^ + d with E^ the saturated number of
// experts: Clark et al. 2022, arXiv 2202.01169. Routed models at D = 130e9 tokens, so D does not
// enter.
#include <cmath>

#include "scaling/laws/registry.h"

namespace degu::scaling {
namespace {

enum Param { kA, kB, kC, kD, kStart, kMax };

class Clark final : public Law {
 public:
  std::string_view name() const override { return "clark"; }
  std::string_view summary() const override {
    return "log10 L = a log10 N + b log10 E^ + c log10 N log10 E^ + d, E^ saturated";
  }
  std::string_view source() const override { return "Clark et al. 2022, arXiv 2202.01169"; }
  ParameterCount n_definition() const override { return ParameterCount::kActiveNoEmbedding; }
  ValidityRange range() const override {
    return {.n = {1.5e7, 1.4e9}, .d = {1.25e11, 1.35e11}, .experts = {1, 512}};
  }
  bool uses_tokens() const override { return false; }
  // E_start > 1 and E_max > E_start hold by themselves at every fit seen; as logarithms both stay
  // positive.
  std::vector<ParamInfo> params() const override {
    return {{"a"}, {"b"}, {"c"}, {"d"}, {"E_start", true, true}, {"E_max", true, true}};
  }
  std::vector<PublishedConstants> published() const override {
    return {
        {"S-BASE, printed", {-.082, -.108, .009, 1.104, 1.847, 314.478}},
        {"RL-R, printed", {-.083, -.126, .012, 1.111, 1.880, 469.982}},
        {"HASH, printed", {-.087, -.136, .012, 1.157, 4.175, 477.741}},
        {"S-BASE, refit on the released runs", {-.08303, -.11804, .00992, 1.1136, 2.075, 238.7}},
        {"RL-R, refit on the released runs", {-.08273, -.12342, .01123, 1.1070, 1.722, 470.1}},
        {"HASH, refit on the released runs", {-.08736, -.13836, .01264, 1.1595, 4.269, 427.3}},
    };
  }
  void terms(const LawInput& x, std::span<const double> theta, Terms& out) const override {
    const double e_start = std::exp(theta[kStart]);
    const double e_max = std::exp(theta[kMax]);
    const SaturatedExperts e = saturated_experts(x.experts, e_start, e_max);
    const double ln_n = std::log(x.n);
    out.reset(1);
    out.add(0, kA, ln_n, theta);
    out.add(0, kB, e.log_e, theta);
    out.add(0, kC, ln_n * e.log_e / M_LN10, theta);
    out.add(0, kD, M_LN10, theta);
    const double dz = theta[kB] + theta[kC] * ln_n / M_LN10;
    out.sensitivity(0, kStart, dz * e.d_start * e_start);
    out.sensitivity(0, kMax, dz * e.d_max * e_max);
  }
  std::vector<std::vector<double>> starts() const override {
    const auto logs = [](std::vector<double> values) {
      for (double& v : values) v = std::log(v);
      return values;
    };
    return grid_product(
        {{-.08}, {-.1}, {.01}, {1.1}, logs({1.2, 2, 4, 8}), logs({100, 300, 1000})});
  }
};

// The same with E^ = E: linear in its coefficients, so its fit is closed-form.
class ClarkUnsaturated final : public Law {
 public:
  std::string_view name() const override { return "clark_unsaturated"; }
  std::string_view summary() const override {
    return "log10 L = a log10 N + b log10 E + c log10 N log10 E + d";
  }
  std::string_view source() const override { return "Clark et al. 2022, arXiv 2202.01169"; }
  ParameterCount n_definition() const override { return ParameterCount::kActiveNoEmbedding; }
  ValidityRange range() const override {
    return {.n = {1.5e7, 1.4e9}, .d = {1.25e11, 1.35e11}, .experts = {1, 512}};
  }
  bool uses_tokens() const override { return false; }
  std::vector<ParamInfo> params() const override { return {{"a"}, {"b"}, {"c"}, {"d"}}; }
  void terms(const LawInput& x, std::span<const double> theta, Terms& out) const override {
    const double ln_n = std::log(x.n), ln_e = std::log(x.experts);
    out.reset(1);
    out.add(0, kA, ln_n, theta);
    out.add(0, kB, ln_e, theta);
    out.add(0, kC, ln_n * ln_e / M_LN10, theta);
    out.add(0, kD, M_LN10, theta);
  }
  std::vector<std::vector<double>> starts() const override { return {{-.08, -.1, .01, 1.1}}; }
};

}  // namespace

std::unique_ptr<Law> make_clark_unsaturated() {
  return std::make_unique<ClarkUnsaturated>();
}

std::unique_ptr<Law> make_clark() {
  return std::make_unique<Clark>();
}

}  // namespace degu::scaling
