// The manifest of a prepared folder: what the shards are and where their text came from. Written
// last; a folder without one is unfinished. docs/formats/shards.md describes the JSON.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "data/documents.h"

namespace degu {

inline constexpr const char* kManifestFile = "manifest.json";
inline constexpr const char* kTokenizerFile = "tokenizer.model";
inline constexpr int kManifestVersion = 1;

struct ShardEntry {
  std::string file;  // relative to the folder
  std::string sha256;
  int64_t documents = 0;
  int64_t tokens = 0;
  int64_t bytes = 0;  // of text
};

struct SplitEntry {
  std::vector<ShardEntry> shards;
  int64_t documents() const;
  int64_t tokens() const;
  int64_t bytes() const;
};

struct DomainEntry {
  std::string name;
  SplitEntry train;
  SplitEntry validation;
};

struct SourceEntry {
  std::string path;  // as given
  std::string domain;
  std::string sha256;  // of the file
  int64_t size = 0;    // of the file
  int64_t documents = 0;
  int64_t bad = 0;  // reports
};

struct Manifest {
  std::string fingerprint;  // of settings, sources and tokenizer; not of threads
  std::string settings;     // JSON object
  std::string tokenizer_sha256;
  int vocab = 0;
  int bos = -1;  // written before each document; -1: not
  int eos = -1;  // written after each document; -1: not
  bool lossless = true;
  std::vector<DomainEntry> domains;  // by name
  std::vector<SourceEntry> sources;
  std::map<std::string, int64_t> bad_reasons;
  std::vector<BadInput> bad_first;  // the first kBadListed

  static constexpr size_t kBadListed = 1000;
};

std::string manifest_to_json(const Manifest& manifest);
// `folder`/manifest.json. IoError if there is none, DataError if it is not one that this version
// reads.
Manifest load_manifest(const std::string& folder);

}  // namespace degu
