#include "data/split_writer.h"

#include <filesystem>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "io/sha256.h"

namespace degu {

SplitWriter::SplitWriter(std::string folder, ShardLabel label, int64_t shard_tokens)
    : folder_(std::move(folder)), label_(std::move(label)), shard_tokens_(shard_tokens) {
  for (;; ++label_.index) {
    const std::string file = relative_path(label_.index);
    const std::string path = (std::filesystem::path(folder_) / file).string();
    if (!std::filesystem::exists(path)) break;
    const Shard shard(path);
    if (shard.label().preparation != label_.preparation) {
      throw DataError("{}: belongs to another preparation; --restart discards it", path);
    }
    entry_.shards.push_back({.file = file,
                             .sha256 = sha256_of_file(path),
                             .documents = shard.documents(),
                             .tokens = shard.tokens(),
                             .bytes = shard.bytes()});
    finished_documents_ += shard.documents();
  }
}

std::string SplitWriter::relative_path(int64_t index) const {
  return fmt::format("shards/{}-{}-{:05}.h5", label_.domain, label_.split, index);
}

void SplitWriter::add(std::span<const int32_t> ids, int bos, int eos, const Origin& origin) {
  const auto size = static_cast<int64_t>(ids.size()) + (bos >= 0 ? 1 : 0) + (eos >= 0 ? 1 : 0);
  if (!content_.tokens.empty() &&
      static_cast<int64_t>(content_.tokens.size()) + size > shard_tokens_) {
    flush();
  }
  if (bos >= 0) content_.tokens.push_back(bos);
  content_.tokens.insert(content_.tokens.end(), ids.begin(), ids.end());
  if (eos >= 0) content_.tokens.push_back(eos);
  content_.offsets.push_back(static_cast<int64_t>(content_.tokens.size()));
  content_.bytes.push_back(origin.bytes);
  content_.hashes.push_back(origin.hash);
  content_.sources.push_back(origin.source);
  content_.lines.push_back(origin.line);
}

void SplitWriter::finish() {
  if (content_.documents() > 0) flush();
}

void SplitWriter::flush() {
  const std::string file = relative_path(label_.index);
  const std::string path = (std::filesystem::path(folder_) / file).string();
  write_shard(path, label_, content_);
  entry_.shards.push_back(
      {.file = file,
       .sha256 = sha256_of_file(path),
       .documents = content_.documents(),
       .tokens = static_cast<int64_t>(content_.tokens.size()),
       .bytes = std::accumulate(content_.bytes.begin(), content_.bytes.end(), int64_t{0})});
  content_.clear();
  ++label_.index;
}

}  // namespace degu
