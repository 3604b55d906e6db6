#include "data/tokenizer_export.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/error.h"
#include "data/sentencepiece_model.h"
#include "io/atomic_file.h"

namespace degu {
namespace {

using nlohmann::json;

constexpr const char* kSpaceMark = "\xe2\x96\x81";  // U+2581
constexpr int kBpe = 2;

struct Merge {
  float score;
  int32_t left;
  int32_t right;
};

// SentencePiece joins the neighbours whose joint piece has the best score. tokenizers wants the
// pairs in order: by that score, pairs of one piece by their ids.
std::vector<Merge> merges_of(const sentencepiece::SentencePieceProcessor& model) {
  std::unordered_map<std::string, int32_t> id_of;
  const int size = model.GetPieceSize();
  const auto is_text = [&](int id) {
    return !model.IsControl(id) && !model.IsUnknown(id) && !model.IsByte(id) && !model.IsUnused(id);
  };
  for (int id = 0; id < size; ++id) {
    if (is_text(id)) id_of.emplace(model.IdToPiece(id), id);
  }
  std::vector<Merge> merges;
  for (int id = 0; id < size; ++id) {
    if (!is_text(id)) continue;
    const std::string& piece = model.IdToPiece(id);
    for (size_t at = 1; at < piece.size(); ++at) {
      const auto left = id_of.find(piece.substr(0, at));
      const auto right = id_of.find(piece.substr(at));
      if (left == id_of.end() || right == id_of.end()) continue;
      merges.push_back({model.GetScore(id), left->second, right->second});
    }
  }
  std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.left != b.left ? a.left < b.left : a.right < b.right;
  });
  return merges;
}

json tokenizer_json(const sentencepiece::SentencePieceProcessor& model) {
  json vocab = json::object();
  json added = json::array();
  for (int id = 0; id < model.GetPieceSize(); ++id) {
    vocab[model.IdToPiece(id)] = id;
    if (!model.IsControl(id) && !model.IsUnknown(id)) continue;
    added.push_back({{"id", id},
                     {"content", model.IdToPiece(id)},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  json merges = json::array();
  for (const Merge& m : merges_of(model)) {
    merges.push_back({model.IdToPiece(m.left), model.IdToPiece(m.right)});
  }
  json post = nullptr;  // BOS first, when special tokens are asked for
  if (model.bos_id() >= 0) {
    const std::string& bos = model.IdToPiece(model.bos_id());
    const json mark = {{"SpecialToken", {{"id", bos}, {"type_id", 0}}}};
    const json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
    const json second = {{"Sequence", {{"id", "B"}, {"type_id", 0}}}};
    post = {{"type", "TemplateProcessing"},
            {"single", json::array({mark, text})},
            {"pair", json::array({mark, text, second})},
            {"special_tokens",
             {{bos,
               {{"id", bos},
                {"ids", json::array({model.bos_id()})},
                {"tokens", json::array({bos})}}}}}};
  }
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added},
          {"normalizer",
           {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpaceMark}}},
          {"pre_tokenizer", nullptr},
          {"post_processor", post},
          {"decoder",
           {{"type", "Sequence"},
            {"decoders",
             json::array(
                 {{{"type", "Replace"}, {"pattern", {{"String", kSpaceMark}}}, {"content", " "}},
                  {{"type", "ByteFallback"}},
                  {{"type", "Fuse"}}})}}},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", model.IdToPiece(model.unk_id())},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"ignore_merges", false},
            {"vocab", vocab},
            {"merges", merges}}}};
}

}  // namespace

void export_tokenizer(const Tokenizer& tokenizer, int64_t context, const std::string& folder) {
  const auto traits = read_sentencepiece_traits(tokenizer.model_bytes());
  if (!traits || traits->model_type != kBpe || !traits->keeps_text()) {
    throw DataError(
        "{}: only byte-pair encoding that keeps the text can be written as "
        "tokenizer.json; read this tokenizer.model with its own tools",
        folder);
  }
  sentencepiece::SentencePieceProcessor model;
  if (!model.LoadFromSerializedProto(tokenizer.model_bytes()).ok()) {
    throw DataError("{}: the tokenizer's model cannot be read again", folder);
  }
  json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                 {"unk_token", model.IdToPiece(model.unk_id())},
                 {"clean_up_tokenization_spaces", false},
                 {"model_max_length", context}};
  if (model.bos_id() >= 0) config["bos_token"] = model.IdToPiece(model.bos_id());
  if (model.eos_id() >= 0) config["eos_token"] = model.IdToPiece(model.eos_id());
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw IoError("{}: cannot be made ({})", folder, error.message());
  write_file_atomic(folder + "/tokenizer.json", tokenizer_json(model).dump(1) + "\n");
  write_file_atomic(folder + "/tokenizer_config.json", config.dump(1) + "\n");
  write_file_atomic(folder + "/tokenizer.model", tokenizer.model_bytes());
}

}  // namespace degu
