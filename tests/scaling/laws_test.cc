// Every law of the registry: derivatives, both spaces, and the values its paper or a recomputation
// gives.
#include <catch2/catch.hpp>
#include <cmath>
#include <memory>

#include "base/random.h"
#include "scaling/laws/multipliers.h"
#include "scaling/laws/registry.h"
#include "shape/accounting.h"

namespace degu::scaling {
namespace {

std::vector<LawInput> sample_inputs() {
  return {{.n = 3e8, .d = 2e10},
          {.n = 1e9, .d = 4e9, .experts = 8, .top_k = 2, .granularity = 2, .unique_tokens = 1e9},
          {.n = 2e7,
           .d = 5e8,
           .experts = 64,
           .top_k = 4,
           .granularity = 4,
           .unique_tokens = 6e7,
           .weight_bits = 4,
           .activation_bits = 8,
           .kv_bits = 3}};
}

TEST_CASE("derivatives of every law are those of its value") {
  for (const LawFactory make : law_table()) {
    const std::unique_ptr<Law> law = make();
    const std::vector<ParamInfo> params = law->params();
    const std::vector<std::vector<double>> starts = law->starts();
    INFO(law->name());
    REQUIRE(!starts.empty());
    for (const std::vector<double>& theta : {starts.front(), starts[starts.size() / 2]}) {
      REQUIRE(theta.size() == params.size());
      for (const LawInput& x : sample_inputs()) {
        Terms at, up, down;
        law->terms(x, theta, at);
        std::vector<double> gradient(theta.size(), 0);
        for (const Terms::Derivative& d : at.derivatives())
          gradient[d.param] += std::exp(at.z()[d.term] - at.log_sum()) * d.value;
        for (size_t j = 0; j < theta.size(); ++j) {
          // The knee of Muennighoff's N' moves with the coefficients; its derivative leaves that
          // out by design.
          if (law->name() == "muennighoff" && x.unique_tokens > 0 && j < 5) continue;
          const double h = 1e-5;
          std::vector<double> moved = theta;
          moved[j] += h;
          law->terms(x, moved, up);
          moved[j] -= 2 * h;
          law->terms(x, moved, down);
          const double expected = (up.log_sum() - down.log_sum()) / (2 * h);
          INFO(params[j].name);
          CHECK(std::abs(gradient[j] - expected) <= 1e-6 * (1 + std::abs(expected)));
        }
      }
    }
  }
}

TEST_CASE(
    "published and internal values are each other's inverse, published constants fit their law") {
  for (const LawFactory make : law_table()) {
    const std::unique_ptr<Law> law = make();
    INFO(law->name());
    for (const PublishedConstants& known : law->published()) {
      REQUIRE(known.values.size() == law->params().size());
      const std::vector<double> back = law->publish(law->internalize(known.values));
      for (size_t i = 0; i < back.size(); ++i)
        CHECK(std::abs(back[i] - known.values[i]) < 1e-12 * (1 + std::abs(known.values[i])));
    }
    CHECK_THROWS_AS(law->predict(std::vector<double>{1.0}, {.n = 1e8, .d = 1e9}), DataError);
  }
}

TEST_CASE("the joint law gives its recomputed losses") {
  const auto law = make_ludziejewski();
  const std::vector<double> p = law->published()[0].values;
  const double experts[] = {1, 2, 4, 8, 16, 32};
  const double losses[] = {2.57760, 2.55868, 2.53516, 2.50878, 2.48139, 2.45456};
  for (int i = 0; i < 6; ++i)
    CHECK(std::abs(law->predict(p, {.n = 1e9, .d = 2e10, .experts = experts[i]}) - losses[i]) <
          6e-6);
}

TEST_CASE("each law counts the N of its authors") {
  const std::pair<const char*, ParameterCount> expected[] = {
      {"chinchilla", ParameterCount::kTotal},
      {"clark", ParameterCount::kActiveNoEmbedding},
      {"clark_unsaturated", ParameterCount::kActiveNoEmbedding},
      {"krajewski", ParameterCount::kTotalNoEmbedding},
      {"ludziejewski", ParameterCount::kActiveWithHead},
      {"abnar", ParameterCount::kTotal},
      {"muennighoff", ParameterCount::kTotal},
      {"kumar", ParameterCount::kTotalNoEmbedding},
  };
  CHECK(law_table().size() == std::size(expected) + 1);  // multipliers: whatever its table has
  for (const auto& [name, count] : expected) {
    INFO(name);
    CHECK(make_law(name)->n_definition() == count);
  }
}

// The released runs name 368,123,904 parameters for 12 blocks of width 1,536, with any number of
// experts and with two of them visited: one expert's, without the embedding, and with a matrix and
// biases per block for relative positions that our blocks lack.
TEST_CASE("Clark's N is what one token uses without the embedding") {
  ModelShape shape;
  shape.vocab = 32000;
  shape.width = 1536;
  shape.layers = 12;
  shape.heads = 12;
  shape.ffn_width = 4096;  // three matrices: 8 d², as theirs of two
  const int64_t d = shape.width;
  const int64_t ours = parameter_count(shape, make_clark()->n_definition());
  CHECK(ours == 12 * 12 * d * d + 25 * d);
  CHECK(ours - 25 * d + 12 * (d * d + 4 * d) == 368'123'904);
  shape.vocab = 50000;
  shape.moe = {.experts = 128, .top_k = 1, .expert_width = 4096};
  CHECK(parameter_count(shape, make_clark()->n_definition()) == ours + 12 * 128 * d);  // routers
}

TEST_CASE("Clark: experts stop helping at N_cutoff") {
  const auto law = make_clark();
  for (const PublishedConstants& known : law->published()) {
    const std::vector<double>& p = known.values;
    const double cutoff = std::pow(10, -p[1] / p[2]);
    const auto at = [&](double n, double experts) {
      return law->predict(p, {.n = n, .d = 1.3e11, .experts = experts});
    };
    CHECK(at(cutoff, 512) == Approx(at(cutoff, 1)).epsilon(1e-12));
    CHECK(at(cutoff / 10, 512) < at(cutoff / 10, 1));
    CHECK(at(cutoff * 10, 512) > at(cutoff * 10, 1));
  }
}

TEST_CASE("formulas of the laws that no paper's table checks") {
  const auto abnar = make_abnar();
  const std::vector<double> a = abnar->published()[0].values;
  for (const double kept : {1.0, .25, 1.0 / 32}) {
    const double expected = 16612.5 / std::pow(2e9, .5962) + 5455.67 / std::pow(4e10, .3954) +
                            .4598 / std::pow(kept, -.1666) +
                            17.26 / (std::pow(kept, .1603) * std::pow(2e9, .1595)) + .94;
    CHECK(abnar->predict(a, {.n = 2e9, .d = 4e10, .experts = 32, .top_k = 32 * kept}) ==
          Approx(expected));
  }
  const auto kumar = make_kumar();
  const std::vector<double> k = {2.7648, 4299, 5000, .4965, .4965, 2.6745, 2.2102, .9578};
  const double kept =
      (1 - std::exp(-4 / 2.6745)) * (1 - std::exp(-8 / 2.2102)) * (1 - std::exp(-3 / .9578));
  CHECK(kumar->predict(
            k, {.n = 1e8, .d = 1e10, .weight_bits = 4, .activation_bits = 8, .kv_bits = 3}) ==
        Approx(2.7648 + 4299 / std::pow(1e8 * kept, .4965) + 5000 / std::pow(1e10, .4965)));
  const auto repeated = make_muennighoff();
  const std::vector<double> m = repeated->published()[0].values;
  const double effective = 1e9 * (1 + 15.387756 * (1 - std::exp(-3 / 15.387756)));
  CHECK(repeated->predict(m, {.n = 1e7, .d = 4e9, .unique_tokens = 1e9}) ==
        Approx(1.87 + 521 / std::pow(1e7, .3527) + 1488 / std::pow(effective, .3527)));
}

TEST_CASE("saturation: E_start at one expert, E_max at infinitely many") {
  CHECK(std::exp(saturated_experts(1, 2.0732, 290.4521).log_e) == Approx(2.0732));
  CHECK(std::exp(saturated_experts(1e15, 2.0732, 290.4521).log_e) == Approx(290.4521));
}

TEST_CASE("Muennighoff: data seen once is Chinchilla's, repeats saturate") {
  const auto law = make_muennighoff();
  const std::vector<double> p = law->published()[0].values;
  const auto once = law->predict(p, {.n = 1e8, .d = 1e10});
  CHECK(once == Approx(p[0] + p[1] * std::pow(1e8, -p[3]) + p[2] * std::pow(1e10, -p[4])));
  const auto repeated = [&](double d) {
    return law->predict(p, {.n = 1e8, .d = d, .unique_tokens = 1e10});
  };
  CHECK(repeated(4e10) < repeated(2e10));
  CHECK(repeated(4e10) > law->predict(p, {.n = 1e8, .d = 4e10}));
  CHECK(repeated(1e14) == Approx(repeated(1e15)).epsilon(1e-6));
}

TEST_CASE("multipliers: m times the parameters has the reference's loss") {
  const std::vector<ExpertGroup> groups = {{}, {8, 2, 2}, {64, 8, 8}};
  const auto law = make_multipliers(groups);
  const std::vector<double> p = {1.7, 400, 2000, .34, .36, 2.5, 4};
  CHECK(law->params()[5].name == "m E8 K2 G2");
  for (int g = 1; g < 3; ++g)
    CHECK(law->predict(p, {.n = 1e8, .d = 1e10, .group = g}) ==
          Approx(law->predict(p, {.n = 1e8 * p[4 + g], .d = 1e10})));
  const std::vector<double> back = law->publish(law->internalize(p));
  for (size_t i = 0; i < p.size(); ++i) CHECK(back[i] == Approx(p[i]));
}

TEST_CASE("an extrapolation is named, a wrong law's name too") {
  const auto law = make_chinchilla();
  CHECK(law->out_of_range({.n = 1e9, .d = 1e10}).empty());
  CHECK(law->out_of_range({.n = 1e13, .d = 1e10, .experts = 8}).size() == 2);
  CHECK_THROWS_WITH(make_law("chinchila"), Catch::Contains("chinchilla"));
}

}  // namespace
}  // namespace degu::scaling
