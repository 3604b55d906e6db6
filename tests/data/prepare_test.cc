#include "data/prepare.h"

#include <sys/wait.h>
#include <unistd.h>
#include <catch2/catch.hpp>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "data/shard.h"
#include "data/tokenizer.h"
#include "io/atomic_file.h"
#include "test_text.h"

using namespace degu;
namespace fs = std::filesystem;

namespace {

void write(const std::string& path, const std::string& content) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << content;
}

// Two domains as plain text and compressed JSON lines; a third by a record's own domain.
void write_inputs(const test::TemporaryFolder& folder, int documents) {
  std::string prose;
  std::string records;
  for (int i = 0; i < documents; ++i) {
    prose += test::english_like(1, i, 500) + "\n\n";
    std::string text = test::english_like(2, i, 200 + static_cast<size_t>(i % 7) * 100);
    for (size_t at = text.find('\n'); at != std::string::npos; at = text.find('\n', at)) {
      text.replace(at, 1, "\\n");
    }
    records += "{\"text\": \"" + text + "\"" + (i % 10 == 0 ? ", \"domain\": \"odd\"" : "") + "}\n";
  }
  write(folder / "in/prose/a.txt", prose.substr(0, prose.size() / 2));
  write(folder / "in/prose/b.txt", prose.substr(prose.size() / 2));
  write(folder / "in/records/r.jsonl.gz", test::gzip(records));
}

PrepareOptions options_for(const test::TemporaryFolder& folder, const std::string& out) {
  PrepareOptions options;
  options.out = folder / out;
  options.inputs = domains_of_path(folder / "in");
  options.vocab = 400;
  options.val_fraction = 0.1;
  options.rules.document_bytes = 1000;
  options.shard_tokens = 5000;
  options.threads = 2;
  return options;
}

std::map<std::string, std::string> files_of(const std::string& folder) {
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) {
      out[fs::relative(entry.path(), folder).string()] = read_file(entry.path().string());
    }
  }
  return out;
}

struct Quiet {
  Quiet() { set_log_level(LogLevel::kError); }
  ~Quiet() { set_log_level(LogLevel::kInfo); }
};

}  // namespace

TEST_CASE("prepared shards hold the text, all of it, once", "[prepare]") {
  const Quiet quiet;
  const test::TemporaryFolder folder;
  write_inputs(folder, 200);
  const PrepareOptions options = options_for(folder, "out");
  const Manifest manifest = prepare_data(options);
  REQUIRE(manifest.domains.size() == 3);
  CHECK(manifest.domains[0].name == "odd");
  CHECK(manifest.domains[1].name == "prose");
  CHECK(manifest.domains[2].name == "records");
  CHECK(manifest.domains[1].train.shards.size() > 2);
  CHECK(manifest.sources.size() == 3);

  // What a plain reading of the inputs yields.
  std::map<std::string, std::multiset<std::string>> expected;
  for (const SourceSpec& source : expand_inputs(options.inputs)) {
    DocumentReader reader(source.path, options.rules, [](const BadInput&) { FAIL(); });
    Document document;
    while (reader.next(document)) {
      expected[document.domain.empty() ? source.domain : document.domain].insert(document.text);
    }
  }
  const Tokenizer tokenizer = Tokenizer::from_file(folder / "out/tokenizer.model");
  CHECK(tokenizer.vocab_size() == 400);
  for (const DomainEntry& domain : manifest.domains) {
    std::multiset<std::string> found;
    for (const SplitEntry* split : {&domain.train, &domain.validation}) {
      REQUIRE_FALSE(split->shards.empty());
      for (const ShardEntry& entry : split->shards) {
        const Shard shard(folder / ("out/" + entry.file));
        CHECK(shard.tokens() == entry.tokens);
        CHECK(shard.tokens() <= options.shard_tokens);
        CHECK(shard.bytes() == entry.bytes);
        const auto bytes = shard.document_bytes();
        const auto sources = shard.document_sources();
        const auto lines = shard.document_lines();
        for (size_t d = 0; d < bytes.size(); ++d) {
          std::vector<int32_t> ids(
              static_cast<size_t>(shard.offsets()[d + 1] - shard.offsets()[d]));
          shard.read(shard.offsets()[d], ids);
          REQUIRE(ids.front() == tokenizer.bos_id());
          REQUIRE(ids.back() == tokenizer.eos_id());
          const std::string text = tokenizer.decode(ids);
          REQUIRE(bytes[d] == static_cast<int64_t>(text.size()));
          int64_t counted = 0;
          for (int32_t id : ids) counted += tokenizer.token_bytes(id);
          REQUIRE(counted == bytes[d]);
          REQUIRE(lines[d] >= 1);
          REQUIRE(sources[d] < 3);
          found.insert(text);
        }
      }
    }
    CHECK((found == expected[domain.name]));
    const double share =
        static_cast<double>(domain.validation.documents()) /
        static_cast<double>(domain.train.documents() + domain.validation.documents());
    CHECK(share < 0.3);
  }
  check_prepared(options.out);
}

TEST_CASE("the same inputs and settings give the same bytes, on any threads", "[prepare]") {
  const Quiet quiet;
  const test::TemporaryFolder folder;
  write_inputs(folder, 100);
  PrepareOptions options = options_for(folder, "one");
  prepare_data(options);
  options.out = folder / "two";
  options.threads = 5;
  prepare_data(options);
  CHECK((files_of(folder / "one") == files_of(folder / "two")));
  // A finished folder is left as it is.
  const auto before = fs::last_write_time(folder / "two/manifest.json");
  prepare_data(options);
  CHECK(fs::last_write_time(folder / "two/manifest.json") == before);
}

// Finished ones; 0 without the folder.
size_t shards_in(const std::string& path) {
  size_t count = 0;
  std::error_code missing;
  for (const auto& entry : fs::directory_iterator(path, missing)) {
    count += entry.path().extension() == ".h5";
  }
  return count;
}

TEST_CASE("killed at any moment and taken up again, the bytes are the same", "[prepare]") {
  const Quiet quiet;
  const test::TemporaryFolder folder;
  write_inputs(folder, 600);
  PrepareOptions options = options_for(folder, "whole");
  options.shard_tokens = 3000;
  prepare_data(options);
  const auto whole = files_of(folder / "whole");
  options.out = folder / "killed";
  int kills = 0;
  size_t partial_states = 0;
  double patience = 4000;  // microseconds
  for (int attempt = 0;; ++attempt) {
    REQUIRE(attempt < 500);
    const pid_t child = ::fork();
    if (child == 0) {
      try {
        prepare_data(options);
        ::_exit(0);
      } catch (...) {
        ::_exit(1);
      }
    }
    // Until a moment has passed; every other time only until one more shard is there.
    const size_t before = shards_in(folder / "killed/shards");
    for (double waited = 0; waited < patience; waited += 200) {
      if (attempt % 2 == 1 && shards_in(folder / "killed/shards") > before) break;
      ::usleep(200);
    }
    patience *= 1.15;  // so that slow machines get there too
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    if (WIFEXITED(status)) {
      REQUIRE(WEXITSTATUS(status) == 0);
      break;
    }
    ++kills;
    if (fs::exists(folder / "killed/shards")) {
      const size_t there = files_of(folder / "killed/shards").size();
      if (there > 0 && there < whole.size() - 2) ++partial_states;
    }
  }
  CHECK(kills > 3);
  CHECK(partial_states > 0);
  auto killed = files_of(folder / "killed");
  killed.erase(".lock");  // of a killed attempt, if the last one found all done
  CHECK((killed == whole));
}

TEST_CASE("another preparation in the same folder is refused", "[prepare]") {
  const Quiet quiet;
  const test::TemporaryFolder folder;
  write_inputs(folder, 60);
  PrepareOptions options = options_for(folder, "out");
  prepare_data(options);
  options.val_fraction = 0.2;
  CHECK_THROWS_AS(prepare_data(options), ConfigError);
  options.restart = true;
  const Manifest again = prepare_data(options);
  options.out = folder / "fresh";
  prepare_data(options);
  CHECK((files_of(folder / "out") == files_of(folder / "fresh")));
  options.restart = false;
  write(folder / "in/prose/b.txt", "changed text");
  CHECK_THROWS_AS(prepare_data(options), ConfigError);
}

TEST_CASE("a given tokenizer is used as it is", "[prepare]") {
  const Quiet quiet;
  const test::TemporaryFolder folder;
  write_inputs(folder, 60);
  PrepareOptions options = options_for(folder, "out");
  prepare_data(options);
  options.out = folder / "second";
  options.tokenizer = folder / "out/tokenizer.model";
  options.bos = false;
  const Manifest second = prepare_data(options);
  CHECK(second.vocab == 400);
  CHECK(second.bos == -1);
  const Shard shard(folder / ("second/" + second.domains[1].train.shards[0].file));
  std::vector<int32_t> ids(1);
  shard.read(0, ids);
  CHECK(ids[0] > 2);
}

TEST_CASE("bad input is fatal or skipped, as chosen", "[prepare]") {
  const Quiet quiet;
  const test::TemporaryFolder folder;
  write_inputs(folder, 60);
  write(folder / "in/records/bad.jsonl", "{\"text\": \"a good one, long enough\"}\nnot json\n{}\n");
  write(folder / "in/prose/binary.txt", std::string("\0\1\2", 3));
  write(folder / "in/prose/.hidden", "not read");
  PrepareOptions options = options_for(folder, "out");
  CHECK_THROWS_AS(prepare_data(options), DataError);
  CHECK_THROWS_WITH(prepare_data(options),
                    Catch::Contains("binary.txt:1") || Catch::Contains("bad.jsonl:2"));
  options.on_bad = OnBad::kSkip;
  options.restart = true;
  const Manifest manifest = prepare_data(options);
  CHECK(manifest.bad_first.size() == 3);
  int64_t bad = 0;
  for (const auto& [reason, count] : manifest.bad_reasons) bad += count;
  CHECK(bad == 3);
  CHECK(load_manifest(options.out).bad_first[0].line == 1);
}

TEST_CASE("settings out of range", "[prepare]") {
  const Quiet quiet;
  const test::TemporaryFolder folder;
  write(folder / "in/a.txt", "text");
  const auto refused = [&](auto&& change) {
    PrepareOptions options = options_for(folder, "out");
    change(options);
    CHECK_THROWS_AS(prepare_data(options), Error);
  };
  refused([](PrepareOptions& o) { o.vocab = 100; });
  refused([](PrepareOptions& o) { o.val_fraction = 1.0; });
  refused([](PrepareOptions& o) { o.inputs.clear(); });
  refused([](PrepareOptions& o) { o.inputs[0].domain = "a/b"; });
  refused([](PrepareOptions& o) { o.inputs[0].path += "/absent"; });
  refused([](PrepareOptions& o) { o.tokenizer = "/absent.model"; });
  refused([](PrepareOptions& o) { o.rules.document_bytes = 1; });
  refused([](PrepareOptions&) {});  // too little text for the vocabulary
}

TEST_CASE("altered, missing and unfinished files are noticed", "[prepare]") {
  const Quiet quiet;
  const test::TemporaryFolder folder;
  write_inputs(folder, 60);
  const PrepareOptions options = options_for(folder, "out");
  const Manifest manifest = prepare_data(options);
  const std::string shard = folder / ("out/" + manifest.domains[0].train.shards[0].file);
  const std::string bytes = read_file(shard);
  std::string altered = bytes;
  altered[altered.size() - 5] ^= 1;
  write(shard, altered);
  CHECK_THROWS_WITH(check_prepared(options.out), Catch::Contains(shard));
  write(shard, bytes);
  check_prepared(options.out);
  write(folder / "out/manifest.json", "{\"format\": \"degu-dataset\"}");
  CHECK_THROWS_AS(load_manifest(options.out), DataError);
  write(folder / "out/manifest.json", "{");
  CHECK_THROWS_AS(load_manifest(options.out), DataError);
  fs::remove(folder / "out/manifest.json");
  CHECK_THROWS_AS(load_manifest(options.out), IoError);
}
