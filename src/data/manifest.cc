#include "data/manifest.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/atomic_file.h"

namespace degu {
namespace {

using Json = nlohmann::ordered_json;
constexpr const char* kFormat = "degu-dataset";

int64_t sum(const std::vector<ShardEntry>& shards, int64_t ShardEntry::*member) {
  int64_t total = 0;
  for (const ShardEntry& shard : shards) total += shard.*member;
  return total;
}

Json split_to_json(const SplitEntry& split) {
  Json shards = Json::array();
  for (const ShardEntry& shard : split.shards) {
    shards.push_back({{"file", shard.file},
                      {"sha256", shard.sha256},
                      {"documents", shard.documents},
                      {"tokens", shard.tokens},
                      {"bytes", shard.bytes}});
  }
  return {{"documents", split.documents()},
          {"tokens", split.tokens()},
          {"bytes", split.bytes()},
          {"shards", shards}};
}

SplitEntry split_from_json(const Json& json) {
  SplitEntry split;
  for (const Json& shard : json.at("shards")) {
    split.shards.push_back({.file = shard.at("file"),
                            .sha256 = shard.at("sha256"),
                            .documents = shard.at("documents"),
                            .tokens = shard.at("tokens"),
                            .bytes = shard.at("bytes")});
  }
  return split;
}

Manifest from_json(const Json& json) {
  Manifest out;
  out.fingerprint = json.at("fingerprint");
  out.settings = json.at("settings").dump();
  const Json& tokenizer = json.at("tokenizer");
  out.tokenizer_sha256 = tokenizer.at("sha256");
  out.vocab = tokenizer.at("vocab");
  out.bos = tokenizer.at("bos");
  out.eos = tokenizer.at("eos");
  out.lossless = tokenizer.at("lossless");
  for (const Json& domain : json.at("domains")) {
    out.domains.push_back({.name = domain.at("name"),
                           .train = split_from_json(domain.at("train")),
                           .validation = split_from_json(domain.at("validation"))});
  }
  for (const Json& source : json.at("sources")) {
    out.sources.push_back({.path = source.at("path"),
                           .domain = source.at("domain"),
                           .sha256 = source.at("sha256"),
                           .size = source.at("size"),
                           .documents = source.at("documents"),
                           .bad = source.at("bad")});
  }
  const Json& bad = json.at("bad_input");
  for (const auto& [reason, count] : bad.at("reasons").items()) out.bad_reasons[reason] = count;
  for (const Json& entry : bad.at("first")) {
    out.bad_first.push_back({entry.at("file"), entry.at("line"), entry.at("reason")});
  }
  return out;
}

}  // namespace

int64_t SplitEntry::documents() const {
  return sum(shards, &ShardEntry::documents);
}
int64_t SplitEntry::tokens() const {
  return sum(shards, &ShardEntry::tokens);
}
int64_t SplitEntry::bytes() const {
  return sum(shards, &ShardEntry::bytes);
}

std::string manifest_to_json(const Manifest& manifest) {
  Json domains = Json::array();
  for (const DomainEntry& domain : manifest.domains) {
    domains.push_back({{"name", domain.name},
                       {"train", split_to_json(domain.train)},
                       {"validation", split_to_json(domain.validation)}});
  }
  Json sources = Json::array();
  for (const SourceEntry& source : manifest.sources) {
    sources.push_back({{"path", source.path},
                       {"domain", source.domain},
                       {"size", source.size},
                       {"sha256", source.sha256},
                       {"documents", source.documents},
                       {"bad", source.bad}});
  }
  Json reasons = Json::object();
  for (const auto& [reason, count] : manifest.bad_reasons) reasons[reason] = count;
  Json first = Json::array();
  for (const BadInput& bad : manifest.bad_first) {
    first.push_back({{"file", bad.file}, {"line", bad.line}, {"reason", bad.reason}});
  }
  const Json json = {{"format", kFormat},
                     {"version", kManifestVersion},
                     {"fingerprint", manifest.fingerprint},
                     {"settings", Json::parse(manifest.settings)},
                     {"tokenizer",
                      {{"file", kTokenizerFile},
                       {"sha256", manifest.tokenizer_sha256},
                       {"vocab", manifest.vocab},
                       {"bos", manifest.bos},
                       {"eos", manifest.eos},
                       {"lossless", manifest.lossless}}},
                     {"domains", domains},
                     {"sources", sources},
                     {"bad_input", {{"reasons", reasons}, {"first", first}}}};
  // Paths need not be UTF-8.
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Manifest load_manifest(const std::string& folder) {
  const std::string path = (std::filesystem::path(folder) / kManifestFile).string();
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    throw IoError(
        "{}: no {}: not a prepared folder, or its preparation has not finished (`degu data "
        "prepare`)",
        folder, kManifestFile);
  }
  try {
    const Json json = Json::parse(read_file(path));
    if (json.at("format") != kFormat) throw DataError("{}: not a degu dataset", path);
    if (json.at("version") != kManifestVersion) {
      throw DataError("{}: version {}, this program reads {}", path, json.at("version").dump(),
                      kManifestVersion);
    }
    return from_json(json);
  } catch (const nlohmann::json::exception& what) {
    throw DataError("{}: damaged manifest: {}", path, what.what());
  }
}

}  // namespace degu
