// From the JSON that a client sends to what the engine is asked: pure, without HTTP.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"
#include "infer/request.h"
#include "server/api_error.h"
#include "server/chat_template.h"
#include "server/limits.h"

namespace degu {

// What requests are read against.
struct ApiContext {
  const Tokenizer* tokenizer = nullptr;
  std::string model;    // its name for clients
  int64_t vocab = 0;    // of the model
  int64_t context = 0;  // most tokens of prompt and answer
  bool bos = true;      // texts begin with BOS when the tokenizer has one
  const ChatTemplate* chat = nullptr;
  ServerLimits limits;
};

// One call of /v1/completions or /v1/chat/completions: every prompt is answered `n` times.
struct ApiCall {
  bool chat = false;
  std::vector<std::vector<int32_t>> prompts;
  int n = 1;
  Request request;               // all but the prompt and the seed
  std::optional<uint64_t> seed;  // none: the server draws one
  bool stream = false;
  bool include_usage = false;  // a last piece of the stream with the usage

  size_t choices() const { return prompts.size() * static_cast<size_t>(n); }
  // Prompts come first in the order of choices: choice = prompt * n + answer. The first answer to a
  // prompt has the call's own seed, so that it does not depend on n or on the other prompts.
  Request choice(size_t index, uint64_t call_seed) const;
};

// ApiError 400 (404 for another model's name) naming field, value and what it may be.
ApiCall parse_completion(std::string_view body, const ApiContext& context);
ApiCall parse_chat(std::string_view body, const ApiContext& context);

// /tokenize {"prompt", "add_special_tokens"} or {"messages"}: the tokens that a request would have.
std::vector<int32_t> parse_tokenize(std::string_view body, const ApiContext& context,
                                    bool& with_pieces);
// /detokenize {"tokens"}.
std::vector<int32_t> parse_detokenize(std::string_view body, const ApiContext& context);

}  // namespace degu
