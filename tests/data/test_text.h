// Text and folders for the tests of the data room.
#pragma once

#include <unistd.h>
#include <zlib.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "base/random.h"

namespace degu::test {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    static int counter = 0;
    path_ = std::filesystem::temp_directory_path() /
            ("degu_data_" + std::to_string(::getpid()) + "_" + std::to_string(counter++));
    std::filesystem::create_directories(path_);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

// The content of a .gz file.
inline std::string gzip(const std::string& text) {
  z_stream stream = {};
  deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

inline void append_utf8(uint32_t code, std::string& out) {
  const auto put = [&](uint32_t byte) { out += static_cast<char>(byte); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | code >> 6);
    put(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    put(0xe0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  } else {
    put(0xf0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3f));
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  }
}

// Sentences of made-up words with a skewed distribution, about `bytes` long, in lines and
// paragraphs.
inline std::string english_like(uint64_t seed, int document, size_t bytes) {
  constexpr std::array<std::string_view, 16> kSyllables = {"the", "ing", "er", "an", "re", "on",
                                                           "at",  "en",  "nd", "ti", "es", "or",
                                                           "te",  "of",  "ed", "is"};
  const RandomStream random(seed, "english_like", static_cast<uint64_t>(document));
  std::string out;
  uint64_t draw = 0;
  while (out.size() < bytes) {
    const uint64_t rank = random.below(draw++, 40);
    const uint64_t word = rank * rank;  // small numbers are common
    const RandomStream spelling(word + random.below(draw++, 2 * rank + 1), "word");
    const uint64_t syllables = 1 + spelling.below(0, 4);
    for (uint64_t s = 1; s <= syllables; ++s)
      out += kSyllables[spelling.below(s, kSyllables.size())];
    const uint64_t gap = random.below(draw++, 40);
    out += gap == 0 ? ".\n\n" : gap < 3 ? ".\n" : gap < 5 ? ", " : " ";
  }
  while (out.back() == '\n' || out.back() == ' ') out.pop_back();
  return out;
}

}  // namespace degu::test
