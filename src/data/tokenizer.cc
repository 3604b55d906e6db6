#include "data/tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <array>
#include <string>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "data/sentencepiece_model.h"
#include "io/atomic_file.h"
#include "io/sha256.h"

namespace degu {
namespace {

constexpr std::string_view kSpaceMark = "\xe2\x96\x81";  // U+2581

int32_t bytes_of_piece(const sentencepiece::SentencePieceProcessor& model, int id) {
  if (model.IsControl(id) || model.IsUnknown(id)) return 0;
  if (model.IsByte(id)) return 1;
  const std::string& piece = model.IdToPiece(id);
  auto bytes = static_cast<int32_t>(piece.size());
  for (size_t at = piece.find(kSpaceMark); at != std::string::npos;
       at = piece.find(kSpaceMark, at + kSpaceMark.size())) {
    bytes -= 2;  // three bytes stand for one space
  }
  return bytes;
}

// Where text may be cut so that encoding the pieces gives what encoding the whole would: before a
// space that follows something else, and around line ends, provided that no piece of the vocabulary
// spans such a place.
struct Cuts {
  bool at_spaces = true;
  bool at_line_ends = true;
};

Cuts find_cuts(const sentencepiece::SentencePieceProcessor& model) {
  Cuts cuts;
  for (int id = 0; id < model.GetPieceSize(); ++id) {
    if (model.IsControl(id) || model.IsUnknown(id) || model.IsByte(id)) continue;
    const std::string& piece = model.IdToPiece(id);
    if (piece.size() > 1 && piece.find('\n') != std::string::npos) cuts.at_line_ends = false;
    const size_t first_other = [&] {
      size_t at = 0;
      while (piece.compare(at, kSpaceMark.size(), kSpaceMark) == 0) at += kSpaceMark.size();
      return at;
    }();
    if (piece.find(kSpaceMark, first_other) != std::string::npos) cuts.at_spaces = false;
  }
  return cuts;
}

}  // namespace

struct Tokenizer::Impl {
  sentencepiece::SentencePieceProcessor model;
  SentencePieceTraits traits;
  std::string bytes;
  std::string sha256;
  std::string name;
  bool local = false;  // words may be encoded one by one
};

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {
  for (int id = 0; id < vocab_size(); ++id) {
    token_bytes_.push_back(bytes_of_piece(impl_->model, id));
  }
}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::from_file(const std::string& path) {
  return from_bytes(read_file(path), path);
}

Tokenizer Tokenizer::from_bytes(std::string_view model, const std::string& name) {
  const auto traits = read_sentencepiece_traits(model);
  auto impl = std::make_unique<Impl>();
  // The library ends the process on some malformed models, so the outer form is checked first.
  if (!traits || !impl->model.LoadFromSerializedProto({model.data(), model.size()}).ok()) {
    throw DataError("{}: not a SentencePiece model", name);
  }
  impl->traits = *traits;
  impl->bytes = model;
  impl->sha256 = sha256_of(model);
  impl->name = name;
  const Cuts cuts = find_cuts(impl->model);
  impl->local = traits->model_type == 2 && traits->keeps_text() &&
                !traits->treat_whitespace_as_suffix && cuts.at_spaces && cuts.at_line_ends;
  return Tokenizer(std::move(impl));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int> ids;
  const auto status = impl_->model.Encode({text.data(), text.size()}, &ids);
  if (!status.ok()) throw DataError("{}: cannot encode text: {}", impl_->name, status.ToString());
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  const auto status = impl_->model.Decode(std::vector<int>(ids.begin(), ids.end()), &text);
  if (!status.ok()) throw DataError("{}: cannot decode tokens: {}", impl_->name, status.ToString());
  return text;
}

int Tokenizer::vocab_size() const {
  return impl_->model.GetPieceSize();
}
int Tokenizer::bos_id() const {
  return impl_->model.bos_id();
}
int Tokenizer::eos_id() const {
  return impl_->model.eos_id();
}
int Tokenizer::unk_id() const {
  return impl_->model.unk_id();
}
std::string Tokenizer::piece(int32_t id) const {
  return impl_->model.IdToPiece(id);
}
std::string Tokenizer::token_text(int32_t id) const {
  if (impl_->model.IsControl(id)) return {};
  if (impl_->model.IsUnknown(id)) return decode(std::span(&id, 1));
  const std::string& spelling = impl_->model.IdToPiece(id);
  if (impl_->model.IsByte(id)) {  // "<0x41>"
    return {static_cast<char>(std::stoi(spelling.substr(3, 2), nullptr, 16))};
  }
  std::string text;
  for (size_t at = 0; at < spelling.size();) {
    if (spelling.compare(at, kSpaceMark.size(), kSpaceMark) == 0) {
      text += ' ';
      at += kSpaceMark.size();
    } else {
      text += spelling[at++];
    }
  }
  return text;
}
bool Tokenizer::lossless() const {
  return impl_->traits.keeps_text();
}
bool Tokenizer::byte_fallback() const {
  return impl_->traits.byte_fallback;
}
const std::string& Tokenizer::model_bytes() const {
  return impl_->bytes;
}
const std::string& Tokenizer::sha256() const {
  return impl_->sha256;
}

// ---- encoding word by word ----

struct Tokenizer::Encoder::Cache {
  // Longer words are rare; a bound on their number keeps memory near 50 MB per encoder.
  static constexpr size_t kMaxWordBytes = 48;
  static constexpr size_t kMaxWords = size_t{1} << 18;

  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  struct Slice {
    uint32_t first, count;
  };
  std::unordered_map<std::string, Slice, Hash, std::equal_to<>> words;
  std::vector<int32_t> ids;
  std::vector<int> scratch;
};

Tokenizer::Encoder::Encoder(const Tokenizer& tokenizer)
    : tokenizer_(&tokenizer), cache_(std::make_unique<Cache>()) {}
Tokenizer::Encoder::Encoder(Encoder&&) noexcept = default;
Tokenizer::Encoder::~Encoder() = default;

void Tokenizer::Encoder::append(std::string_view text, std::vector<int32_t>& ids) {
  const Impl& impl = *tokenizer_->impl_;
  const auto encode_directly = [&](std::string_view part) {
    const auto status = impl.model.Encode({part.data(), part.size()}, &cache_->scratch);
    if (!status.ok()) throw DataError("{}: cannot encode text: {}", impl.name, status.ToString());
  };
  if (!impl.local) {
    encode_directly(text);
    ids.insert(ids.end(), cache_->scratch.begin(), cache_->scratch.end());
    return;
  }
  Cache& cache = *cache_;
  for (size_t begin = 0; begin < text.size();) {
    // One line end, or spaces and what follows them up to the next space or line end.
    size_t end = begin + 1;
    if (text[begin] != '\n') {
      end = begin;
      while (end < text.size() && text[end] == ' ') ++end;
      while (end < text.size() && text[end] != ' ' && text[end] != '\n') ++end;
    }
    const std::string_view word = text.substr(begin, end - begin);
    begin = end;
    if (const auto known = cache.words.find(word); known != cache.words.end()) {
      const auto first = cache.ids.begin() + known->second.first;
      ids.insert(ids.end(), first, first + known->second.count);
      continue;
    }
    encode_directly(word);
    ids.insert(ids.end(), cache.scratch.begin(), cache.scratch.end());
    if (word.size() > Cache::kMaxWordBytes) continue;
    if (cache.words.size() >= Cache::kMaxWords) {
      cache.words.clear();
      cache.ids.clear();
    }
    cache.words.emplace(word, Cache::Slice{static_cast<uint32_t>(cache.ids.size()),
                                           static_cast<uint32_t>(cache.scratch.size())});
    cache.ids.insert(cache.ids.end(), cache.scratch.begin(), cache.scratch.end());
  }
}

// ---- training ----

namespace {

// Hands the lines of texts to the trainer, long ones in parts (it drops sentences above its limit).
class Lines : public sentencepiece::SentenceIterator {
 public:
  static constexpr size_t kMaxBytes = 4000;

  explicit Lines(const std::function<std::optional<std::string>()>& next) : next_(next) { Next(); }
  bool done() const override { return done_; }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }

  void Next() override {
    while (true) {
      while (at_ >= text_.size()) {
        std::optional<std::string> text = next_();
        if (!text) {
          done_ = true;
          return;
        }
        text_ = std::move(*text);
        at_ = 0;
      }
      size_t end = std::min(text_.find('\n', at_), text_.size());
      const bool whole = end - at_ <= kMaxBytes;
      if (!whole) {
        end = at_ + kMaxBytes;
        const size_t space = text_.rfind(' ', end);
        if (space != std::string::npos && space > at_) {
          end = space;
        } else {
          while ((static_cast<unsigned char>(text_[end]) & 0xc0u) == 0x80u) --end;
        }
      }
      line_ = text_.substr(at_, end - at_);
      at_ = end + (whole ? 1 : 0);
      if (!line_.empty()) return;
    }
  }

 private:
  const std::function<std::optional<std::string>()>& next_;
  std::string text_;
  std::string line_;
  size_t at_ = 0;
  bool done_ = false;
};

}  // namespace

std::string train_tokenizer(const TokenizerTraining& options,
                            const std::function<std::optional<std::string>()>& next) {
  Lines lines(next);
  if (lines.done()) throw DataError("tokenizer: no text to train on");
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(
      std::unordered_map<std::string, std::string>{
          {"model_type", "bpe"},
          {"vocab_size", std::to_string(options.vocab)},
          {"character_coverage", fmt::format("{}", options.character_coverage)},
          {"byte_fallback", "true"},
          {"normalization_rule_name", "identity"},
          {"add_dummy_prefix", "false"},
          {"remove_extra_whitespaces", "false"},
          {"allow_whitespace_only_pieces", "true"},
          {"split_digits", "true"},
          {"max_sentence_length", std::to_string(Lines::kMaxBytes + 1)},
          {"num_threads", "1"},  // written into the model, so it may not vary
          {"minloglevel", "2"},
      },
      &lines, &model);
  if (!status.ok()) {
    throw DataError(
        "tokenizer: cannot train {} pieces on this text (more text or a smaller --vocab may do): "
        "{}",
        options.vocab, status.ToString());
  }
  return model;
}

}  // namespace degu
