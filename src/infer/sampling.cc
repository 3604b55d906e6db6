#include "infer/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/random.h"

namespace degu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

void require(bool holds, const char* field, double value, const char* range) {
  if (!holds) throw ConfigError("sampling: {} is {}; it must be {}", field, value, range);
}

// The n likeliest, ties to the lower id.
std::vector<int32_t> most_likely(std::span<const float> logit_V, int n) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < logit_V.size(); ++i) {
    if (!std::isnan(logit_V[i])) ids.push_back(static_cast<int32_t>(i));
  }
  const auto count = std::min(ids.size(), static_cast<size_t>(n));
  const auto before = [&](int32_t a, int32_t b) {
    const float x = logit_V[static_cast<size_t>(a)];
    const float y = logit_V[static_cast<size_t>(b)];
    return x > y || (x == y && a < b);
  };
  std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count), ids.end(),
                    before);
  ids.resize(count);
  return ids;
}

double log_sum_exp(std::span<const float> logit_V) {
  double top = -kInfinity;
  for (float l : logit_V) top = std::max(top, static_cast<double>(l));
  if (top == -kInfinity) return top;
  double sum = 0;
  for (float l : logit_V) {
    if (!std::isnan(l)) sum += std::exp(static_cast<double>(l) - top);
  }
  return top + std::log(sum);
}

}  // namespace

void SamplingParams::check(int64_t vocab) const {
  require(temperature >= 0 && temperature <= 100, "temperature", temperature, "in [0, 100]");
  require(top_k >= 0, "top_k", top_k, "0 (all) or more");
  require(top_p > 0 && top_p <= 1, "top_p", top_p, "in (0, 1]");
  require(min_p >= 0 && min_p <= 1, "min_p", min_p, "in [0, 1]");
  require(repetition_penalty > 0 && repetition_penalty <= 100, "repetition_penalty",
          repetition_penalty, "in (0, 100]");
  require(std::abs(frequency_penalty) <= 100, "frequency_penalty", frequency_penalty,
          "in [-100, 100]");
  require(std::abs(presence_penalty) <= 100, "presence_penalty", presence_penalty,
          "in [-100, 100]");
  require(logprobs >= -1, "logprobs", logprobs, "-1 (none) or more");
  for (const auto& [token, bias] : logit_bias) {
    require(token >= 0 && token < vocab, "logit_bias token", token, "a token of the vocabulary");
    require(std::isfinite(bias), "logit_bias", bias, "finite");
  }
}

Sampled score_token(std::span<const float> logit_V, int32_t token, int n) {
  const double lse = log_sum_exp(logit_V);
  const auto logprob = [&](int32_t id) {
    return static_cast<float>(static_cast<double>(logit_V[static_cast<size_t>(id)]) - lse);
  };
  Sampled scored{.token = token, .logprob = logprob(token), .top = {}};
  for (int32_t id : most_likely(logit_V, n)) scored.top.push_back({id, logprob(id)});
  return scored;
}

Sampler::Sampler(const SamplingParams& params, int64_t vocab)
    : params_(params),
      penalised_(params.repetition_penalty != 1 || params.frequency_penalty != 0 ||
                 params.presence_penalty != 0),
      seen_V_(penalised_ ? static_cast<size_t>(vocab) : 0),
      count_V_(penalised_ ? static_cast<size_t>(vocab) : 0) {}

void Sampler::observe_prompt(std::span<const int32_t> tokens) {
  if (!penalised_) return;
  for (int32_t token : tokens) seen_V_[static_cast<size_t>(token)] = 1;
}

void Sampler::observe(int32_t token) {
  if (!penalised_) return;
  seen_V_[static_cast<size_t>(token)] = 1;
  ++count_V_[static_cast<size_t>(token)];
}

void Sampler::adjust(std::span<const float> logit_V) {
  logit_V_.assign(logit_V.begin(), logit_V.end());
  for (size_t i = 0; penalised_ && i < logit_V_.size(); ++i) {
    double l = static_cast<double>(logit_V_[i]);
    if (seen_V_[i] != 0) {
      l = l > 0 ? l / params_.repetition_penalty : l * params_.repetition_penalty;
    }
    if (count_V_[i] > 0) {
      l -= params_.frequency_penalty * count_V_[i] + params_.presence_penalty;
    }
    logit_V_[i] = static_cast<float>(l);
  }
  for (const auto& [token, bias] : params_.logit_bias) {
    logit_V_[static_cast<size_t>(token)] += bias;
  }
}

int32_t Sampler::largest() const {
  int32_t best = -1;
  for (size_t i = 0; i < logit_V_.size(); ++i) {
    const float l = logit_V_[i];
    if (std::isnan(l) || l == -std::numeric_limits<float>::infinity()) continue;
    if (best < 0 || l > logit_V_[static_cast<size_t>(best)]) best = static_cast<int32_t>(i);
  }
  return best;
}

// Steps 5 to 7: leaves in candidates_ what may be drawn.
void Sampler::keep_likely() {
  const auto less_likely = [](const Candidate& a, const Candidate& b) {
    return a.p < b.p || (a.p == b.p && a.token > b.token);
  };
  const bool ranked =
      (params_.top_k > 0 && static_cast<size_t>(params_.top_k) < candidates_.size()) ||
      params_.top_p < 1;
  if (ranked) {
    // A heap hands out the likely ones without sorting the rest; they gather at the back.
    std::vector<Candidate>& c = candidates_;
    const size_t k =
        params_.top_k > 0 ? std::min(c.size(), static_cast<size_t>(params_.top_k)) : c.size();
    std::make_heap(c.begin(), c.end(), less_likely);
    const auto pop = [&](size_t taken) {
      std::pop_heap(c.begin(), c.end() - static_cast<std::ptrdiff_t>(taken), less_likely);
      return c[c.size() - 1 - taken].p;
    };
    size_t kept = 0;
    if (k < c.size()) {
      double mass = 0;
      for (; kept < k; ++kept) mass += pop(kept);
      double held = 0;
      size_t enough = 0;
      while (enough < k && (enough == 0 || held < params_.top_p * mass)) {
        held += c[c.size() - 1 - enough].p;
        ++enough;
      }
      kept = enough;
    } else {
      double mass = 0;
      for (const Candidate& each : c) mass += each.p;
      double held = 0;
      while (kept < c.size() && (kept == 0 || held < params_.top_p * mass)) held += pop(kept++);
    }
    c.erase(c.begin(), c.end() - static_cast<std::ptrdiff_t>(kept));
  }
  if (params_.min_p > 0) {
    std::erase_if(candidates_, [&](const Candidate& c) { return c.p < params_.min_p; });
  }
}

int32_t Sampler::race(int64_t position) const {
  const RandomStream noise(params_.seed, "sampling", static_cast<uint64_t>(position));
  int32_t best = -1;
  double best_time = kInfinity;
  uint64_t block = ~uint64_t{0};
  std::array<uint32_t, 4> words{};
  for (const Candidate& c : candidates_) {
    const auto id = static_cast<uint64_t>(c.token);
    if (id / 4 != block) {
      block = id / 4;
      words = noise.words(block);
    }
    const double u = (static_cast<double>(words[id % 4]) + 0.5) * 0x1.0p-32;
    // -log u >= 1 - u: most losers are known without their logarithm.
    if (1.0 - u > best_time * c.p) continue;
    const double time = -std::log(u) / c.p;
    if (time < best_time || (time == best_time && c.token < best)) {
      best = c.token;
      best_time = time;
    }
  }
  return best;
}

Sampled Sampler::sample(std::span<const float> logit_V, int64_t position) {
  adjust(logit_V);
  int32_t token = largest();
  if (token >= 0 && params_.temperature > 0) {
    const double top = static_cast<double>(logit_V_[static_cast<size_t>(token)]);
    candidates_.clear();
    for (size_t i = 0; i < logit_V_.size(); ++i) {
      const double p = std::exp((static_cast<double>(logit_V_[i]) - top) / params_.temperature);
      if (p > 0) candidates_.push_back({p, static_cast<int32_t>(i)});  // false for NaN too
    }
    keep_likely();
    token = race(position);
  }
  if (token < 0 || params_.logprobs < 0) return {.token = token, .logprob = 0, .top = {}};
  return score_token(logit_V, token, params_.logprobs);
}

}  // namespace degu
