// L = a/N^alpha + b/D^beta + c/(1−S)^lambda + d/((1−S)^delta N^gamma) + e, S = (E − K)/E the
// sparsity: Abnar et al. 2025, arXiv 2501.12370. Constants second-hand, held-out R² only .68: use
// the form.
#include <cmath>

#include "scaling/laws/registry.h"

namespace degu::scaling {
namespace {

enum Param { kA, kAlpha, kB, kBeta, kC, kLambda, kD, kDelta, kGamma, kE };

class Abnar final : public Law {
 public:
  std::string_view name() const override { return "abnar"; }
  std::string_view summary() const override {
    return "L = a/N^alpha + b/D^beta + c/(1-S)^lambda + d/((1-S)^delta N^gamma) + e, S = (E-K)/E";
  }
  std::string_view source() const override { return "Abnar et al. 2025, arXiv 2501.12370"; }
  ParameterCount n_definition() const override { return ParameterCount::kTotal; }
  ValidityRange range() const override {
    return {.n = {1e8, 5e10}, .d = {1e9, 3e11}, .experts = {1, 1024}, .granularity = {1, 16}};
  }
  std::vector<ParamInfo> params() const override {
    return {{"a", true}, {"alpha"},   {"b", true}, {"beta"},  {"c", true},
            {"lambda"},  {"d", true}, {"delta"},   {"gamma"}, {"e", true}};
  }
  std::vector<PublishedConstants> published() const override {
    return {{"printed (second-hand)",
             {16612.5, .5962, 5455.67, .3954, .4598, -.1666, 17.26, .1603, .1595, .94}}};
  }
  void terms(const LawInput& x, std::span<const double> theta, Terms& out) const override {
    const double ln_n = std::log(x.n);
    const double ln_dense = std::log(x.top_k / x.experts);  // ln(1 − S)
    out.reset(5);
    out.add(0, kA, 1, theta);
    out.add(0, kAlpha, -ln_n, theta);
    out.add(1, kB, 1, theta);
    out.add(1, kBeta, -std::log(x.d), theta);
    out.add(2, kC, 1, theta);
    out.add(2, kLambda, -ln_dense, theta);
    out.add(3, kD, 1, theta);
    out.add(3, kDelta, -ln_dense, theta);
    out.add(3, kGamma, -ln_n, theta);
    out.add(4, kE, 1, theta);
  }
  std::vector<std::vector<double>> starts() const override {
    return grid_product({{5, 10, 15},
                         {.3, .6},
                         {5, 10},
                         {.3, .6},
                         {-1, 1},
                         {-.2, .2},
                         {0, 4},
                         {.15},
                         {.15, .3},
                         {-.5, .5}});
  }
  double default_delta() const override { return 1e-3; }
};

}  // namespace

std::unique_ptr<Law> make_abnar() {
  return std::make_unique<Abnar>();
}

}  // namespace degu::scaling
