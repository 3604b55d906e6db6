// Text files to tokenizer and token shards: `degu data prepare`.
//
// Inputs are streamed three times at most: hashed for provenance, sampled for the tokenizer (unless
// one is given), encoded. Memory is bounded by the tokenizer's sample, one batch of text, and one
// open shard per domain and split, whatever the size of the input.
//
// Deterministic: equal inputs and settings give equal files, whatever the threads, and also when
// the work was killed and taken up again. A restart re-reads the text but encodes only documents
// that are in no finished shard.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/documents.h"
#include "data/manifest.h"

namespace degu {

enum class OnBad { kFatal, kSkip };
constexpr auto enum_names(OnBad) {
  return std::array<std::string_view, 2>{"fatal", "skip"};
}

struct SourceSpec {
  std::string domain;
  std::string path;  // file, or folder read recursively; names that start with '.' are left out
};

struct PrepareOptions {
  std::string out;
  std::vector<SourceSpec> inputs;

  // What a document is, and what happens to bad input.
  DocumentRules rules;
  OnBad on_bad = OnBad::kFatal;

  // The tokenizer: loaded, or trained on the training documents of smallest hash, up to
  // sample_bytes of them.
  std::string tokenizer;  // SentencePiece model; empty: train
  int vocab = 1024;
  double character_coverage = 0.9995;
  int64_t sample_bytes = int64_t{8} << 20;

  // The token stream. BOS before and EOS after each document; a model without the token cannot have
  // the rule.
  bool bos = true;
  bool eos = true;

  // A document goes to validation when its text's hash (with split_seed) falls below this share, so
  // that equal texts are always on the same side.
  double val_fraction = 0.02;
  int64_t split_seed = 0;

  int64_t shard_tokens = int64_t{1} << 23;  // a shard is closed before it would exceed this

  // What does not change the result.
  int threads = 0;       // 0: all cores
  bool restart = false;  // discard an unfinished or different preparation in `out`

  void check() const;  // ConfigError
};

// Runs to the end, or reports at once that `out` already holds this very preparation. ConfigError,
// IoError, DataError.
Manifest prepare_data(const PrepareOptions& options);

// Files of the given inputs in the order in which they are read.
std::vector<SourceSpec> expand_inputs(const std::vector<SourceSpec>& inputs);

// A folder of folders to one domain per subfolder; anything else to one domain called after it.
std::vector<SourceSpec> domains_of_path(const std::string& path);

// Verifies every file of a prepared folder against its manifest; throws DataError for the first
// that differs.
void check_prepared(const std::string& folder);

}  // namespace degu
