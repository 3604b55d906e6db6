#include "data/reader.h"

#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "config/yaml.h"
#include "data/manifest.h"
#include "data/prepare.h"
#include "io/hdf5.h"
#include "test_text.h"

using namespace degu;
namespace fs = std::filesystem;

namespace {

// Three domains of different size, prepared once: shards so small that windows span them.
class Prepared {
 public:
  Prepared() {
    set_log_level(LogLevel::kError);
    for (const auto& [name, documents] : {std::pair{"large", 300}, {"medium", 80}, {"small", 12}}) {
      std::string text;
      for (int i = 0; i < documents; ++i) {
        text += test::english_like(hash_name(name), i, 100 + static_cast<size_t>(i * 37 % 700)) +
                "\n\n";
      }
      fs::create_directories(files_ / "in");
      std::ofstream(files_ / ("in/" + std::string(name) + ".txt")) << text;
    }
    PrepareOptions options;
    options.out = files_ / "out";
    for (const char* name : {"large", "medium", "small"}) {
      options.inputs.push_back({name, files_ / ("in/" + std::string(name) + ".txt")});
    }
    options.vocab = 400;
    options.val_fraction = 0.15;
    options.rules.split = SplitRule::kParagraphs;
    options.shard_tokens = 3000;
    prepare_data(options);
    set_log_level(LogLevel::kInfo);
  }
  std::string folder() const { return files_ / "out"; }
  std::string operator/(const std::string& name) const { return files_ / name; }

 private:
  test::TemporaryFolder files_;
};

const Prepared& prepared() {
  static const Prepared instance;
  return instance;
}

DataConfig config_for(int64_t length) {
  DataConfig config;
  config.paths = {prepared().folder()};
  config.sequence_length = length;
  return config;
}

bool same(const SequenceBatch& a, const SequenceBatch& b) {
  return a.sequences == b.sequences && a.tokens_T == b.tokens_T && a.targets_T == b.targets_T &&
         a.positions_T == b.positions_T && a.document_offsets == b.document_offsets &&
         a.counted_targets == b.counted_targets;
}

// `part` after the sequences of `whole`.
void append(SequenceBatch& whole, const SequenceBatch& part) {
  if (whole.sequences == 0) {
    whole = part;
    return;
  }
  const int64_t at = whole.tokens();
  whole.document_offsets.pop_back();
  for (int64_t offset : part.document_offsets) whole.document_offsets.push_back(at + offset);
  whole.sequences += part.sequences;
  whole.tokens_T.insert(whole.tokens_T.end(), part.tokens_T.begin(), part.tokens_T.end());
  whole.targets_T.insert(whole.targets_T.end(), part.targets_T.begin(), part.targets_T.end());
  whole.positions_T.insert(whole.positions_T.end(), part.positions_T.begin(),
                           part.positions_T.end());
  whole.counted_targets += part.counted_targets;
}

struct Flat {
  std::vector<int32_t> tokens;
  std::set<int64_t> starts;
};

// A split read shard by shard, as the format's description says.
Flat flat(const std::string& domain, bool validation) {
  Flat out;
  for (const DomainEntry& entry : load_manifest(prepared().folder()).domains) {
    if (entry.name != domain) continue;
    for (const ShardEntry& shard : (validation ? entry.validation : entry.train).shards) {
      const h5::File file = h5::File::open(prepared().folder() + "/" + shard.file);
      for (int64_t offset : file.read<int64_t>("document_offsets")) {
        out.starts.insert(static_cast<int64_t>(out.tokens.size()) + offset);
      }
      for (uint16_t token : file.read<uint16_t>("tokens")) out.tokens.push_back(token);
    }
  }
  return out;
}

// Window `window` of the split by the definition, token by token.
SequenceBatch expected_window(const Flat& split, int64_t window, int64_t length, bool confine) {
  SequenceBatch out;
  out.sequences = 1;
  out.sequence_length = length;
  int32_t position = 0;
  for (int64_t i = 0; i < length; ++i) {
    const int64_t t = window * length + i;
    const bool starts = i == 0 || (confine && split.starts.count(t) > 0);
    if (starts) {
      out.document_offsets.push_back(i);
      position = 0;
    }
    out.tokens_T.push_back(split.tokens[static_cast<size_t>(t)]);
    out.positions_T.push_back(position++);
    const bool counted = !confine || split.starts.count(t + 1) == 0;
    out.targets_T.push_back(counted ? split.tokens[static_cast<size_t>(t) + 1] : -1);
    out.counted_targets += counted ? 1 : 0;
  }
  out.document_offsets.push_back(length);
  return out;
}

}  // namespace

TEST_CASE("a permutation visits everything once", "[reader]") {
  std::vector<uint64_t> sizes = {1000, 1024, 4097, 65537};
  for (uint64_t n = 1; n < 70; ++n) sizes.push_back(n);
  for (uint64_t n : sizes) {
    for (uint64_t epoch : {0, 1, 7}) {
      const Permutation permutation(n, 3, "test", epoch);
      std::vector<bool> seen(n, false);
      for (uint64_t i = 0; i < n; ++i) {
        const uint64_t to = permutation(i);
        REQUIRE(to < n);
        REQUIRE_FALSE(seen[to]);
        seen[to] = true;
      }
    }
  }
}

TEST_CASE("permutations look random and differ by epoch and seed", "[reader]") {
  const uint64_t n = 5000;
  for (const auto& [seed, epoch] : {std::pair<uint64_t, uint64_t>{1, 0}, {1, 1}, {2, 0}}) {
    const Permutation a(n, seed, "test", epoch);
    const Permutation b(n, 1, "test", 5);
    // Fixed points and neighbours that stay neighbours: each about 1 (Poisson), displacement about
    // n / 3.
    int fixed = 0, neighbours = 0, equal = 0;
    double displacement = 0;
    for (uint64_t i = 0; i < n; ++i) {
      const auto to = static_cast<double>(a(i));
      fixed += a(i) == i;
      equal += a(i) == b(i);
      neighbours += i > 0 && a(i) == a(i - 1) + 1;
      displacement += std::abs(to - static_cast<double>(i)) / static_cast<double>(n);
    }
    CHECK(fixed < 10);
    CHECK(equal < 10);
    CHECK(neighbours < 10);
    CHECK(displacement / static_cast<double>(n) == Approx(1.0 / 3).margin(0.03));
  }
}

TEST_CASE("mixtures keep their weights at every length", "[reader]") {
  const std::vector<std::vector<double>> cases = {
      {1}, {1, 1}, {3, 1}, {0.5, 0.3, 0.2}, {1, 0, 2}, {1e-9, 1}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}};
  for (const auto& weights : cases) {
    const DataMixture mixture(weights);
    const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
    std::vector<int64_t> count(weights.size(), 0);
    for (int64_t g = 0; g < 3 * DataMixture::kCycle / 2; ++g) {
      const auto [part, visit] = mixture(g);
      REQUIRE(visit == count[static_cast<size_t>(part)]);
      ++count[static_cast<size_t>(part)];
      if (g % 97 == 0) {
        for (size_t i = 0; i < weights.size(); ++i) {
          const double wanted = weights[i] / total * static_cast<double>(g + 1);
          REQUIRE(std::abs(static_cast<double>(count[i]) - wanted) < 4.0);
          REQUIRE(mixture.drawn(static_cast<int>(i), g + 1) == count[i]);
        }
      }
    }
    for (size_t i = 0; i < weights.size(); ++i) {
      if (weights[i] == 0) CHECK(count[i] == 0);
      if (weights[i] > 0) CHECK(count[i] > 0);
      CHECK(mixture.weight(static_cast<int>(i)) == Approx(weights[i] / total).margin(1e-4));
    }
  }
  CHECK_THROWS_AS(DataMixture(std::vector<double>{0, 0}), ConfigError);
  CHECK_THROWS_AS(DataMixture(std::vector<double>{}), ConfigError);
}

TEST_CASE("sequences are the windows of the text, by the definition", "[reader]") {
  const TokenDataset dataset({prepared().folder()});
  const std::map<std::string, Flat> text = {{"large", flat("large", false)},
                                            {"medium", flat("medium", false)},
                                            {"small", flat("small", false)}};
  for (bool confine : {true, false}) {
    for (int64_t length : {1, 16, 100, 1000}) {
      DataConfig config = config_for(length);
      config.confine_documents = confine;
      const BatchReader reader(dataset, config, 4);
      SequenceBatch batch;
      for (int64_t g = 0; g < 40; ++g) {
        const auto [part, window] = reader.window_of(g);
        reader.read_global(g, 1, batch);
        REQUIRE(same(batch, expected_window(text.at(reader.parts()[static_cast<size_t>(part)].name),
                                            window, length, confine)));
      }
    }
  }
}

TEST_CASE("every rank count reads the same batch", "[reader]") {
  const TokenDataset dataset({prepared().folder()});
  const int64_t batch_size = 12;
  const BatchReader reader(dataset, config_for(64), batch_size);
  for (int64_t step : {0, 1, 57}) {
    SequenceBatch whole;
    reader.read_sequences(step, 0, batch_size, whole);
    CHECK(whole.tokens() == batch_size * 64);
    CHECK(whole.document_offsets.front() == 0);
    CHECK(whole.document_offsets.back() == whole.tokens());
    for (int64_t ranks : {2, 3, 4, 6, 12}) {
      SequenceBatch joined;
      for (int64_t rank = 0; rank < ranks; ++rank) {
        SequenceBatch part;
        reader.read_sequences(step, rank * batch_size / ranks, batch_size / ranks, part);
        append(joined, part);
      }
      CHECK(same(joined, whole));
    }
  }
}

TEST_CASE("a reader that starts at a step continues the run", "[reader]") {
  const TokenDataset dataset({prepared().folder()});
  const BatchReader first(dataset, config_for(32), 8);
  SequenceBatch a, b;
  for (int64_t step = 0; step < 100; ++step) first.read_sequences(step, 0, 8, a);
  const TokenDataset reopened({prepared().folder()});
  const BatchReader second(reopened, config_for(32), 8);
  second.read_sequences(99, 0, 8, b);
  CHECK(same(a, b));
  // A batch of another size goes on in the same order.
  SequenceBatch c;
  second.read_global(99 * 8, 8, c);
  CHECK(same(a, c));
  DataConfig other = config_for(32);
  other.seed = 2;
  BatchReader(dataset, other, 8).read_sequences(99, 0, 8, c);
  CHECK_FALSE(same(a, c));
  CHECK(dataset.fingerprint() == reopened.fingerprint());
}

TEST_CASE("each window comes once per epoch, in a new order each time", "[reader]") {
  const TokenDataset dataset({prepared().folder()});
  DataConfig config = config_for(50);
  config.mixture = {{"small", 1}, {"medium", 2}};
  const BatchReader reader(dataset, config, 4);
  std::map<int, std::vector<int64_t>> order;
  for (int64_t g = 0; g < 3000; ++g) {
    const auto [part, window] = reader.window_of(g);
    order[part].push_back(window);
  }
  CHECK(order[0].size() == 1000);
  for (auto& [part, windows] : order) {
    const auto size = static_cast<size_t>(reader.parts()[static_cast<size_t>(part)].windows);
    REQUIRE(windows.size() > 2 * size);
    CHECK(reader.epochs(part, 750) ==
          Approx(static_cast<double>(windows.size()) / static_cast<double>(size)));
    std::vector<std::vector<int64_t>> epochs;
    for (size_t at = 0; at + size <= windows.size(); at += size) {
      epochs.emplace_back(windows.begin() + static_cast<int64_t>(at),
                          windows.begin() + static_cast<int64_t>(at + size));
      std::vector<int64_t> sorted = epochs.back();
      std::sort(sorted.begin(), sorted.end());
      for (size_t i = 0; i < size; ++i) REQUIRE(sorted[i] == static_cast<int64_t>(i));
    }
    CHECK(epochs[0] != epochs[1]);
  }
}

TEST_CASE("validation is fixed, and its bytes are exact", "[reader]") {
  const TokenDataset dataset({prepared().folder()});
  DataConfig config = config_for(20);
  config.validation_tokens = 0;
  const ValidationSet all(dataset, config);
  REQUIRE(all.domains().size() == 3);
  for (const ValidationSet::Domain& domain : all.domains()) {
    const Flat split = flat(domain.name, true);
    int64_t targets = 0, bytes = 0;
    SequenceBatch batch;
    for (int64_t i = 0; i < domain.sequences; ++i) {
      all.read(domain.first_sequence + i, 1, batch);
      REQUIRE(same(batch, expected_window(split, i, 20, true)));
      targets += batch.counted_targets;
      for (int32_t target : batch.targets_T) {
        if (target >= 0) bytes += dataset.tokenizer().token_bytes(target);
      }
    }
    CHECK(domain.sequences == static_cast<int64_t>(split.tokens.size() - 1) / 20);
    CHECK(domain.counted_targets == targets);
    CHECK(domain.counted_bytes == bytes);
    // All of the split's text is under the targets but for the dropped tail, and every document's
    // first token is BOS, which has no bytes.
    const int64_t text_bytes =
        dataset.domains()[static_cast<size_t>(dataset.find(domain.name))].validation.bytes();
    CHECK(domain.counted_bytes <= text_bytes);
    CHECK(domain.counted_bytes > text_bytes - 20 * 10);
    CHECK(all.domain_of(domain.first_sequence) == &domain - all.domains().data());
    CHECK(all.domain_of(domain.first_sequence + domain.sequences - 1) ==
          &domain - all.domains().data());
  }
  config.validation_tokens = 400;
  const ValidationSet some(dataset, config);
  CHECK(some.domains()[0].sequences == 20);
  config.seed = 77;
  const ValidationSet same_set(dataset, config);
  SequenceBatch a, b;
  some.read(0, some.sequences(), a);
  same_set.read(0, same_set.sequences(), b);
  CHECK(same(a, b));
  config.sequence_length = 100000;
  set_log_level(LogLevel::kError);
  CHECK_THROWS_AS(ValidationSet(dataset, config), DataError);
  set_log_level(LogLevel::kInfo);
}

TEST_CASE("impossible configurations say what is wrong", "[reader]") {
  const TokenDataset dataset({prepared().folder()});
  const auto refused = [&](auto&& change) {
    DataConfig config = config_for(32);
    change(config);
    CHECK_THROWS_AS(BatchReader(dataset, config, 4), Error);
  };
  refused([](DataConfig& c) { c.mixture = {{"absent", 1}}; });
  refused([](DataConfig& c) { c.mixture = {{"small", 0}}; });
  refused([](DataConfig& c) { c.mixture = {{"small", -1}, {"large", 2}}; });
  refused([](DataConfig& c) { c.mixture = {{"small", 1}, {"small", 1}}; });
  refused([](DataConfig& c) { c.sequence_length = 0; });
  refused([](DataConfig& c) { c.sequence_length = 1000000; });
  CHECK_THROWS_AS(BatchReader(dataset, config_for(32), 0), ConfigError);
  CHECK_THROWS_AS(TokenDataset({}), ConfigError);
  CHECK_THROWS_AS(TokenDataset({prepared().folder(), prepared().folder()}), ConfigError);
  CHECK_THROWS_AS(TokenDataset({"/no/such/folder"}), IoError);

  const DataConfig config = read_config<DataConfig>(YamlDocument::from_text(
      "paths: [a]\nsequence_length: 64\nmixture:\n  - {name: x, weight: 2}\n  - {name: y}\n",
      "test"));
  CHECK(config.mixture.size() == 2);
  CHECK(config.mixture[1].weight == 1.0);
}

TEST_CASE("a shard that is not what the manifest says is refused", "[reader]") {
  const test::TemporaryFolder folder;
  fs::copy(prepared().folder(), folder / "copy", fs::copy_options::recursive);
  const Manifest manifest = load_manifest(folder / "copy");
  const std::string shard = folder / ("copy/" + manifest.domains[0].train.shards[0].file);
  fs::remove(shard);
  CHECK_THROWS_AS(TokenDataset({folder / "copy"}), IoError);
  fs::copy(folder / ("copy/" + manifest.domains[1].train.shards[0].file), shard);
  CHECK_THROWS_AS(TokenDataset({folder / "copy"}), DataError);

  // A token outside the vocabulary is found when it is read.
  fs::remove(shard);
  fs::copy(prepared().folder() + "/" + manifest.domains[0].train.shards[0].file, shard);
  {
    h5::File file = h5::File::open(shard, h5::OpenMode::kReadWrite);
    const std::vector<uint16_t> wrong = {60000};
    file.dataset("tokens").write_rows<uint16_t>(7, wrong);
  }
  const TokenDataset dataset({folder / "copy"});
  std::vector<int32_t> tokens(20);
  CHECK_THROWS_WITH(dataset.domains()[0].train.read(0, tokens), Catch::Contains("60000"));
  dataset.domains()[0].train.read(8, tokens);
}

TEST_CASE("the golden folder of format version 1 is readable", "[reader]") {
  const std::string folder = DEGU_GOLDEN_FOLDER;
  check_prepared(folder);
  const TokenDataset dataset({folder});
  REQUIRE(dataset.domains().size() == 1);
  const TokenStream& train = dataset.domains()[0].train;
  std::vector<int32_t> tokens(static_cast<size_t>(train.tokens()));
  train.read(0, tokens);
  std::vector<std::string> texts;
  train.for_document_starts(0, train.tokens(), [&](int64_t start) {
    const auto end = std::find(tokens.begin() + start, tokens.end(), dataset.tokenizer().eos_id());
    texts.push_back(dataset.tokenizer().decode(std::vector<int32_t>(tokens.begin() + start, end)));
  });
  REQUIRE(static_cast<int64_t>(texts.size()) == train.documents());
  CHECK(texts.front() == "A degu is a small rodent that lives in colonies.");
  CHECK(train.bytes() == std::accumulate(texts.begin(), texts.end(), int64_t{0},
                                         [](int64_t sum, const std::string& text) {
                                           return sum + static_cast<int64_t>(text.size());
                                         }));
}
