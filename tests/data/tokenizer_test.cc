#include "data/tokenizer.h"

#include <catch2/catch.hpp>

#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "test_text.h"

using namespace degu;

namespace {

std::string train(int vocab, uint64_t seed = 1, int documents = 300) {
  int given = 0;
  return train_tokenizer({.vocab = vocab}, [&]() -> std::optional<std::string> {
    if (given == documents) return std::nullopt;
    return test::english_like(seed, given++, 800);
  });
}

// Any code point, weighted towards ASCII, spaces and line ends.
std::string random_text(uint64_t seed, int characters) {
  const RandomStream random(seed, "tokenizer_test");
  std::string out;
  for (int i = 0; i < characters; ++i) {
    const uint64_t kind = random.below(2 * static_cast<uint64_t>(i), 10);
    const uint64_t bits = random.bits64(2 * static_cast<uint64_t>(i) + 1);
    uint32_t code = static_cast<uint32_t>(0x20 + bits % 0x5f);
    if (kind == 0) code = '\n';
    if (kind <= 2) code = ' ';
    if (kind == 3) code = static_cast<uint32_t>(1 + bits % 0x1f);
    if (kind == 4) code = static_cast<uint32_t>(0x80 + bits % 0x3000);
    if (kind == 5) code = static_cast<uint32_t>(0x10000 + bits % 0x100000);
    if (code == 0x2581) code = 'x';
    if (code >= 0xd800 && code < 0xe000) code = 'y';
    test::append_utf8(code, out);
  }
  return out;
}

}  // namespace

TEST_CASE("any text comes back byte for byte, and its bytes are counted", "[tokenizer]") {
  const Tokenizer tokenizer = Tokenizer::from_bytes(train(512), "test");
  CHECK(tokenizer.vocab_size() == 512);
  CHECK(tokenizer.lossless());
  CHECK(tokenizer.byte_fallback());
  CHECK(tokenizer.bos_id() >= 0);
  CHECK(tokenizer.eos_id() >= 0);
  CHECK(tokenizer.token_bytes(tokenizer.bos_id()) == 0);
  std::vector<std::string> texts = {"",
                                    " ",
                                    "\n",
                                    "  two  spaces \n\n\tand tabs ",
                                    "ends ",
                                    " starts",
                                    "größer 日本語 🙂",
                                    "\r\n\x01\x7f",
                                    "<s> </s> <unk> <0x41>"};
  for (uint64_t seed = 0; seed < 200; ++seed)
    texts.push_back(random_text(seed, 1 + static_cast<int>(seed) * 3));
  for (int i = 0; i < 20; ++i) texts.push_back(test::english_like(9, i, 3000));
  Tokenizer::Encoder encoder(tokenizer);
  for (const std::string& text : texts) {
    const auto ids = tokenizer.encode(text);
    REQUIRE(tokenizer.decode(ids) == text);
    int64_t bytes = 0;
    for (int32_t id : ids) bytes += tokenizer.token_bytes(id);
    REQUIRE(bytes == static_cast<int64_t>(text.size()));
    std::vector<int32_t> fast;
    encoder.append(text, fast);
    REQUIRE(fast == ids);
    encoder.append(text, fast);  // now from memory
    REQUIRE(std::vector<int32_t>(fast.begin() + static_cast<int64_t>(ids.size()), fast.end()) ==
            ids);
  }
}

TEST_CASE("training is deterministic and compresses", "[tokenizer]") {
  const std::string model = train(512);
  CHECK((model == train(512)));
  CHECK((model != train(512, 2)));
  const Tokenizer tokenizer = Tokenizer::from_bytes(model, "test");
  const std::string text = test::english_like(1, 1000, 10000);
  CHECK(tokenizer.encode(text).size() * 2 < text.size());
  const Tokenizer again = Tokenizer::from_bytes(tokenizer.model_bytes(), "again");
  CHECK(again.sha256() == tokenizer.sha256());
  CHECK(again.encode(text) == tokenizer.encode(text));
}

TEST_CASE("what is not a model is refused", "[tokenizer]") {
  CHECK_THROWS_AS(Tokenizer::from_bytes("", "x"), DataError);
  CHECK_THROWS_AS(Tokenizer::from_bytes("not a model", "x"), DataError);
  std::string model = train(300);
  CHECK_THROWS_AS(Tokenizer::from_bytes(std::string_view(model).substr(0, model.size() / 2), "x"),
                  DataError);
  CHECK_THROWS_AS(Tokenizer::from_file("/no/such/tokenizer.model"), IoError);
}

TEST_CASE("too little text for the vocabulary is a DataError", "[tokenizer]") {
  bool given = false;
  const auto one = [&]() -> std::optional<std::string> {
    if (given) return std::nullopt;
    given = true;
    return "a few words only";
  };
  CHECK_THROWS_AS(train_tokenizer({.vocab = 4000}, one), DataError);
  CHECK_THROWS_AS(train_tokenizer({.vocab = 512}, [] { return std::optional<std::string>(); }),
                  DataError);
  given = false;
  CHECK_THROWS_AS(train_tokenizer({.vocab = 100}, one), DataError);
}
