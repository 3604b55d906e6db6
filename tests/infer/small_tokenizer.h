// A tokenizer of 300 pieces, trained once per test program on made-up text.
#pragma once

#include "base/random.h"
#include "data/tokenizer.h"

namespace degu::testing {

inline const Tokenizer& small_tokenizer() {
  static const Tokenizer tokenizer = [] {
    const RandomStream stream(11, "small tokenizer");
    uint64_t index = 0;
    int documents = 0;
    const std::string model = train_tokenizer({.vocab = 300}, [&]() -> std::optional<std::string> {
      if (documents++ == 40) return std::nullopt;
      std::string text;
      for (int word = 0; word < 80; ++word) {
        const uint64_t length = 2 + stream.below(index++, 4);
        for (uint64_t i = 0; i < length; ++i) {
          text += static_cast<char>('a' + stream.below(index++, 6));
        }
        text += word % 11 == 10 ? "é.\n" : " ";
      }
      return text;
    });
    return Tokenizer::from_bytes(model, "small tokenizer");
  }();
  return tokenizer;
}

}  // namespace degu::testing
