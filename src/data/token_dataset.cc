#include "data/token_dataset.h"

#include <filesystem>
#include <utility>

#include "base/error.h"
#include "data/manifest.h"
#include "io/sha256.h"

namespace degu {
namespace {

TokenStream open_split(const std::string& folder, const Manifest& manifest,
                       const std::string& domain, const char* split_name, const SplitEntry& split) {
  std::vector<Shard> shards;
  for (const ShardEntry& entry : split.shards) {
    const std::string path = (std::filesystem::path(folder) / entry.file).string();
    Shard shard(path);
    const ShardLabel& label = shard.label();
    if (shard.tokens() != entry.tokens || shard.documents() != entry.documents ||
        label.domain != domain || label.split != split_name || label.vocab != manifest.vocab ||
        label.tokenizer_sha256 != manifest.tokenizer_sha256) {
      throw DataError("{}: not the shard that {} lists; prepare the data again", path,
                      kManifestFile);
    }
    shards.push_back(std::move(shard));
  }
  return TokenStream(std::move(shards));
}

}  // namespace

TokenStream::TokenStream(std::vector<Shard> shards) : shards_(std::move(shards)), starts_(1, 0) {
  for (const Shard& shard : shards_) {
    starts_.push_back(starts_.back() + shard.tokens());
    documents_ += shard.documents();
    bytes_ += shard.bytes();
  }
}

size_t TokenStream::shard_of(int64_t token) const {
  const auto after = std::upper_bound(starts_.begin(), starts_.end(), token);
  return static_cast<size_t>(after - starts_.begin()) - 1;
}

void TokenStream::read(int64_t first, std::span<int32_t> out) const {
  if (first < 0 || first + static_cast<int64_t>(out.size()) > tokens()) {
    throw DataError("tokens {} to {} asked for, the split has {}", first,
                    first + static_cast<int64_t>(out.size()), tokens());
  }
  for (size_t s = shard_of(first); !out.empty(); ++s) {
    const auto count = std::min<size_t>(out.size(), static_cast<size_t>(starts_[s + 1] - first));
    shards_[s].read(first - starts_[s], out.first(count));
    out = out.subspan(count);
    first += static_cast<int64_t>(count);
  }
}

TokenDataset::TokenDataset(const std::vector<std::string>& folders) {
  if (folders.empty()) {
    throw ConfigError("data.paths: empty; name a folder made by `degu data prepare`");
  }
  Sha256 all;
  std::string first_tokenizer;
  for (const std::string& folder : folders) {
    const Manifest manifest = load_manifest(folder);
    if (!tokenizer_) {
      const std::string path = (std::filesystem::path(folder) / kTokenizerFile).string();
      tokenizer_ = std::make_unique<Tokenizer>(Tokenizer::from_file(path));
      if (tokenizer_->sha256() != manifest.tokenizer_sha256) {
        throw DataError("{}: not the tokenizer that {} lists; prepare the data again", path,
                        kManifestFile);
      }
    } else if (tokenizer_->sha256() != manifest.tokenizer_sha256) {
      throw ConfigError(
          "{}: prepared with another tokenizer than {}; prepare it with --tokenizer {}/{}", folder,
          folders.front(), folders.front(), kTokenizerFile);
    }
    for (const DomainEntry& entry : manifest.domains) {
      if (find(entry.name) >= 0) {
        throw ConfigError(
            "{}: domain '{}' is in an earlier folder of data.paths too; prepare it under "
            "another name",
            folder, entry.name);
      }
      domains_.push_back(
          {.name = entry.name,
           .train = open_split(folder, manifest, entry.name, "train", entry.train),
           .validation = open_split(folder, manifest, entry.name, "validation", entry.validation)});
      for (const SplitEntry* split : {&entry.train, &entry.validation}) {
        all.update(entry.name + "\n");
        for (const ShardEntry& shard : split->shards) all.update(shard.sha256 + "\n");
      }
    }
  }
  fingerprint_ = all.finish();
}

int TokenDataset::find(std::string_view name) const {
  for (size_t i = 0; i < domains_.size(); ++i) {
    if (domains_[i].name == name) return static_cast<int>(i);
  }
  return -1;
}

}  // namespace degu
