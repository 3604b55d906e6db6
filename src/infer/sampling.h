// From logits to the next token.
//
// The steps, in this order (p: probabilities after `temperature`):
//   1. repetition penalty   tokens seen in prompt or output: l > 0 ? l / r : l * r
//   2. frequency, presence  l -= frequency * count + presence, tokens of the output so far
//   3. logit bias           l += bias
//   4. temperature 0        the largest l, ties to the lower id; else l /= temperature
//   5. top_k                the k most likely, ties to the lower id
//   6. top_p                of these the fewest, most likely first, that hold at least top_p of
//                           their mass
//   7. min_p                of these, p >= min_p * the largest p
//   8. the sample           argmin over the rest of E_i / p_i,  E_i = -log u(seed, position, i)
//
// Step 8 draws token i with probability p_i / sum p (exponential races; with Gumbel noise
// g = -log E it is argmax of log p_i + g_i, Gumbel 1954). The noise is a function of the request's
// seed, the token's position and the token's id alone (base/random.h), so neither neighbours nor
// speculation change a sample, and a draft model that shares the noise mostly draws the same token.
//
// Log-probabilities are those of the model itself, before steps 1 to 7.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace degu {

struct SamplingParams {
  double temperature = 1.0;  // 0: greedy
  int top_k = 0;             // 0: all
  double top_p = 1.0;
  double min_p = 0.0;
  double repetition_penalty = 1.0;
  double frequency_penalty = 0.0;
  double presence_penalty = 0.0;
  std::vector<std::pair<int32_t, float>> logit_bias;
  uint64_t seed = 0;
  int logprobs = -1;  // -1: none; n: the token's own and those of the n most likely

  // ConfigError naming the field, its value and its range.
  void check(int64_t vocab) const;
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;  // natural logarithm
};

struct Sampled {
  int32_t token = -1;  // -1: no logit is a number; nothing can be drawn
  float logprob = 0;   // with logprobs >= 0
  std::vector<TokenLogprob> top;
};

// log softmax(logit_V)[token] in `logprob`, and the n most likely tokens.
Sampled score_token(std::span<const float> logit_V, int32_t token, int n);

// Draws the tokens of one sequence; remembers what it has seen.
class Sampler {
 public:
  Sampler(const SamplingParams& params, int64_t vocab);

  void observe_prompt(std::span<const int32_t> tokens);
  void observe(int32_t token);  // the output goes on with `token`
  // The token at `position` of the sequence (the first of the prompt is 0). Does not observe it.
  Sampled sample(std::span<const float> logit_V, int64_t position);

 private:
  struct Candidate {
    double p;
    int32_t token;
  };
  void adjust(std::span<const float> logit_V);
  int32_t largest() const;
  void keep_likely();
  int32_t race(int64_t position) const;

  SamplingParams params_;
  bool penalised_;
  std::vector<uint8_t> seen_V_;   // in prompt or output; empty without penalties
  std::vector<int32_t> count_V_;  // in the output
  std::vector<float> logit_V_;    // after steps 1 to 3
  std::vector<Candidate> candidates_;
};

}  // namespace degu
