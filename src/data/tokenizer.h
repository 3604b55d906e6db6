// Text to token ids and back: a SentencePiece model with byte fallback, so that any UTF-8 text has
// ids.
//
// Models trained here (`train_tokenizer`) change nothing in the text: decode(encode(x)) == x and
// the bytes of the tokens add up to the bytes of the text (U+2581, SentencePiece's mark for a
// space, decodes as a space). A loaded model that normalises text is used as it is; `lossless()`
// tells.
//
// Threads: const members may be called from any number of threads; an Encoder belongs to one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace degu {

class Tokenizer {
 public:
  static Tokenizer from_file(const std::string& path);
  // `model`: the bytes of a SentencePiece model file; `name` stands in messages. DataError if it is
  // not one.
  static Tokenizer from_bytes(std::string_view model, const std::string& name);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Text must be valid UTF-8. Neither call adds or shows BOS and EOS.
  std::vector<int32_t> encode(std::string_view text) const;
  std::string decode(std::span<const int32_t> ids) const;

  int vocab_size() const;
  int bos_id() const;  // -1: the model has none
  int eos_id() const;
  int unk_id() const;
  // Bytes of text that a token stands for: 0 for BOS, EOS and other control tokens, 1 for a
  // fallback byte.
  int token_bytes(int32_t id) const { return token_bytes_[static_cast<size_t>(id)]; }
  const std::vector<int32_t>& token_bytes() const { return token_bytes_; }
  std::string piece(int32_t id) const;  // as the model spells it
  // The bytes that a token adds to a text: a single, possibly incomplete one for a fallback byte,
  // none for BOS, EOS and other control tokens.
  std::string token_text(int32_t id) const;

  bool lossless() const;  // decode(encode(x)) == x for any UTF-8 text without U+2581
  bool byte_fallback() const;
  const std::string& model_bytes() const;  // to embed in a checkpoint
  const std::string& sha256() const;       // of model_bytes(), hexadecimal

  // Encodes fast by remembering words. Same ids as encode(). Keeps a reference to its tokenizer.
  class Encoder {
   public:
    explicit Encoder(const Tokenizer& tokenizer);
    Encoder(Encoder&&) noexcept;
    ~Encoder();
    void append(std::string_view text, std::vector<int32_t>& ids);

   private:
    struct Cache;
    const Tokenizer* tokenizer_;
    std::unique_ptr<Cache> cache_;
  };

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
  std::vector<int32_t> token_bytes_;
};

struct TokenizerTraining {
  int vocab = 1024;  // at least 259 + the characters of the sample: 256 bytes, <unk>, BOS, EOS
  double character_coverage = 0.9995;  // rarer characters are spelt as bytes
};

// Trains a BPE model on the texts that `next` yields until it returns nothing. Deterministic: the
// same texts in the same order give the same bytes. DataError when there is too little text for the
// vocabulary.
std::string train_tokenizer(const TokenizerTraining& options,
                            const std::function<std::optional<std::string>()>& next);

}  // namespace degu
