// Text from tokens as they come: whole characters only, and nothing of a stop string.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace degu {

// Joins the bytes of tokens into characters. A character whose bytes are spread over tokens comes
// with the last of them; a byte that can belong to no character becomes U+FFFD. All that is
// returned, put together, is what Tokenizer::decode gives for the same tokens after others (it may
// drop a space at the very beginning of a text when the model says so).
class TextStream {
 public:
  explicit TextStream(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}

  std::string append(int32_t token);
  std::string finish();  // what is left of an incomplete character, as U+FFFD

 private:
  std::string take(bool last);

  const Tokenizer* tokenizer_;
  std::string bytes_;
};

// Lets text through up to the first stop string. Holds back an end that may still become one.
class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops);

  // Text that may be shown now. Once `stopped`, nothing more is.
  std::string feed(std::string_view text);
  std::string finish();  // the text ends without a stop string
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;  // none empty
  std::string held_;
  bool stopped_ = false;
};

}  // namespace degu
