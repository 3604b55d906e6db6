// What SentencePiece's public interface does not tell about a model: how it normalises text and
// whether it is BPE. Reads the few fields needed straight from the model file, a protocol buffer
// whose numbers are fixed by SentencePiece's published sentencepiece_model.proto.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace degu {

struct SentencePieceTraits {
  int model_type = 1;  // 1 unigram, 2 BPE, 3 word, 4 char
  bool byte_fallback = false;
  bool treat_whitespace_as_suffix = false;
  std::string normalizer;  // "identity", "nmt_nfkc", …
  bool has_character_map = false;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;

  // The pieces of a text spell that text, byte for byte.
  bool keeps_text() const {
    return !has_character_map && !add_dummy_prefix && !remove_extra_whitespaces &&
           escape_whitespaces && byte_fallback;
  }
};

// Nothing if `model` is not a SentencePiece model.
std::optional<SentencePieceTraits> read_sentencepiece_traits(std::string_view model);

}  // namespace degu
