#include "infer/text_stream.h"

#include <catch2/catch.hpp>

#include "tests/infer/small_tokenizer.h"

namespace degu {
namespace {

using testing::small_tokenizer;

TEST_CASE("streamed text is the decoded text, whole characters at a time") {
  const Tokenizer& tokenizer = small_tokenizer();
  const std::string text = "abc def\n naïve \xe2\x82\xac \xf0\x9f\xa6\x8c cafe\xcc\x81.";
  const std::vector<int32_t> ids = tokenizer.encode(text);
  TextStream stream(tokenizer);
  std::string joined;
  for (int32_t id : ids) {
    const std::string piece = stream.append(id);
    CHECK(piece.find("\xef\xbf\xbd") == std::string::npos);
    joined += piece;
  }
  CHECK(stream.finish().empty());
  CHECK(joined == text);
}

TEST_CASE("any tokens stream to what the tokenizer decodes") {
  // Random ids hold many fallback bytes, so broken characters of every kind.
  const Tokenizer& tokenizer = small_tokenizer();
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const RandomStream draw(seed, "random tokens");
    std::vector<int32_t> ids;
    for (uint64_t i = 0; i < 40; ++i) {
      const auto id = static_cast<int32_t>(draw.below(i, 300));
      if (id != tokenizer.unk_id()) ids.push_back(id);
    }
    TextStream stream(tokenizer);
    std::string joined;
    for (int32_t id : ids) joined += stream.append(id);
    joined += stream.finish();
    INFO("seed " << seed);
    CHECK(joined == tokenizer.decode(ids));
  }
}

// The definition: everything up to the first stop string.
std::string cut(const std::string& text, const std::vector<std::string>& stops) {
  size_t first = text.size();
  for (const std::string& stop : stops) first = std::min(first, text.find(stop));
  return text.substr(0, first);
}

TEST_CASE("a stop string ends the text however it is cut into pieces") {
  const std::vector<std::vector<std::string>> lists = {
      {"aab"}, {"ab", "aab"}, {"abab"}, {"b", "aaaa"}, {}, {"", "ba"}, {"abb", "bba", "aba"}};
  for (const auto& stops : lists) {
    std::vector<std::string> real = stops;
    std::erase(real, "");
    for (uint64_t seed = 0; seed < 200; ++seed) {
      const RandomStream draw(seed, "letters");
      std::string text;
      for (uint64_t i = 0; i < 12; ++i) text += draw.below(i, 2) == 0 ? 'a' : 'b';
      StopFilter filter(stops);
      std::string shown;
      uint64_t at = 0;
      while (at < text.size() && !filter.stopped()) {
        const uint64_t n = 1 + draw.below(100 + at, 4);
        shown += filter.feed(std::string_view(text).substr(at, n));
        CHECK(cut(text, real).starts_with(shown));  // nothing is shown too early
        at += n;
      }
      shown += filter.finish();
      CHECK(shown == cut(text, real));
      CHECK(filter.stopped() == (cut(text, real).size() < text.size()));
    }
  }
}

}  // namespace
}  // namespace degu
