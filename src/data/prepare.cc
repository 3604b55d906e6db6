#include "data/prepare.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <queue>
#include <utility>

#include "base/cpu_info.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/random.h"
#include "config/fields.h"
#include "data/encode_pool.h"
#include "data/split_writer.h"
#include "data/tokenizer.h"
#include "io/atomic_file.h"
#include "io/sha256.h"

namespace degu {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kStateFile = "prepare.json";  // of an unfinished preparation
constexpr int64_t kBatchBytes = int64_t{8} << 20;   // of text encoded at a time
constexpr size_t kBatchDocuments = 8192;
constexpr int kBadPrinted = 20;

// One preparation at a time in a folder.
class FolderLock {
 public:
  explicit FolderLock(const std::string& folder) : path_(folder + "/.lock") {
    fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd_ < 0) throw IoError("{}: cannot create: {}", path_, std::strerror(errno));
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      ::close(fd_);
      throw IoError("{}: another preparation is at work here", folder);
    }
  }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;
  ~FolderLock() {
    ::unlink(path_.c_str());
    ::close(fd_);
  }

 private:
  std::string path_;
  int fd_;
};

// 64 well-mixed bits of a text, the same everywhere.
uint64_t text_hash(std::string_view text, int64_t seed) {
  return RandomStream(hash_name(text), "document", static_cast<uint64_t>(seed)).bits64(0);
}

bool goes_to_validation(uint64_t hash, double fraction) {
  return static_cast<double>(hash >> 11) * 0x1.0p-53 < fraction;
}

std::string amount(int64_t count) {
  return format_amount(count, Progress::Unit::kCount);
}

class Preparation {
 public:
  explicit Preparation(const PrepareOptions& options) : options_(options) {}
  Manifest run();

 private:
  void hash_sources();
  void fingerprint();
  bool finished_before() const;
  void open_folder();
  Tokenizer make_tokenizer();
  std::string train_on_sample();
  void encode_all(const Tokenizer& tokenizer);
  void encode_batch();
  void finish();

  std::string path(const char* name) const { return (fs::path(options_.out) / name).string(); }
  // What happens to bad input; `count` false while sampling, when it will be met again.
  std::function<void(const BadInput&)> on_bad(SourceEntry* source, Progress* progress);
  SplitWriter& writer(const std::string& domain, bool validation);

  struct Pending {
    SplitWriter* writer;
    SplitWriter::Origin origin;
  };

  const PrepareOptions options_;
  std::vector<SourceSpec> sources_;
  int64_t source_bytes_ = 0;
  Manifest manifest_;
  std::map<std::pair<std::string, bool>, SplitWriter> writers_;
  std::unique_ptr<EncodePool> pool_;
  std::vector<Document> batch_;
  std::vector<Pending> pending_;
  std::vector<std::vector<int32_t>> ids_;
  int64_t batch_bytes_ = 0;
  int64_t tokens_ = 0;
  int64_t bad_ = 0;
};

Manifest Preparation::run() {
  sources_ = expand_inputs(options_.inputs);
  hash_sources();
  fingerprint();
  std::error_code error;
  fs::create_directories(options_.out, error);
  if (error) throw IoError("{}: cannot create folder: {}", options_.out, error.message());
  const FolderLock lock(options_.out);
  if (!options_.restart && finished_before()) {
    log_info("{}: already prepared from these inputs with these settings", options_.out);
    return load_manifest(options_.out);
  }
  open_folder();
  const Tokenizer tokenizer = make_tokenizer();
  encode_all(tokenizer);
  finish();
  return manifest_;
}

void Preparation::hash_sources() {
  for (const SourceSpec& source : sources_) {
    std::error_code error;
    const auto size = static_cast<int64_t>(fs::file_size(source.path, error));
    if (error) throw IoError("{}: cannot read: {}", source.path, error.message());
    manifest_.sources.push_back({.path = source.path, .domain = source.domain, .size = size});
    source_bytes_ += size;
  }
  Progress progress("hashing inputs", source_bytes_, Progress::Unit::kBytes);
  for (SourceEntry& source : manifest_.sources) {
    source.sha256 = sha256_of_file(source.path, [&](int64_t bytes) { progress.add(bytes); });
  }
}

void Preparation::fingerprint() {
  const DocumentRules& rules = options_.rules;
  Json settings = {{"split", enum_name(rules.split)},
                   {"document_bytes", rules.document_bytes},
                   {"text_key", rules.text_key},
                   {"domain_key", rules.domain_key},
                   {"on_bad", enum_name(options_.on_bad)},
                   {"bos", options_.bos},
                   {"eos", options_.eos},
                   {"val_fraction", options_.val_fraction},
                   {"split_seed", options_.split_seed},
                   {"shard_tokens", options_.shard_tokens}};
  if (options_.tokenizer.empty()) {
    settings["vocab"] = options_.vocab;
    settings["character_coverage"] = options_.character_coverage;
    settings["sample_bytes"] = options_.sample_bytes;
  } else {
    settings["tokenizer_sha256"] = sha256_of_file(options_.tokenizer);
  }
  manifest_.settings = settings.dump();
  Sha256 hash;
  hash.update(fmt::format("{} {} {}\n", kManifestVersion, kShardVersion, manifest_.settings));
  for (const SourceEntry& source : manifest_.sources) {
    hash.update(fmt::format("{} {} {}\n", source.domain, source.sha256, source.path));
  }
  manifest_.fingerprint = hash.finish();
}

bool Preparation::finished_before() const {
  if (!fs::exists(path(kManifestFile))) return false;
  const std::string there = load_manifest(options_.out).fingerprint;
  if (there == manifest_.fingerprint) return true;
  throw ConfigError(
      "{}: holds data prepared from other inputs or with other settings; choose another --out, or "
      "--restart to replace it",
      options_.out);
}

void Preparation::open_folder() {
  const std::string shards = path("shards");
  if (options_.restart) {
    for (const char* name : {kManifestFile, kStateFile, kTokenizerFile}) fs::remove(path(name));
    if (fs::exists(shards)) {
      for (const auto& entry : fs::directory_iterator(shards)) {
        const std::string name = entry.path().filename().string();
        if (name.ends_with(".h5") || name.ends_with(".h5.partial")) fs::remove(entry.path());
      }
    }
  }
  if (!fs::exists(path(kStateFile))) {
    if (fs::exists(shards) && !fs::is_empty(shards)) {
      throw ConfigError("{}: shards of an unknown preparation; choose another --out, or --restart",
                        options_.out);
    }
    const Json state = {{"fingerprint", manifest_.fingerprint},
                        {"settings", Json::parse(manifest_.settings)}};
    fs::remove(path(kTokenizerFile));
    write_file_atomic(path(kStateFile), state.dump(1) + "\n");
    return;
  }
  std::string there;
  try {
    there = Json::parse(read_file(path(kStateFile))).at("fingerprint");
  } catch (const nlohmann::json::exception&) {
    throw DataError("{}: damaged; --restart begins anew", path(kStateFile));
  }
  if (there != manifest_.fingerprint) {
    throw ConfigError(
        "{}: holds an unfinished preparation of other inputs or with other settings; choose "
        "another "
        "--out, or --restart to discard it",
        options_.out);
  }
  log_info("{}: taking up an unfinished preparation", options_.out);
}

std::function<void(const BadInput&)> Preparation::on_bad(SourceEntry* source, Progress* progress) {
  return [this, source, progress](const BadInput& bad) {
    const std::string place = bad.line > 0 ? fmt::format("{}:{}", bad.file, bad.line) : bad.file;
    if (options_.on_bad == OnBad::kFatal) {
      throw DataError("{}: {} (--on-bad skip leaves such input out and counts it)", place,
                      bad.reason);
    }
    if (!source) return;
    ++source->bad;
    ++manifest_.bad_reasons[bad.reason.substr(0, bad.reason.find(" ("))];
    if (manifest_.bad_first.size() < Manifest::kBadListed) manifest_.bad_first.push_back(bad);
    if (++bad_ > kBadPrinted) return;
    progress->clear();
    log_warn("{}: {}; left out", place, bad.reason);
    if (bad_ == kBadPrinted) log_warn("further bad input is counted, not printed");
  };
}

Tokenizer Preparation::make_tokenizer() {
  const std::string target = path(kTokenizerFile);
  if (!fs::exists(target)) {
    const std::string model =
        options_.tokenizer.empty() ? train_on_sample() : read_file(options_.tokenizer);
    Tokenizer::from_bytes(model, options_.tokenizer.empty() ? target : options_.tokenizer);
    write_file_atomic(target, model);
  }
  Tokenizer tokenizer = Tokenizer::from_file(target);
  if (options_.bos && tokenizer.bos_id() < 0) {
    throw ConfigError("{}: this tokenizer has no BOS token; use --bos off", options_.tokenizer);
  }
  if (options_.eos && tokenizer.eos_id() < 0) {
    throw ConfigError("{}: this tokenizer has no EOS token; use --eos off", options_.tokenizer);
  }
  if (!tokenizer.lossless()) {
    log_warn("{}: this tokenizer changes text; bits per byte will count the changed text's bytes",
             options_.tokenizer);
  }
  return tokenizer;
}

std::string Preparation::train_on_sample() {
  struct Sampled {
    uint64_t hash;
    int64_t order;
    std::string text;
    bool operator<(const Sampled& other) const {
      return hash != other.hash ? hash < other.hash : order < other.order;
    }
  };
  std::vector<Sampled> heap;  // the largest hash on top
  int64_t bytes = 0;
  int64_t order = 0;
  {
    Progress progress("sampling for the tokenizer", source_bytes_, Progress::Unit::kBytes);
    int64_t before = 0;
    for (const SourceEntry& source : manifest_.sources) {
      DocumentReader reader(source.path, options_.rules, on_bad(nullptr, nullptr));
      Document document;
      while (reader.next(document)) {
        if (goes_to_validation(text_hash(document.text, options_.split_seed),
                               options_.val_fraction)) {
          continue;
        }
        bytes += static_cast<int64_t>(document.text.size());
        heap.push_back(
            {text_hash(document.text, ~options_.split_seed), order++, std::move(document.text)});
        std::push_heap(heap.begin(), heap.end());
        while (bytes > options_.sample_bytes && heap.size() > 1) {
          std::pop_heap(heap.begin(), heap.end());
          bytes -= static_cast<int64_t>(heap.back().text.size());
          heap.pop_back();
        }
        progress.set(before + reader.file_position());
      }
      before += source.size;
    }
  }
  std::sort_heap(heap.begin(), heap.end());
  log_info("training a tokenizer of {} pieces on {} of text ({} documents)", options_.vocab,
           format_amount(bytes, Progress::Unit::kBytes), amount(static_cast<int64_t>(heap.size())));
  size_t next = 0;
  const Timer timer;
  std::string model =
      train_tokenizer({.vocab = options_.vocab, .character_coverage = options_.character_coverage},
                      [&]() -> std::optional<std::string> {
                        if (next == heap.size()) return std::nullopt;
                        return std::move(heap[next++].text);
                      });
  log_info("tokenizer trained in {:.1f} s", timer.seconds());
  return model;
}

SplitWriter& Preparation::writer(const std::string& domain, bool validation) {
  const auto key = std::pair(domain, validation);
  const auto known = writers_.find(key);
  if (known != writers_.end()) return known->second;
  return writers_
      .emplace(key, SplitWriter(options_.out,
                                {.domain = domain,
                                 .split = validation ? "validation" : "train",
                                 .index = 0,
                                 .vocab = manifest_.vocab,
                                 .tokenizer_sha256 = manifest_.tokenizer_sha256,
                                 .preparation = manifest_.fingerprint},
                                options_.shard_tokens))
      .first->second;
}

void Preparation::encode_all(const Tokenizer& tokenizer) {
  manifest_.vocab = tokenizer.vocab_size();
  manifest_.tokenizer_sha256 = tokenizer.sha256();
  manifest_.bos = options_.bos ? tokenizer.bos_id() : -1;
  manifest_.eos = options_.eos ? tokenizer.eos_id() : -1;
  manifest_.lossless = tokenizer.lossless();
  pool_ = std::make_unique<EncodePool>(tokenizer, options_.threads);
  Progress progress("encoding", source_bytes_, Progress::Unit::kBytes);
  int64_t before = 0;
  for (size_t i = 0; i < manifest_.sources.size(); ++i) {
    SourceEntry& source = manifest_.sources[i];
    DocumentReader reader(source.path, options_.rules, on_bad(&source, &progress));
    Document document;
    while (reader.next(document)) {
      ++source.documents;
      const std::string& domain = document.domain.empty() ? source.domain : document.domain;
      const uint64_t hash = text_hash(document.text, options_.split_seed);
      SplitWriter& target = writer(domain, goes_to_validation(hash, options_.val_fraction));
      if (target.wants_next()) {
        const auto bytes = static_cast<int64_t>(document.text.size());
        pending_.push_back({&target,
                            {.hash = hash,
                             .source = static_cast<int32_t>(i),
                             .line = document.line,
                             .bytes = bytes}});
        batch_.push_back(std::move(document));
        batch_bytes_ += bytes;
        if (batch_bytes_ >= kBatchBytes || batch_.size() >= kBatchDocuments) encode_batch();
      }
      progress.set(before + reader.file_position(),
                   fmt::format("{:.1f} M tokens", 1e-6 * static_cast<double>(tokens_)));
    }
    before += source.size;
  }
  encode_batch();
  for (auto& [key, target] : writers_) target.finish();
}

void Preparation::encode_batch() {
  pool_->encode(batch_, ids_);
  for (size_t i = 0; i < batch_.size(); ++i) {
    pending_[i].writer->add(ids_[i], manifest_.bos, manifest_.eos, pending_[i].origin);
    tokens_ += static_cast<int64_t>(ids_[i].size());
  }
  batch_.clear();
  pending_.clear();
  batch_bytes_ = 0;
}

void Preparation::finish() {
  for (const auto& [key, target] : writers_) {
    const auto& [domain, validation] = key;
    if (manifest_.domains.empty() || manifest_.domains.back().name != domain) {
      manifest_.domains.push_back({.name = domain, .train = {}, .validation = {}});
    }
    (validation ? manifest_.domains.back().validation : manifest_.domains.back().train) =
        target.entry();
  }
  if (manifest_.domains.empty()) throw DataError("{}: no usable text in the inputs", options_.out);
  if (bad_ > 0)
    log_warn("{} pieces of bad input left out; {} lists them", amount(bad_), path(kManifestFile));
  write_file_atomic(path(kManifestFile), manifest_to_json(manifest_));
  fs::remove(path(kStateFile));
}

}  // namespace

void PrepareOptions::check() const {
  if (out.empty()) throw ConfigError("data prepare: --out is missing");
  if (inputs.empty())
    throw ConfigError("data prepare: no inputs; give files or folders, or --domain name=path");
  for (const SourceSpec& input : inputs) {
    if (!valid_domain_name(input.domain)) {
      throw ConfigError(
          "data prepare: domain '{}' is not a name of letters, digits, '_', '-' and '.'",
          input.domain);
    }
  }
  const auto require = [](bool ok, const char* name, auto value, const char* range) {
    if (!ok) throw ConfigError("data prepare: {} {} is not {}", name, value, range);
  };
  require(tokenizer.empty() ? vocab >= 260 && vocab <= 1'000'000 : true, "--vocab", vocab,
          "between 260 and 1000000");
  require(val_fraction >= 0 && val_fraction < 1, "--val-fraction", val_fraction, "in [0, 1)");
  require(character_coverage > 0.9 && character_coverage <= 1, "--character-coverage",
          character_coverage, "in (0.9, 1]");
  require(rules.document_bytes >= 64 && rules.document_bytes <= kMaxDocumentBytes,
          "--document-bytes", rules.document_bytes, "between 64 and 67108864");
  require(sample_bytes >= 1000, "--sample-bytes", sample_bytes, "at least 1000");
  require(shard_tokens >= 1, "--shard-tokens", shard_tokens, "at least 1");
  require(threads >= 0, "--threads", threads, "at least 0");
}

Manifest prepare_data(const PrepareOptions& options) {
  options.check();
  PrepareOptions resolved = options;
  if (resolved.threads == 0) {
    resolved.threads = physical_cores();
  }
  return Preparation(resolved).run();
}

void check_prepared(const std::string& folder) {
  const Manifest manifest = load_manifest(folder);
  const auto check_file = [&](const std::string& file, const std::string& expected) {
    const std::string path = (fs::path(folder) / file).string();
    const std::string found = sha256_of_file(path);
    if (found != expected) {
      throw DataError("{}: altered or damaged: SHA-256 {} instead of {}; prepare the data again",
                      path, found, expected);
    }
  };
  check_file(kTokenizerFile, manifest.tokenizer_sha256);
  for (const DomainEntry& domain : manifest.domains) {
    for (const SplitEntry* split : {&domain.train, &domain.validation}) {
      for (const ShardEntry& shard : split->shards) check_file(shard.file, shard.sha256);
    }
  }
}

}  // namespace degu
