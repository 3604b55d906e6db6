#include "infer/sampling.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <map>
#include <set>

#include "base/error.h"
#include "base/random.h"

namespace degu {
namespace {

std::vector<float> random_logits(int64_t vocab, uint64_t seed) {
  const RandomStream stream(seed, "logits");
  std::vector<float> logits;
  for (int64_t i = 0; i < vocab; ++i) {
    // Few distinct values, so that ties are common.
    logits.push_back(
        static_cast<float>(std::round(4 * stream.normal(static_cast<uint64_t>(i))) / 2));
  }
  return logits;
}

// What sampling.h says, step by step, without a thought for speed: token → probability.
std::map<int32_t, double> allowed(std::vector<float> logits, const SamplingParams& p,
                                  const std::vector<int32_t>& prompt,
                                  const std::vector<int32_t>& output) {
  for (size_t i = 0; i < logits.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    const auto count = std::count(output.begin(), output.end(), id);
    const bool seen = count > 0 || std::count(prompt.begin(), prompt.end(), id) > 0;
    double l = static_cast<double>(logits[i]);
    if (seen) l = l > 0 ? l / p.repetition_penalty : l * p.repetition_penalty;
    if (count > 0) l -= p.frequency_penalty * static_cast<double>(count) + p.presence_penalty;
    logits[i] = static_cast<float>(l);
    for (const auto& [token, bias] : p.logit_bias) {
      if (token == id) logits[i] += bias;
    }
  }
  std::vector<int32_t> order(logits.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  if (p.temperature == 0) return {{order.front(), 1.0}};
  const double top = static_cast<double>(logits[static_cast<size_t>(order.front())]);
  const auto weight = [&](int32_t id) {
    return std::exp((static_cast<double>(logits[static_cast<size_t>(id)]) - top) / p.temperature);
  };
  if (p.top_k > 0) order.resize(std::min(order.size(), static_cast<size_t>(p.top_k)));
  double mass = 0;
  for (int32_t id : order) mass += weight(id);
  std::map<int32_t, double> kept;
  double held = 0;
  for (int32_t id : order) {
    if (p.top_p < 1 && !kept.empty() && held >= p.top_p * mass) break;
    held += weight(id);
    kept[id] = weight(id);
  }
  std::erase_if(kept, [&](const auto& each) { return each.second < p.min_p; });
  double sum = 0;
  for (const auto& each : kept) sum += each.second;
  for (auto& each : kept) each.second /= sum;
  return kept;
}

struct Case {
  const char* name;
  SamplingParams params;
};

std::vector<Case> cases() {
  return {{"plain", {}},
          {"greedy", {.temperature = 0}},
          {"temperature", {.temperature = 0.5}},
          {"top k", {.top_k = 5}},
          {"top k of one", {.top_k = 1}},
          {"top p", {.top_p = 0.7}},
          {"top p of almost nothing", {.top_p = 1e-6}},
          {"min p", {.min_p = 0.2}},
          {"top k, top p and min p", {.temperature = 1.5, .top_k = 9, .top_p = 0.8, .min_p = 0.05}},
          {"repetition", {.repetition_penalty = 1.8}},
          {"frequency and presence", {.frequency_penalty = 0.7, .presence_penalty = 0.4}},
          {"bias", {.logit_bias = {{3, 4.0f}, {0, -100.0f}}}},
          {"all penalties, greedy",
           {.temperature = 0,
            .repetition_penalty = 1.3,
            .frequency_penalty = 0.5,
            .presence_penalty = 1}}};
}

TEST_CASE("samples follow the distribution of the definition") {
  constexpr int kVocab = 24;
  constexpr int kDraws = 20000;
  const std::vector<int32_t> prompt = {1, 2, 2, 7};
  const std::vector<int32_t> output = {2, 9, 9, 9};
  for (const Case& c : cases()) {
    INFO(c.name);
    const std::vector<float> logits = random_logits(kVocab, 3);
    const auto expected = allowed(logits, c.params, prompt, output);
    Sampler sampler(c.params, kVocab);
    sampler.observe_prompt(prompt);
    for (int32_t token : output) sampler.observe(token);
    std::map<int32_t, int> counts;
    for (int64_t i = 0; i < kDraws; ++i) ++counts[sampler.sample(logits, i).token];
    // Nothing outside the set, and Pearson's statistic inside what chance exceeds once in 1e6.
    double statistic = 0;
    for (const auto& [token, count] : counts) {
      INFO("token " << token);
      REQUIRE(expected.contains(token));
    }
    for (const auto& [token, p] : expected) {
      const double mean = p * kDraws;
      const double difference = counts[token] - mean;
      statistic += difference * difference / mean;
    }
    const double freedom = static_cast<double>(expected.size()) - 1;
    CHECK(statistic <= freedom + 5 * std::sqrt(2 * freedom) + 25);
  }
}

TEST_CASE("the set that may be drawn is the definition's, ties included") {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    const std::vector<float> logits = random_logits(40, seed);
    for (const Case& c : cases()) {
      INFO(c.name << ", seed " << seed);
      const auto expected = allowed(logits, c.params, {5}, {6, 6});
      Sampler sampler(c.params, 40);
      sampler.observe_prompt(std::vector<int32_t>{5});
      sampler.observe(6);
      sampler.observe(6);
      for (int64_t i = 0; i < 50; ++i) CHECK(expected.contains(sampler.sample(logits, i).token));
    }
  }
}

TEST_CASE("noise is a function of seed and position alone") {
  const std::vector<float> logits = random_logits(300, 1);
  Sampler a({.seed = 5}, 300);
  Sampler b({.seed = 5}, 300);
  Sampler c({.seed = 6}, 300);
  std::vector<int32_t> forward, backward;
  int different = 0;
  for (int64_t i = 0; i < 100; ++i) {
    forward.push_back(a.sample(logits, i).token);
    different += forward.back() != c.sample(logits, i).token;
  }
  for (int64_t i = 99; i >= 0; --i) backward.push_back(b.sample(logits, i).token);
  std::reverse(backward.begin(), backward.end());
  CHECK(forward == backward);
  CHECK(different > 50);
  CHECK(std::set<int32_t>(forward.begin(), forward.end()).size() > 20);
}

TEST_CASE("shared noise makes similar distributions draw alike") {
  // Two distributions at total variation distance d agree with probability at least
  // (1 - d) / (1 + d) under exponential races.
  const std::vector<float> target = random_logits(100, 4);
  std::vector<float> draft = target;
  const RandomStream noise(9, "draft");
  for (size_t i = 0; i < draft.size(); ++i) {
    draft[i] += static_cast<float>(0.3 * noise.normal(i));
  }
  const auto p = allowed(target, {}, {}, {});
  const auto q = allowed(draft, {}, {}, {});
  double distance = 0;
  for (const auto& [token, mass] : p) distance += std::abs(mass - q.at(token)) / 2;
  Sampler a({}, 100);
  Sampler b({}, 100);
  constexpr int kDraws = 4000;
  int agree = 0;
  for (int64_t i = 0; i < kDraws; ++i) {
    agree += a.sample(target, i).token == b.sample(draft, i).token;
  }
  const double bound = (1 - distance) / (1 + distance);
  CHECK(static_cast<double>(agree) / kDraws >= bound - 5 * std::sqrt(bound / kDraws));
}

TEST_CASE("log-probabilities are the model's own") {
  const std::vector<float> logits = random_logits(50, 8);
  double sum = 0;
  for (float l : logits) sum += std::exp(static_cast<double>(l));
  Sampler sampler({.temperature = 0.3, .top_k = 2, .logprobs = 4}, 50);
  const Sampled s = sampler.sample(logits, 0);
  const auto logprob = [&](int32_t id) {
    return static_cast<double>(logits[static_cast<size_t>(id)]) - std::log(sum);
  };
  CHECK(s.logprob == Approx(logprob(s.token)).margin(1e-5));
  REQUIRE(s.top.size() == 4);
  for (size_t i = 0; i < 4; ++i) {
    CHECK(s.top[i].logprob == Approx(logprob(s.top[i].token)).margin(1e-5));
    if (i > 0) CHECK(s.top[i].logprob <= s.top[i - 1].logprob);
  }
  for (size_t i = 0; i < logits.size(); ++i) {
    CHECK(logprob(static_cast<int32_t>(i)) <= static_cast<double>(s.top[0].logprob) + 1e-5);
  }
}

TEST_CASE("logits that are no numbers draw nothing") {
  const float nan = std::nanf("");
  const float infinity = INFINITY;
  CHECK(Sampler({}, 3).sample(std::vector<float>{nan, nan, nan}, 0).token == -1);
  CHECK(Sampler({}, 3).sample(std::vector<float>{nan, 0.0f, -infinity}, 0).token == 1);
  CHECK(Sampler({.temperature = 0}, 2).sample(std::vector<float>{-infinity, -infinity}, 0).token ==
        -1);
}

TEST_CASE("parameters outside their range are refused by name") {
  const auto refuses = [](const SamplingParams& p, const char* name) {
    CHECK_THROWS_WITH(p.check(10), Catch::Matchers::Contains(name));
  };
  CHECK_NOTHROW(SamplingParams{}.check(10));
  refuses({.temperature = -1}, "temperature");
  refuses({.temperature = NAN}, "temperature");
  refuses({.top_k = -1}, "top_k");
  refuses({.top_p = 0}, "top_p");
  refuses({.min_p = 1.5}, "min_p");
  refuses({.repetition_penalty = 0}, "repetition_penalty");
  refuses({.frequency_penalty = 1e9}, "frequency_penalty");
  refuses({.presence_penalty = NAN}, "presence_penalty");
  refuses({.logit_bias = {{10, 1.0f}}}, "logit_bias");
  refuses({.logprobs = -2}, "logprobs");
}

}  // namespace
}  // namespace degu
