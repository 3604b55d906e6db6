// Prepared token shards, opened for reading: docs/formats/shards.md. Tokens are mapped into memory,
// so a read is a copy and the operating system keeps what is used.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace degu {

// One split of one domain: the tokens of its shards as one run. Const members may be called from
// any number of threads.
class TokenStream {
 public:
  TokenStream(std::string folder, std::vector<std::string> files, int vocab);
  TokenStream(TokenStream&&) noexcept;
  TokenStream& operator=(TokenStream&&) noexcept;
  ~TokenStream();

  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return documents_; }
  int64_t bytes() const { return bytes_; }  // of text

  // Tokens [first, first + out.size()); DataError if one is not in the vocabulary.
  void read(int64_t first, std::span<int32_t> out) const;
  // Starts of documents in [first, first + count), relative to `first`, appended.
  void document_starts(int64_t first, int64_t count, std::vector<int64_t>& starts) const;

 private:
  struct Shard;
  const Shard& shard_at(int64_t token) const;
  std::vector<Shard> shards_;
  int64_t tokens_ = 0;
  int64_t documents_ = 0;
  int64_t bytes_ = 0;
  int vocab_ = 0;
};

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
  const std::string& fingerprint() const { return fingerprint_; }  // changes when any shard does

 private:
  std::vector<Domain> domains_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::string fingerprint_;
};

}  // namespace degu
