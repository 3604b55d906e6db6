// One token shard: an HDF5 file with the tokens of whole documents of one domain and split.
// docs/formats/shards.md describes it dataset by dataset.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace degu {

inline constexpr int kShardVersion = 1;

// A shard in memory, being filled.
struct ShardContent {
  std::vector<int32_t> tokens;
  std::vector<int64_t> offsets = {0};  // [documents + 1] into tokens
  std::vector<int64_t> bytes;          // of each document's text, UTF-8
  std::vector<uint64_t> hashes;        // of each document's text
  std::vector<int32_t> sources;        // index into the manifest's sources
  std::vector<int64_t> lines;          // first line in the source

  int64_t documents() const { return static_cast<int64_t>(bytes.size()); }
  void clear();
};

struct ShardLabel {
  std::string domain;
  std::string split;  // "train" or "validation"
  int64_t index = 0;  // within domain and split
  int vocab = 0;
  std::string tokenizer_sha256;
  std::string preparation;  // fingerprint of the preparation that wrote it
};

// Writes atomically. Equal content gives equal bytes.
void write_shard(const std::string& path, const ShardLabel& label, const ShardContent& content);

// A shard opened for reading. The tokens are mapped, the table of documents is in memory.
class Shard {
 public:
  explicit Shard(const std::string& path);  // IoError, DataError
  Shard(Shard&&) noexcept;
  Shard& operator=(Shard&&) noexcept;
  ~Shard();

  const std::string& path() const { return path_; }
  const ShardLabel& label() const { return label_; }
  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return static_cast<int64_t>(offsets_.size()) - 1; }
  int64_t bytes() const { return bytes_; }
  const std::vector<int64_t>& offsets() const { return offsets_; }  // [documents + 1]

  // Tokens [first, first + out.size()). DataError if one is outside the vocabulary.
  void read(int64_t first, std::span<int32_t> out) const;

  // Of every document; read from the file.
  std::vector<int64_t> document_bytes() const;
  std::vector<int32_t> document_sources() const;
  std::vector<int64_t> document_lines() const;
  std::vector<uint64_t> document_hashes() const;

 private:
  class Mapping;
  std::string path_;
  ShardLabel label_;
  int64_t tokens_ = 0;
  int64_t bytes_ = 0;
  int token_size_ = 2;
  std::vector<int64_t> offsets_;
  std::unique_ptr<Mapping> mapping_;
  std::vector<char> copy_;  // of the tokens, when their layout cannot be mapped
  const char* data_ = nullptr;
};

}  // namespace degu
