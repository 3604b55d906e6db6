#include "data/sentencepiece_model.h"

namespace degu {
namespace {

// A cursor over the fields of one protocol-buffer message.
class Message {
 public:
  explicit Message(std::string_view bytes) : rest_(bytes) {}

  // Moves to the next field; false at the end or when the bytes are no message (then `bad`).
  bool next() {
    if (rest_.empty() || bad_) return false;
    const uint64_t key = varint();
    field_ = static_cast<int>(key >> 3);
    bytes_ = {};
    number_ = 0;
    switch (key & 7) {
      case 0:
        number_ = varint();
        break;
      case 1:
        skip(8);
        break;
      case 2:
        skip(varint());
        break;
      case 5:
        skip(4);
        break;
      default:
        bad_ = true;
    }
    return !bad_;
  }
  int field() const { return field_; }
  uint64_t number() const { return number_; }
  std::string_view bytes() const { return bytes_; }
  bool bad() const { return bad_; }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (rest_.empty()) break;
      const auto byte = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      value |= uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return value;
    }
    bad_ = true;
    return 0;
  }
  void skip(uint64_t size) {
    if (bad_ || size > rest_.size()) {
      bad_ = true;
      return;
    }
    bytes_ = rest_.substr(0, size);
    rest_.remove_prefix(size);
  }

  std::string_view rest_;
  std::string_view bytes_;
  uint64_t number_ = 0;
  int field_ = 0;
  bool bad_ = false;
};

bool read_trainer(std::string_view bytes, SentencePieceTraits& out) {
  Message spec(bytes);
  while (spec.next()) {
    if (spec.field() == 3) out.model_type = static_cast<int>(spec.number());
    if (spec.field() == 24) out.treat_whitespace_as_suffix = spec.number() != 0;
    if (spec.field() == 35) out.byte_fallback = spec.number() != 0;
  }
  return !spec.bad();
}

bool read_normalizer(std::string_view bytes, SentencePieceTraits& out) {
  Message spec(bytes);
  while (spec.next()) {
    if (spec.field() == 1) out.normalizer = spec.bytes();
    if (spec.field() == 2) out.has_character_map = !spec.bytes().empty();
    if (spec.field() == 3) out.add_dummy_prefix = spec.number() != 0;
    if (spec.field() == 4) out.remove_extra_whitespaces = spec.number() != 0;
    if (spec.field() == 5) out.escape_whitespaces = spec.number() != 0;
  }
  return !spec.bad();
}

}  // namespace

std::optional<SentencePieceTraits> read_sentencepiece_traits(std::string_view model) {
  SentencePieceTraits out;
  bool pieces = false;
  Message message(model);
  while (message.next()) {
    if (message.field() == 1) pieces = true;
    if (message.field() == 2 && !read_trainer(message.bytes(), out)) return std::nullopt;
    if (message.field() == 3 && !read_normalizer(message.bytes(), out)) return std::nullopt;
  }
  if (message.bad() || !pieces) return std::nullopt;
  return out;
}

}  // namespace degu
