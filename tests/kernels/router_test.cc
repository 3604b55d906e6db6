// Router scores, the choice of experts and everything's gradient, against double precision.
#include "kernels/api/router.h"

#include <algorithm>
#include <limits>
#include <set>

#include "tests/support/device_testing.h"
#include "tests/support/gradient_check.h"

namespace degu {
namespace {

using namespace degu::testing;

struct Case {
  int64_t tokens, experts;
  RouterOptions options;
  bool bias;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (Score score : {Score::kSoftmax, Score::kSigmoid}) {
    for (bool renormalize : {false, true}) {
      for (bool bias : {false, true}) {
        const auto add = [&](int64_t tokens, int64_t experts, int top_k, float scale) {
          all.push_back({tokens, experts, {score, top_k, renormalize, scale}, bias});
        };
        add(0, 4, 2, 1.0f);
        add(1, 1, 1, 1.0f);
        add(9, 8, 2, 1.0f);
        add(5, 16, 16, 2.5f);
        add(4, 33, 3, 0.5f);
        add(70, 17, 3, 1.0f);
        add(300, 64, 8, 1.0f);
      }
    }
  }
  return all;
}

struct Routed {
  explicit Routed(const Case& c)
      : logit(random_tensor(DType::kF32, {c.tokens, c.experts}, "logit", 2.0)),
        bias(c.bias ? random_tensor(DType::kF32, {c.experts}, "bias", 0.2) : Tensor{}),
        score(DType::kF32, {c.tokens, c.experts}),
        gate(DType::kF32, {c.tokens, c.options.top_k}),
        lse(DType::kF32, {c.tokens}),
        expert(DType::kI32, {c.tokens, c.options.top_k}) {}
  void run(Context& context, const Case& c) {
    for (const Tensor* each : {&score, &gate, &lse}) fill_nan(*each);
    testing::run(context, router_topk, logit, bias, c.options, score, expert, gate, lse);
  }
  Tensor logit, bias, score, gate, lse, expert;
};

std::vector<double> scores(const std::vector<double>& logit, size_t experts, Score kind) {
  std::vector<double> s;
  for (size_t t = 0; t < logit.size(); t += experts) {
    double sum = 0;
    for (size_t e = 0; e < experts; ++e) sum += std::exp(logit[t + e]);
    for (size_t e = 0; e < experts; ++e) {
      s.push_back(kind == Score::kSoftmax ? std::exp(logit[t + e]) / sum
                                          : 1 / (1 + std::exp(-logit[t + e])));
    }
  }
  return s;
}

// Gates of the experts that were chosen, in double precision.
std::vector<double> gates(const std::vector<double>& score, const AnyView& expert, const Case& c) {
  std::vector<double> g;
  const auto k_count = static_cast<size_t>(c.options.top_k);
  for (int64_t t = 0; t < c.tokens; ++t) {
    double sum = 0;
    std::vector<double> chosen;
    for (size_t k = 0; k < k_count; ++k) {
      const double e = element(expert, t * c.options.top_k + static_cast<int64_t>(k));
      chosen.push_back(score[static_cast<size_t>(t * c.experts) + static_cast<size_t>(e)]);
      sum += chosen.back();
    }
    for (double s : chosen)
      g.push_back((c.options.renormalize ? s / sum : s) *
                  static_cast<double>(c.options.gate_scale));
  }
  return g;
}

TEST_CASE("router_topk scores, chooses and gates", "[router]") {
  for_each_backend([&](Context& context) {
    for (const Case& c : cases()) {
      Routed r(c);
      r.run(context, c);
      const auto wanted =
          scores(values_of(r.logit), static_cast<size_t>(c.experts), c.options.score);
      // exp errs by a few ulp of e^x plus the rounding of logit - max; sums over E add E roundings.
      const double u = (static_cast<double>(c.experts) + 40) * unit_roundoff(DType::kF32);
      Expected es, eg, el;
      for (double s : wanted) es.push(s, u * s);
      for (double g : gates(wanted, r.expert, c)) eg.push(g, 2 * u * g);
      for (int64_t t = 0; t < c.tokens; ++t) {
        double sum = 0;
        for (int64_t e = 0; e < c.experts; ++e)
          sum += std::exp(element(r.logit, t * c.experts + e));
        el.push(std::log(sum), u * (1 + std::fabs(std::log(sum))));
      }
      check_close("score_TE", r.score, es);
      check_close("gate_TK", r.gate, eg);
      check_close("lse_T", r.lse, el);
      for (int64_t t = 0; t < c.tokens; ++t) {
        std::vector<int32_t> order(static_cast<size_t>(c.experts));
        for (size_t e = 0; e < order.size(); ++e) order[e] = static_cast<int32_t>(e);
        const auto key = [&](int32_t e) {  // the sum that the kernel ranks, from its own scores
          const float s = r.score.as<float>()(t, e);
          return c.bias ? s + r.bias.as<float>()[e] : s;
        };
        std::stable_sort(order.begin(), order.end(),
                         [&](int32_t a, int32_t b) { return key(a) > key(b); });
        for (int64_t k = 0; k < c.options.top_k; ++k) {
          if (r.expert.as<int32_t>()(t, k) != order[static_cast<size_t>(k)])
            FAIL("token " << t << " slot " << k);
        }
      }
    }
  });
}

TEST_CASE("ties go to the lower expert index", "[router]") {
  for_each_backend([&](Context& context) {
    for (int64_t experts : {2, 5, 16, 37}) {
      for (int top_k = 1; top_k <= std::min<int>(4, static_cast<int>(experts)); ++top_k) {
        const Case c{3, experts, {.top_k = top_k}, false};
        Routed r(c);
        fill_nan(r.logit);
        for (int64_t i = 0; i < 3 * experts; ++i)
          r.logit.as<float>()[i] = i < experts ? 0.5f : 0.0f;
        r.logit.as<float>()(2, experts - 1) = 1.0f;  // one above the tied rest
        r.run(context, c);
        for (int64_t k = 0; k < top_k; ++k) {
          CHECK(r.expert.as<int32_t>()(0, k) == k);
          CHECK(r.expert.as<int32_t>()(1, k) == k);
          CHECK(r.expert.as<int32_t>()(2, k) == (k == 0 ? experts - 1 : k - 1));
        }
      }
    }
  });
}

TEST_CASE("NaN and infinite logits give NaN gates and still K different experts", "[router]") {
  const float inf = std::numeric_limits<float>::infinity();
  for_each_backend([&](Context& context) {
    for (Score score : {Score::kSoftmax, Score::kSigmoid}) {
      const Case c{5, 20, {.score = score, .top_k = 3}, false};
      Routed r(c);
      r.logit.as<float>()(0, 7) = std::nanf("");
      r.logit.as<float>()(1, 7) = inf;
      r.logit.as<float>()(2, 7) = -inf;
      for (int64_t e = 0; e < 20; ++e) r.logit.as<float>()(3, e) = std::nanf("");
      for (int64_t e = 0; e < 20; ++e) r.logit.as<float>()(4, e) = -inf;
      r.run(context, c);
      for (int64_t t = 0; t < 5; ++t) {
        std::set<int32_t> chosen;
        for (int64_t k = 0; k < 3; ++k) chosen.insert(r.expert.as<int32_t>()(t, k));
        CHECK(chosen.size() == 3);
        CHECK(*chosen.begin() >= 0);
        CHECK(*chosen.rbegin() < 20);
      }
      CHECK(std::isnan(element(r.lse, 0)));
      CHECK(std::isnan(element(r.score, 7)));
      CHECK(std::isnan(element(r.lse, 1)));
      CHECK(std::isfinite(element(r.lse, 2)));
      CHECK(element(r.score, 2 * 20 + 7) == 0);
      CHECK(std::isnan(element(r.gate, 3 * 3)));
      CHECK(r.expert.as<int32_t>()(3, 0) == 0);
      if (score == Score::kSoftmax) {
        CHECK(std::isnan(element(r.gate, 0)));
        CHECK(std::isnan(element(r.gate, 3)));
      } else {
        CHECK(element(r.score, 20 + 7) == 1);
      }
    }
  });
}

TEST_CASE("router_topk_backward is the derivative of gates, balance and z-loss", "[router]") {
  for_each_backend([&](Context& context) {
    for (const Case& c : cases()) {
      if (c.tokens * c.experts > 200) continue;  // the differences cost the square of it
      INFO("tokens " << c.tokens << ", experts " << c.experts << ", top_k " << c.options.top_k
                     << ", sigmoid " << (c.options.score == Score::kSigmoid) << ", renormalize "
                     << c.options.renormalize);
      Routed r(c);
      r.run(context, c);
      const std::vector<int64_t> groups = {0, c.tokens / 3, c.tokens / 3, c.tokens};
      const Tensor dgate = random_tensor(DType::kF32, r.gate.shape(), "dgate");
      const Tensor dshare = random_tensor(DType::kF32, {3, c.experts}, "dshare");
      const auto gate_weight = values_of(dgate), share_weight = values_of(dshare);
      for (bool balanced : {false, true}) {
        for (float dz : {0.0f, 0.01f}) {
          Tensor dlogit(DType::kF32, r.logit.shape());
          fill_nan(dlogit);
          run(context, router_topk_backward, r.logit, r.score, r.expert, r.gate, r.lse, dgate,
              balanced ? dshare.view() : AnyView{}, groups, dz, c.options, dlogit);
          const auto experts = static_cast<size_t>(c.experts);
          // One token at a time: no other token's terms depend on its logits.
          const auto objective = [&](const std::vector<double>& logit) {
            const auto s = scores(logit, experts, c.options.score);
            double sum = weighted(gates(s, r.expert, c), gate_weight);
            for (size_t t = 0; t * experts < logit.size(); ++t) {
              const size_t group = static_cast<int64_t>(t) < groups[1] ? 0 : 2;
              double total = 0, exp_sum = 0;
              for (size_t e = 0; e < experts; ++e) {
                total += s[t * experts + e];
                exp_sum += std::exp(logit[t * experts + e]);
              }
              for (size_t e = 0; balanced && e < experts; ++e) {
                const double share =
                    s[t * experts + e] / (c.options.score == Score::kSoftmax ? 1.0 : total);
                sum += share_weight[group * experts + e] * share;
              }
              sum += static_cast<double>(dz) * std::log(exp_sum) * std::log(exp_sum);
            }
            return sum;
          };
          check_gradient("dlogit_TE", dlogit, objective, values_of(r.logit));
        }
      }
    }
  });
}

TEST_CASE("router_balance counts and sums each group in row order, bit for bit", "[router]") {
  for (Isa isa : supported_isas()) {
    for (Score score : {Score::kSoftmax, Score::kSigmoid}) {
      const Case c{50, 21, {.score = score, .top_k = 4}, true};
      const std::vector<int64_t> groups = {0, 20, 20, 21, 50};
      Tensor first;
      for_each_thread_count(isa, [&](Context& context) {
        Routed r(c);
        r.run(context, c);
        Tensor count(DType::kI64, {4, c.experts}), sum(DType::kF32, {4, c.experts});
        fill_nan(sum);
        run(context, router_balance, r.score, r.expert, groups, score, count, sum);
        Expected es;
        for (int64_t g = 0; g < 4; ++g) {
          for (int64_t e = 0; e < c.experts; ++e) {
            int64_t chosen = 0;
            ReferenceSum wanted;
            for (int64_t t = groups[static_cast<size_t>(g)]; t < groups[static_cast<size_t>(g) + 1];
                 ++t) {
              for (int64_t k = 0; k < 4; ++k) chosen += r.expert.as<int32_t>()(t, k) == e;
              double total = 0;
              for (int64_t j = 0; j < c.experts; ++j) total += element(r.score, t * c.experts + j);
              wanted.add(element(r.score, t * c.experts + e) /
                         (score == Score::kSoftmax ? 1.0 : total));
            }
            if (count.as<int64_t>()(g, e) != chosen) FAIL("group " << g << " expert " << e);
            es.push(wanted.value(),
                    32 * wanted.tolerance(DType::kF32));  // a share has E roundings of its own
          }
        }
        check_close("score_sum_GE", sum, es);
        if (!first) first = copy_of(sum);
        check_same_bits("score_sum_GE", sum, first);
        // A group's sums do not depend on its neighbours.
        const std::vector<int64_t> alone = {0, 29};
        Tensor count_alone(DType::kI64, {1, c.experts}), sum_alone(DType::kF32, {1, c.experts});
        run(context, router_balance, r.score.view().rows(21, 29), r.expert.view().rows(21, 29),
            alone, score, count_alone, sum_alone);
        check_same_bits("the last group alone", sum_alone, sum.view().rows(3, 1));
      });
    }
  }
}

TEST_CASE("balance_losses makes losses, loads and a gradient of counts and sums", "[router]") {
  constexpr int64_t kGroups = 4, kExperts = 21, kTopK = 3, kTokens = 300;
  constexpr double kWeight = 0.7;
  const std::vector<int64_t> groups = {0, 20, 20, 21, kTokens};
  for_each_backend([&](Context& context) {
    const Tensor lse = random_tensor(DType::kF32, {kTokens}, "lse");
    const Tensor sum = random_tensor(DType::kF32, {kGroups, kExperts}, "sum");
    Tensor count(DType::kI64, {kGroups, kExperts});
    for (int64_t i = 0; i < kGroups * kExperts; ++i) count.as<int64_t>()[i] = (i * 7) % 11;
    Tensor aux(DType::kF64, {kGroups}), z(DType::kF64, {kGroups});
    Tensor load(DType::kI64, {kExperts}), dscore(DType::kF32, {kGroups, kExperts});
    fill_nan(dscore);
    run(
        context,
        [&](Context& at, AnyView count_GE, AnyView sum_GE, AnyView lse_T, AnyView aux_G,
            AnyView z_G, AnyView load_E, AnyView dscore_GE) {
          balance_losses(at, count_GE, sum_GE, lse_T, groups, kTopK, kWeight, aux_G, z_G, load_E,
                         dscore_GE);
        },
        count, sum, lse, aux, z, load, dscore);
    Expected gradient;
    for (int64_t g = 0; g < kGroups; ++g) {
      const auto begin = groups[static_cast<size_t>(g)], end = groups[static_cast<size_t>(g) + 1];
      const auto tokens = static_cast<double>(end - begin);
      const double scale = end > begin ? kExperts / (kTopK * tokens * tokens) : 0;
      double losses = 0, squares = 0;
      for (int64_t e = 0; e < kExperts; ++e) {
        const double share = scale * static_cast<double>(count.as<int64_t>()(g, e));
        losses += share * element(sum, g * kExperts + e);
        gradient.push(kWeight * share, 1e-7 * kWeight * share + 1e-30);
      }
      for (int64_t t = begin; t < end; ++t) squares += element(lse, t) * element(lse, t);
      CHECK(aux.as<double>()[g] == Approx(losses).epsilon(1e-12).margin(1e-12));
      CHECK(z.as<double>()[g] == Approx(squares).epsilon(1e-12).margin(1e-12));
    }
    check_close("dscore_GE", dscore, gradient);
    for (int64_t e = 0; e < kExperts; ++e) {
      int64_t total = 0;
      for (int64_t g = 0; g < kGroups; ++g) total += count.as<int64_t>()(g, e);
      CHECK(load.as<int64_t>()[e] == total);
    }
  });
}

TEST_CASE("balance_bias moves each bias by the rate against its load", "[router]") {
  for_each_backend([&](Context& context) {
    for (int64_t experts : {1, 3, 64, 300}) {
      Tensor load(DType::kI64, {experts}), scale(DType::kF32, {1});
      Tensor bias = random_tensor(DType::kF32, {experts}, "bias");
      int64_t total = 0;
      for (int64_t e = 0; e < experts; ++e) {
        load.as<int64_t>()[e] = (int64_t{1} << 40) + e * e % 7;
        total += load.as<int64_t>()[e];
      }
      scale.as<float>()[0] = std::nanf("");
      const Tensor before = copy_of(bias);
      run(context, balance_bias, load, 0.01, scale, bias);
      check_same_bits("bias of a skipped step", bias, before);
      Tensor expected = copy_of(bias);
      for (int64_t e = 0; e < experts; ++e) {
        const int64_t excess = load.as<int64_t>()[e] * experts - total;
        expected.as<float>()[e] += excess > 0 ? -0.01f : excess < 0 ? 0.01f : 0.0f;
      }
      scale.as<float>()[0] = 0.5f;
      run(context, balance_bias, load, 0.01, scale, bias);
      check_same_bits("bias", bias, expected);
      run(context, balance_bias, load, 0.0, AnyView{}, bias);
      check_same_bits("bias without a rate", bias, expected);
    }
  });
}

TEST_CASE("a token's routing does not depend on its neighbours or on threads", "[router]") {
  for (Isa isa : supported_isas()) {
    const Case c{2000, 24, {.top_k = 3}, true};
    Tensor first_gate, first_expert;
    for_each_thread_count(isa, [&](Context& context) {
      Routed r(c);
      r.run(context, c);
      if (!first_gate) {
        first_gate = copy_of(r.gate);
        first_expert = copy_of(r.expert);
      }
      check_same_bits("gate_TK", r.gate, first_gate);
      check_same_bits("expert_TK", r.expert, first_expert);
      const Case one{1, 24, c.options, true};
      Routed alone(one);
      std::memcpy(alone.logit.view().data, r.logit.view().rows(1999, 1).data, 24 * sizeof(float));
      alone.run(context, one);
      check_same_bits("gate of the last token alone", alone.gate, r.gate.view().rows(1999, 1));
    });
  }
}

TEST_CASE("router operators name what does not fit", "[router]") {
  Context context(test_options(default_isa(), 1));
  Case c{4, 6, {.top_k = 2}, false};
  Routed r(c);
  c.options.top_k = 7;
  CHECK_THROWS_WITH(
      router_topk(context, r.logit, r.bias, c.options, r.score, r.expert, r.gate, r.lse),
      Catch::Contains("top_k is 7"));
  c.options.top_k = 3;
  CHECK_THROWS_AS(
      router_topk(context, r.logit, r.bias, c.options, r.score, r.expert, r.gate, r.lse),
      ShapeError);
  const std::vector<int64_t> groups = {0, 3};
  const Tensor count(DType::kI64, {1, 6}), sum(DType::kF32, {1, 6});
  CHECK_THROWS_AS(router_balance(context, r.score, r.expert, groups, Score::kSoftmax, count, sum),
                  ShapeError);
}

}  // namespace
}  // namespace degu
