#include "data/utf8.h"

#include <cstdint>
#include <cstring>

namespace degu {

size_t find_bad_utf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto follows = [&](size_t i, unsigned low = 0x80, unsigned high = 0xbf) {
    return i < text.size() && byte(i) >= low && byte(i) <= high;
  };
  size_t at = 0;
  while (at < text.size()) {
    if (text.size() - at >= 8) {  // eight ASCII bytes, none of them zero
      uint64_t word;
      std::memcpy(&word, text.data() + at, 8);
      const bool ascii = (word & 0x8080808080808080u) == 0;
      if (ascii && ((word - 0x0101010101010101u) & ~word & 0x8080808080808080u) == 0) {
        at += 8;
        continue;
      }
    }
    const unsigned first = byte(at);
    size_t size = 0;
    if (first >= 0x01 && first < 0x80) {
      size = 1;
    } else if (first >= 0xc2 && first <= 0xdf) {
      if (follows(at + 1)) size = 2;
    } else if (first >= 0xe0 && first <= 0xef) {
      const unsigned low = first == 0xe0 ? 0xa0 : 0x80;
      const unsigned high = first == 0xed ? 0x9f : 0xbf;
      if (follows(at + 1, low, high) && follows(at + 2)) size = 3;
    } else if (first >= 0xf0 && first <= 0xf4) {
      const unsigned low = first == 0xf0 ? 0x90 : 0x80;
      const unsigned high = first == 0xf4 ? 0x8f : 0xbf;
      if (follows(at + 1, low, high) && follows(at + 2) && follows(at + 3)) size = 4;
    }
    if (size == 0) return at;
    at += size;
  }
  return std::string_view::npos;
}

size_t utf8_cut(std::string_view text, size_t limit) {
  if (limit >= text.size()) return text.size();
  size_t end = limit;
  // Text that is not UTF-8 has no better place than the limit.
  for (int back = 0; back < 4 && end > 0; ++back, --end) {
    if ((static_cast<unsigned char>(text[end]) & 0xc0u) != 0x80u) return end;
  }
  return limit;
}

}  // namespace degu
