// What an engine makes of a request, and requests that read the small tokenizer's tokens.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/random.h"
#include "infer/engine.h"

namespace degu::testing {

// What came of a request, put together from its events.
struct Answer {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<std::vector<int32_t>> experts;
  std::string text;
  std::optional<FinishReason> finish;
  Usage usage;
  int events_after_end = 0;

  EventSink sink() {
    return [this](Event&& event) {
      events_after_end += finish.has_value();
      for (const TokenRecord& t : event.tokens) {
        tokens.push_back(t.token);
        logprobs.push_back(t.logprob.value_or(0));
        experts.push_back(t.experts_LK);
      }
      text += event.text();
      finish = event.finish;
      usage = event.usage;
    };
  }
  bool same_as(const Answer& other) const {
    return tokens == other.tokens && logprobs == other.logprobs && text == other.text &&
           finish == other.finish;
  }
};

inline std::vector<int32_t> random_prompt(uint64_t seed, uint64_t length) {
  const RandomStream stream(seed, "prompt");
  std::vector<int32_t> prompt;
  for (uint64_t i = 0; i < length; ++i) {
    prompt.push_back(static_cast<int32_t>(3 + stream.below(i, 297)));
  }
  return prompt;
}

inline Answer run_alone(Engine& engine, const Request& request) {
  Answer answer;
  engine.submit(request, answer.sink());
  while (engine.step()) {
  }
  return answer;
}

}  // namespace degu::testing
