// A tokenizer in the form that the transformers package reads (`AutoTokenizer.from_pretrained`).
#pragma once

#include <string>

#include "data/tokenizer.h"

namespace degu {

// Writes into `folder` (made when absent):
//   tokenizer.json         the pieces, and the merges in the order in which they are tried
//   tokenizer_config.json  BOS, EOS, and the context
//   tokenizer.model        the SentencePiece model as it is
// Ids are the same for every text that spells no special token (docs/formats/tokenizer.md).
// DataError for models that are not BPE or that change the text: their form is another one.
void export_tokenizer(const Tokenizer& tokenizer, int64_t context, const std::string& folder);

}  // namespace degu
