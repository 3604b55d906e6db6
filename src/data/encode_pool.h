// Encodes batches of documents on several threads. Results come in the order of the documents.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/documents.h"
#include "data/tokenizer.h"

namespace degu {

class EncodePool {
 public:
  // Keeps a reference to the tokenizer.
  EncodePool(const Tokenizer& tokenizer, int threads);

  // ids[i] becomes the tokens of documents[i], without BOS and EOS.
  void encode(std::span<const Document> documents, std::vector<std::vector<int32_t>>& ids);

 private:
  std::vector<Tokenizer::Encoder> encoders_;  // one per thread, remembering words between batches
};

}  // namespace degu
