// `degu data`: text to token shards, and a look at what came out.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/progress.h"
#include "base/timer.h"
#include "cli/command.h"
#include "data/manifest.h"
#include "data/prepare.h"
#include "data/reader.h"
#include "data/shard.h"
#include "data/tokenizer.h"

namespace degu {
namespace {

using Json = nlohmann::ordered_json;

std::string amount(int64_t count) {
  return format_amount(count, Progress::Unit::kCount);
}
std::string bytes_text(int64_t bytes) {
  return format_amount(bytes, Progress::Unit::kBytes);
}

Json split_json(const SplitEntry& split) {
  return {{"documents", split.documents()}, {"tokens", split.tokens()}, {"bytes", split.bytes()}};
}

Json summary_json(const std::string& folder, const Manifest& manifest) {
  Json domains = Json::array();
  for (const DomainEntry& domain : manifest.domains) {
    domains.push_back({{"name", domain.name},
                       {"train", split_json(domain.train)},
                       {"validation", split_json(domain.validation)}});
  }
  int64_t bad = 0;
  for (const auto& [reason, count] : manifest.bad_reasons) bad += count;
  return {{"folder", folder},
          {"fingerprint", manifest.fingerprint},
          {"tokenizer",
           {{"sha256", manifest.tokenizer_sha256},
            {"vocab", manifest.vocab},
            {"bos", manifest.bos},
            {"eos", manifest.eos},
            {"lossless", manifest.lossless}}},
          {"domains", domains},
          {"sources", manifest.sources.size()},
          {"bad", bad}};
}

void print_table(const std::string& folder, const Manifest& manifest) {
  fmt::print("{}: {} pieces, {} before and {} after each document\n", folder, manifest.vocab,
             manifest.bos >= 0 ? "BOS" : "nothing", manifest.eos >= 0 ? "EOS" : "nothing");
  fmt::print("{:<16} {:>12} {:>12} {:>15} {:>15} {:>12}\n", "domain", "documents", "text",
             "train tokens", "val. tokens", "bytes/token");
  int64_t documents = 0, bytes = 0, train = 0, validation = 0;
  const auto row = [](const std::string& name, int64_t docs, int64_t text, int64_t t, int64_t v) {
    fmt::print("{:<16} {:>12} {:>12} {:>15} {:>15} {:>12.2f}\n", name, amount(docs),
               bytes_text(text), amount(t), amount(v),
               static_cast<double>(text) / static_cast<double>(std::max<int64_t>(t + v, 1)));
  };
  for (const DomainEntry& d : manifest.domains) {
    row(d.name, d.train.documents() + d.validation.documents(),
        d.train.bytes() + d.validation.bytes(), d.train.tokens(), d.validation.tokens());
    documents += d.train.documents() + d.validation.documents();
    bytes += d.train.bytes() + d.validation.bytes();
    train += d.train.tokens();
    validation += d.validation.tokens();
  }
  row("all", documents, bytes, train, validation);
  for (const auto& [reason, count] : manifest.bad_reasons) {
    fmt::print("left out: {} ({})\n", reason, amount(count));
  }
}

void report(const std::string& folder, const Manifest& manifest, bool json) {
  if (json) {
    fmt::print("{}\n",
               summary_json(folder, manifest).dump(2, ' ', false, Json::error_handler_t::replace));
  } else {
    print_table(folder, manifest);
  }
}

// ---- prepare ----

struct PrepareFlags {
  PrepareOptions options;
  std::vector<std::string> inputs;
  std::vector<std::string> domains;
  bool json = false;
};

std::vector<SourceSpec> sources_of(const PrepareFlags& flags) {
  std::vector<SourceSpec> out;
  for (const std::string& input : flags.inputs) {
    for (SourceSpec& source : domains_of_path(input)) out.push_back(std::move(source));
  }
  for (const std::string& text : flags.domains) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals + 1 == text.size()) {
      throw ConfigError("--domain {}: expected name=path", text);
    }
    out.push_back({text.substr(0, equals), text.substr(equals + 1)});
  }
  return out;
}

Action attach_prepare(CommandLine& line) {
  auto flags = std::make_shared<PrepareFlags>();
  PrepareOptions& o = flags->options;
  line.option("INPUT", flags->inputs,
              "text, JSON lines or gzip of either; a folder's subfolders become its domains");
  line.option("--domain", flags->domains, "name=path: a file or folder as one domain; repeatable")
      .repeatable();
  line.option("--out", o.out, "folder to write").required();
  line.option("--vocab", o.vocab, "pieces of the tokenizer that is trained");
  line.option("--tokenizer", o.tokenizer, "SentencePiece model to use instead of training one");
  line.option("--sample-bytes", o.sample_bytes, "text that the tokenizer is trained on");
  line.option(
      "--character-coverage", o.character_coverage,
      "share of the sample's characters with a piece of their own; others are spelt in bytes");
  line.option("--val-fraction", o.val_fraction, "share of the documents that goes to validation");
  line.option("--split-seed", o.split_seed, "another choice of validation documents");
  line.option("--on-bad", o.on_bad, "bad input: fatal, or skip (left out, counted and listed)");
  line.option("--document", o.rules.split,
              "documents of plain text: pages (paragraphs gathered up to --document-bytes), "
              "paragraphs, lines, or the whole file");
  line.option("--document-bytes", o.rules.document_bytes, "longest page or paragraph");
  line.option("--text-key", o.rules.text_key, "key of the text in JSON records");
  line.option("--domain-key", o.rules.domain_key,
              "key of the domain in JSON records; where it is absent the input's domain holds");
  line.on_off("--bos", o.bos, "BOS token before each document");
  line.on_off("--eos", o.eos, "EOS token after each document");
  line.option("--shard-tokens", o.shard_tokens, "tokens per shard file");
  line.option("--threads", o.threads, "threads that encode; 0: all cores");
  line.flag("--restart", o.restart, "discard what an earlier preparation left in --out");
  line.flag("--json", flags->json, "print the result as one JSON object");
  return [flags] {
    flags->options.inputs = sources_of(*flags);
    const Timer timer;
    const Manifest manifest = prepare_data(flags->options);
    log_info("{}: prepared in {}", flags->options.out, format_duration(timer.seconds()));
    report(flags->options.out, manifest, flags->json);
    return ExitCode::kDone;
  };
}

// ---- info, check ----

Action attach_folder(CommandLine& line, bool verify) {
  struct Flags {
    std::string folder;
    bool json = false;
  };
  auto flags = std::make_shared<Flags>();
  line.option("FOLDER", flags->folder, "made by `degu data prepare`").required();
  line.flag("--json", flags->json, "print the result as one JSON object");
  return [flags, verify] {
    if (verify) check_prepared(flags->folder);
    report(flags->folder, load_manifest(flags->folder), flags->json);
    return ExitCode::kDone;
  };
}

// ---- show ----

Action attach_show(CommandLine& line) {
  struct Flags {
    std::string folder;
    std::string domain;
    int64_t document = 0;
    bool validation = false;
    bool tokens = false;
    bool json = false;
  };
  auto flags = std::make_shared<Flags>();
  line.option("FOLDER", flags->folder, "made by `degu data prepare`").required();
  line.option("--domain", flags->domain, "which domain; default: the first");
  line.option("--document", flags->document, "number of the document within its split");
  line.flag("--validation", flags->validation, "from the validation split");
  line.flag("--tokens", flags->tokens, "with bars between the tokens");
  line.flag("--json", flags->json, "print the result as one JSON object");
  return [flags] {
    const Manifest manifest = load_manifest(flags->folder);
    const std::filesystem::path folder(flags->folder);
    const Tokenizer tokenizer = Tokenizer::from_file((folder / kTokenizerFile).string());
    const auto domain = std::find_if(manifest.domains.begin(), manifest.domains.end(),
                                     [&](const DomainEntry& entry) {
                                       return flags->domain.empty() || entry.name == flags->domain;
                                     });
    if (domain == manifest.domains.end()) {
      throw ConfigError("--domain {}: no such domain; `degu data info` lists them", flags->domain);
    }
    int64_t index = flags->document;
    for (const ShardEntry& entry :
         (flags->validation ? domain->validation : domain->train).shards) {
      if (index >= entry.documents) {
        index -= entry.documents;
        continue;
      }
      const Shard shard((folder / entry.file).string());
      const auto at = static_cast<size_t>(std::max<int64_t>(index, 0));
      std::vector<int32_t> ids(static_cast<size_t>(shard.offsets()[at + 1] - shard.offsets()[at]));
      shard.read(shard.offsets()[at], ids);
      const auto source = static_cast<size_t>(shard.document_sources()[at]);
      const std::string file =
          source < manifest.sources.size() ? manifest.sources[source].path : "?";
      const int64_t first_line = shard.document_lines()[at];
      std::string text = tokenizer.decode(ids);
      if (flags->json) {
        fmt::print("{}\n", Json{{"domain", domain->name},
                                {"file", file},
                                {"line", first_line},
                                {"bytes", shard.document_bytes()[at]},
                                {"tokens", ids},
                                {"text", text}}
                               .dump(2, ' ', false, Json::error_handler_t::replace));
        return ExitCode::kDone;
      }
      if (flags->tokens) {
        text.clear();
        for (int32_t id : ids) text += tokenizer.piece(id) + "|";
      }
      log_info("{}:{}, {} bytes, {} tokens", file, first_line, shard.document_bytes()[at],
               ids.size());
      fmt::print("{}\n", text);
      return ExitCode::kDone;
    }
    throw ConfigError("--document {}: the split has {} documents", flags->document,
                      (flags->validation ? domain->validation : domain->train).documents());
  };
}

// ---- bench ----

Action attach_bench_reader(CommandLine& line) {
  struct Flags {
    DataConfig config;
    int64_t batch = 16;
    double seconds = 2;
    bool json = false;
  };
  auto flags = std::make_shared<Flags>();
  DataConfig& config = flags->config;
  line.option("FOLDER", config.paths, "made by `degu data prepare`").required();
  line.option("--sequence-length", config.sequence_length, "S");
  line.option("--batch", flags->batch, "sequences per step");
  line.option("--seconds", flags->seconds, "how long to read");
  line.flag("--json", flags->json, "print the result as one JSON object");
  return [flags] {
    const Timer opening;
    const TokenDataset dataset(flags->config.paths);
    const BatchReader reader(dataset, flags->config, flags->batch);
    const double open_seconds = opening.seconds();
    SequenceBatch batch;
    batch.reserve(flags->batch, flags->config.sequence_length);
    const Timer timer;
    int64_t step = 0;
    int64_t counted = 0;
    while (timer.seconds() < flags->seconds) {
      reader.read_sequences(step++, 0, flags->batch, batch);
      counted += batch.counted_targets;
    }
    const double rate = static_cast<double>(step * batch.tokens()) / timer.seconds();
    if (flags->json) {
      fmt::print("{}\n", Json{{"tokens_per_second", rate},
                              {"open_seconds", open_seconds},
                              {"steps", step},
                              {"counted_targets", counted}}
                             .dump(2));
    } else {
      fmt::print("{:.1f} M tokens/s on one thread ({} steps of {} x {}), opened in {:.1f} ms\n",
                 1e-6 * rate, step, flags->batch, flags->config.sequence_length,
                 1e3 * open_seconds);
    }
    return ExitCode::kDone;
  };
}

Action attach_summary(CommandLine& line) {
  return attach_folder(line, false);
}
Action attach_check(CommandLine& line) {
  return attach_folder(line, true);
}

constexpr Command kDataCommands[] = {
    {"prepare", "text to tokenizer and token shards", &attach_prepare},
    {"info", "domains and sizes of a prepared folder", &attach_summary},
    {"check", "verify every file of a prepared folder against its manifest", &attach_check},
    {"show", "one document, as the model sees it", &attach_show},
    {"bench", "how fast training batches are read", &attach_bench_reader},
};

}  // namespace

Action attach_data(CommandLine& line) {
  return attach_commands(line, kDataCommands);
}

}  // namespace degu
