#include "infer/text_stream.h"

#include <algorithm>
#include <utility>

namespace degu {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

enum class Character { kWhole, kIncomplete, kBroken };

// What `bytes` begins with, and its length when it is whole (Unicode 15, table 3-7).
Character first_character(std::string_view bytes, size_t& length) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) {
    length = 1;
    return Character::kWhole;
  }
  if (lead < 0xc2 || lead > 0xf4) return Character::kBroken;
  length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return Character::kIncomplete;
    unsigned low = 0x80;
    unsigned high = 0xbf;
    if (i == 1 && lead == 0xe0) low = 0xa0;   // overlong
    if (i == 1 && lead == 0xed) high = 0x9f;  // surrogates
    if (i == 1 && lead == 0xf0) low = 0x90;   // overlong
    if (i == 1 && lead == 0xf4) high = 0x8f;  // above U+10FFFF
    if (byte(i) < low || byte(i) > high) return Character::kBroken;
  }
  return Character::kWhole;
}

// The longest end of `text` that begins a stop string without being all of it.
size_t pending(std::string_view text, const std::vector<std::string>& stops) {
  size_t longest = 0;
  for (const std::string& stop : stops) {
    for (size_t n = std::min(text.size(), stop.size() - 1); n > longest; --n) {
      if (text.ends_with(std::string_view(stop).substr(0, n))) longest = n;
    }
  }
  return longest;
}

}  // namespace

std::string TextStream::append(int32_t token) {
  const std::string bytes = tokenizer_->token_text(token);
  bytes_ += bytes;
  return take(/*last=*/bytes.empty());  // no character goes on beyond a control token
}

std::string TextStream::finish() {
  return take(/*last=*/true);
}

std::string TextStream::take(bool last) {
  std::string text;
  std::string_view rest = bytes_;
  while (!rest.empty()) {
    size_t length = 0;
    const Character kind = first_character(rest, length);
    if (kind == Character::kIncomplete && !last) break;
    if (kind == Character::kWhole) {
      text += rest.substr(0, length);
      rest.remove_prefix(length);
    } else {
      text += kReplacement;
      rest.remove_prefix(1);
    }
  }
  bytes_ = std::string(rest);
  return text;
}

StopFilter::StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& s) { return s.empty(); });
}

std::string StopFilter::feed(std::string_view text) {
  if (stopped_) return {};
  held_ += text;
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) first = std::min(first, held_.find(stop));
  if (first != std::string::npos) {
    stopped_ = true;
    return held_.substr(0, first);
  }
  const size_t keep = pending(held_, stops_);
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopFilter::finish() {
  return stopped_ ? std::string() : std::exchange(held_, {});
}

}  // namespace degu
