// What a client asks of the engine, and what it hears back.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "infer/sampling.h"

namespace degu {

using RequestId = uint64_t;
using Clock = std::chrono::steady_clock;

struct Request {
  std::vector<int32_t> prompt;  // at least one token; whether BOS leads is the caller's choice
  int64_t max_tokens = 16;      // of the output; 0: only score the prompt
  SamplingParams sampling;
  std::vector<std::string> stop;  // the text ends before the first of these
  bool ignore_eos = false;        // go on after the end-of-sequence token
  bool echo = false;    // the prompt's tokens (and, with logprobs, their scores) come first
  bool routes = false;  // also the experts that each token took
  std::optional<Clock::time_point> deadline;  // the answer ends here, whatever it has by then
};

enum class FinishReason { kStop, kLength, kCancelled, kDeadline, kFailed };
constexpr auto enum_names(FinishReason) {
  return std::array<std::string_view, 5>{"stop", "length", "cancelled", "deadline", "failed"};
}

// One token of the answer. `text` of all tokens together is the answer's text: a character spread
// over several tokens belongs to the last of them.
struct TokenRecord {
  int32_t token = 0;
  std::string text;
  std::optional<float> logprob;  // none for the first token of a prompt
  std::vector<TokenLogprob> top;
  // Experts by (MoE layer, slot) of the pass that read this token; empty for the last token of an
  // answer, which no pass has read.
  std::vector<int32_t> experts_LK;
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;      // of the prompt, taken from the prefix cache
  int64_t completion_tokens = 0;  // sampled, the end-of-sequence token included
  int64_t preemptions = 0;
  double queue_seconds = 0;        // from submission to the first pass
  double first_token_seconds = 0;  // from submission to the first token
  double seconds = 0;              // from submission until now
};

// A piece of an answer. Exactly one event, the last, has `finish`.
struct Event {
  RequestId id = 0;
  std::vector<TokenRecord> tokens;
  std::optional<FinishReason> finish;
  std::string error;  // with kFailed
  Usage usage;

  std::string text() const {
    std::string all;
    for (const TokenRecord& t : tokens) all += t.text;
    return all;
  }
};

// Called on the engine's thread, one call at a time: hand over and return; never throw, never wait.
using EventSink = std::function<void(Event&&)>;

}  // namespace degu
