// Prepared token shards, opened for reading: docs/formats/shards.md. Tokens are mapped into memory,
// so a read is a copy and the operating system keeps what is used.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/shard.h"
#include "data/tokenizer.h"

namespace degu {

// One split of one domain: the tokens of its shards as one run. Const members may be called from
// any number of threads.
class TokenStream {
 public:
  explicit TokenStream(std::vector<Shard> shards);

  int64_t tokens() const { return starts_.back(); }
  int64_t documents() const { return documents_; }
  int64_t bytes() const { return bytes_; }  // of text

  // Tokens [first, first + out.size()); DataError if one is not in the vocabulary.
  void read(int64_t first, std::span<int32_t> out) const;
  // Calls visit(t - first) for each start t of a document in [first, first + count), ascending.
  template <class Visit>
  void for_document_starts(int64_t first, int64_t count, Visit&& visit) const;

 private:
  size_t shard_of(int64_t token) const;
  std::vector<Shard> shards_;
  std::vector<int64_t> starts_;  // [shards + 1]: first token of each
  int64_t documents_ = 0;
  int64_t bytes_ = 0;
};

template <class Visit>
void TokenStream::for_document_starts(int64_t first, int64_t count, Visit&& visit) const {
  if (count <= 0) return;
  for (size_t s = shard_of(first); s < shards_.size() && starts_[s] < first + count; ++s) {
    const std::vector<int64_t>& offsets = shards_[s].offsets();
    // The last offset is the end of the shard, which is the first start of the next.
    const auto end = offsets.end() - 1;
    for (auto it = std::lower_bound(offsets.begin(), end, first - starts_[s]);
         it != end && starts_[s] + *it < first + count; ++it) {
      visit(starts_[s] + *it - first);
    }
  }
}

class TokenDataset {
 public:
  // Folders made by `degu data prepare`, with one tokenizer and different domain names. IoError or
  // DataError naming the file that is missing, unfinished or not what the manifest says.
  explicit TokenDataset(const std::vector<std::string>& folders);
  TokenDataset(TokenDataset&&) noexcept = default;

  struct Domain {
    std::string name;
    TokenStream train;
    TokenStream validation;
  };
  const std::vector<Domain>& domains() const { return domains_; }
  int find(std::string_view name) const;  // -1 if absent
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  int vocab_size() const { return tokenizer_->vocab_size(); }
  // Changes when any shard does; equal preparations have equal ones.
  const std::string& fingerprint() const { return fingerprint_; }

 private:
  std::vector<Domain> domains_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::string fingerprint_;
};

}  // namespace degu
