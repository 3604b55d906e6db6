// What requests are read against in tests: the small tokenizer, a context of 200 tokens.
#pragma once

#include "server/api_request.h"
#include "tests/infer/small_tokenizer.h"

namespace degu::testing {

inline ApiContext api_context() {
  return {.tokenizer = &small_tokenizer(),
          .model = "small",
          .vocab = 300,
          .context = 200,
          .bos = true,
          .chat = &find_chat_template("plain"),
          .limits = {}};
}

}  // namespace degu::testing
