#include "io/checkpoint.h"

#include <catch2/catch.hpp>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/random.h"
#include "comm/mesh.h"
#include "comm/thread_comm.h"
#include "io/atomic_file.h"
#include "io/checkpoint_manifest.h"
#include "io/checkpoint_stream.h"
#include "io/crc32.h"
#include "tensor/tensor.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_folder.h"

namespace degu {
namespace {

namespace fs = std::filesystem;
using test::message;
using test::TemporaryFolder;

// Element i of tensor `name`, exact in every type.
float value(const std::string& name, int64_t i) {
  return static_cast<float>((hash_name(name) + static_cast<uint64_t>(i) * 7) % 200) - 100.0f;
}

void set_element(AnyView view, int64_t i, float x) {
  switch (view.dtype) {
    case DType::kF32:
      view.as<float>()[i] = x;
      return;
    case DType::kBF16:
      view.as<bf16>()[i] = bf16(x);
      return;
    case DType::kF64:
      view.as<double>()[i] = x;
      return;
    default:
      REQUIRE(view.dtype == DType::kI64);
      view.as<int64_t>()[i] = static_cast<int64_t>(x);
  }
}

// The elements of tensor `name` that `region` takes.
Tensor part_of(const std::string& name, DType type, const Region& region) {
  Tensor whole(type, region.whole);
  for (int64_t i = 0; i < region.whole.elements(); ++i) set_element(whole, i, value(name, i));
  Tensor part(type, region.extent);
  copy_common(Region::all(region.whole), static_cast<std::byte*>(whole.view().data), region,
              static_cast<std::byte*>(part.view().data), size_of(type));
  return part;
}

bool equal(AnyView a, AnyView b) {
  return a.dtype == b.dtype && a.elements() == b.elements() &&
         (a.bytes() == 0 || std::memcmp(a.data, b.data, a.bytes()) == 0);
}

Range rows_of(Communicator& comm, int64_t rows) {
  return {rows * comm.rank() / comm.size(), rows * (comm.rank() + 1) / comm.size()};
}

// A checkpoint as a training run writes it: experts split by rank, dense weights and odds and ends
// by rank 0, optimizer state in flat shards.
void write_sample(Communicator& comm, const std::string& folder, int64_t step = 7) {
  CheckpointWriter writer(comm, folder, {{"step", step}, {"seed", 11}});
  const Shape experts{12, 5, 3};
  const Range mine = rows_of(comm, 12);
  const Shape offset{mine.begin, 0, 0};
  const Region box = Region::box(experts, offset, {mine.size(), 5, 3});
  writer.add("model/layers.0.experts.w", experts, offset, part_of("w", DType::kBF16, box));
  // Columns: every part falls into pieces.
  const Range columns = rows_of(comm, 6);
  const Region stripe = Region::box({4, 6}, {0, columns.begin}, {4, columns.size()});
  writer.add("model/head", {4, 6}, {0, columns.begin}, part_of("head", DType::kF32, stripe));
  const Range shard = Layout::shard(180, comm.size(), comm.rank());
  writer.add_range("optimizer/m/layers.0.experts.w", experts, shard.begin,
                   part_of("m", DType::kF32, Region::range(experts, shard.begin, shard.size())));
  if (comm.rank() == comm.size() - 1) {
    writer.add("train/counts", part_of("counts", DType::kI64, Region::all({9})));
    writer.add("train/empty", Tensor(DType::kF64, {0, 4}));
    writer.attach("config.yaml", "model: {layers: 1}\n");
  }
  if (comm.rank() == 0) {
    writer.attach("data/tokenizer.model", std::string("\0binary\n\xff", 9));
    // Two parts of one tensor by one rank.
    writer.add("model/norm", {2, 8}, {1, 0},
               part_of("norm", DType::kF64, Region::box({2, 8}, {1, 0}, {1, 8})));
    writer.add("model/norm", {2, 8}, {0, 0},
               part_of("norm", DType::kF64, Region::box({2, 8}, {0, 0}, {1, 8})));
  }
  writer.commit();
}

struct Expected {
  const char* name;
  const char* key;
  DType dtype;
  Shape shape;
};
const Expected kSample[] = {
    {"model/head", "head", DType::kF32, {4, 6}},
    {"model/layers.0.experts.w", "w", DType::kBF16, {12, 5, 3}},
    {"model/norm", "norm", DType::kF64, {2, 8}},
    {"optimizer/m/layers.0.experts.w", "m", DType::kF32, {12, 5, 3}},
    {"train/counts", "counts", DType::kI64, {9}},
    {"train/empty", "empty", DType::kF64, {0, 4}},
};

void check_sample(const std::string& folder, int64_t step = 7) {
  CheckpointReader reader(folder);
  CHECK(reader.metadata().at("step") == step);
  CHECK(reader.attachment("config.yaml") == "model: {layers: 1}\n");
  CHECK(reader.attachment("data/tokenizer.model") == std::string("\0binary\n\xff", 9));
  CHECK(reader.list().size() == std::size(kSample));
  for (const Expected& expected : kSample) {
    INFO(expected.name);
    const CheckpointReader::TensorInfo info = reader.info(expected.name);
    CHECK(info.dtype == expected.dtype);
    CHECK(info.shape == expected.shape);
    Tensor got(info.dtype, info.shape);
    reader.read(expected.name, got);
    CHECK(equal(got, part_of(expected.key, info.dtype, Region::all(info.shape))));
  }
  reader.verify();
}

bool has(const std::string& text, const std::string& part) {
  INFO("'" << text << "' should contain '" << part << "'");
  CHECK(text.find(part) != std::string::npos);
  return text.find(part) != std::string::npos;
}

void overwrite(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
}

TEST_CASE("a checkpoint of any number of ranks is read whole") {
  const TemporaryFolder temporary;
  for (int ranks : {1, 2, 3, 4}) {
    const std::string folder = temporary.path() + "/" + checkpoint_name(ranks);
    run_as_threads(ranks, [&](Communicator& comm) { write_sample(comm, folder); });
    INFO(ranks << " ranks");
    check_sample(folder);
    CHECK_FALSE(fs::exists(folder + ".partial"));
  }
}

TEST_CASE("any slice is read from any layout") {
  const TemporaryFolder temporary;
  const std::string folder = temporary.path() + "/c";
  run_as_threads(3, [&](Communicator& comm) { write_sample(comm, folder); });
  CheckpointReader reader(folder);
  for (int ranks : {1, 2, 4, 6}) {
    for (int rank = 0; rank < ranks; ++rank) {
      const int64_t begin = 12 * rank / ranks;
      const int64_t count = 12 / ranks;
      for (const char* name : {"model/layers.0.experts.w", "optimizer/m/layers.0.experts.w"}) {
        const std::string key = name[0] == 'm' ? "w" : "m";
        const DType type = reader.info(name).dtype;
        Tensor rows(type, {count, 5, 3});
        reader.read(name, {begin, 0, 0}, rows);
        CHECK(
            equal(rows, part_of(key, type, Region::box({12, 5, 3}, {begin, 0, 0}, {count, 5, 3}))));
        Tensor middle(type, {count, 2, 2});
        reader.read(name, {begin, 2, 1}, middle);
        CHECK(equal(middle,
                    part_of(key, type, Region::box({12, 5, 3}, {begin, 2, 1}, {count, 2, 2}))));
        const Range shard = Layout::shard(180, ranks, rank);
        Tensor line(type, {shard.size()});
        reader.read_range(name, shard.begin, line);
        CHECK(
            equal(line, part_of(key, type, Region::range({12, 5, 3}, shard.begin, shard.size()))));
      }
    }
  }
}

TEST_CASE("tensors are streamed in pieces") {
  const TemporaryFolder temporary;
  for (int ranks : {1, 3}) {
    const std::string folder = temporary.path() + "/" + checkpoint_name(ranks);
    run_as_threads(ranks, [&](Communicator& comm) { write_sample(comm, folder); });
    CheckpointReader reader(folder);
    CheckpointStream stream(reader);
    for (const Expected& expected : kSample) {
      const int64_t size = expected.shape.elements();
      for (int64_t step : {int64_t{7}, int64_t{50}, size + 1}) {
        INFO(expected.name << " of " << ranks << " ranks, by " << step);
        const Tensor got(expected.dtype, {size});
        for (int64_t at = 0; at < size; at += step) {
          stream.read(expected.name, at, got.view().rows(at, std::min(step, size - at)));
        }
        CHECK(equal(got, part_of(expected.key, expected.dtype, Region::all(expected.shape))));
      }
    }
    // Pieces left out, and once back.
    const Region some = Region::range({12, 5, 3}, 31, 20);
    for (int64_t begin : {0, 100, 31}) {
      const Tensor piece(DType::kF32, {20});
      stream.read("optimizer/m/layers.0.experts.w", begin, piece);
      if (begin == some.offset[0]) CHECK(equal(piece, part_of("m", DType::kF32, some)));
    }
    stream.finish();
    has(message([&] { stream.read("train/counts", 8, Tensor(DType::kI64, {2})); }), "[8, 10)");
    has(message([&] { stream.read("train/counts", 0, Tensor(DType::kF32, {2})); }), "fp32");
  }
}

TEST_CASE("a stream finds altered bytes, also those that nobody asked for") {
  const TemporaryFolder temporary;
  const std::string folder = temporary.path() + "/c";
  run_as_threads(1, [&](Communicator& comm) { write_sample(comm, folder); });
  const std::string name = "optimizer/m/layers.0.experts.w";
  const CheckpointManifest manifest = CheckpointReader(folder).manifest();
  const int64_t offset = manifest.tensors.at(name).parts.at(0).file_offset;
  REQUIRE(offset > 0);
  std::string bytes = read_file(folder + "/rank-00000.h5");
  bytes.at(static_cast<size_t>(offset) + 100 * sizeof(float)) ^= 1;
  overwrite(folder + "/rank-00000.h5", bytes);
  CheckpointReader reader(folder);
  for (int64_t begin : {0, 100, 130}) {
    CheckpointStream stream(reader);
    const std::string what = message([&] {
      stream.read(name, begin, Tensor(DType::kF32, {50}));
      stream.finish();
    });
    has(what, "rank-00000.h5: '" + name + "' is altered: checksum");
  }
}

TEST_CASE("asking for what is not there says so") {
  const TemporaryFolder temporary;
  const std::string folder = temporary.path() + "/c";
  run_as_threads(1, [&](Communicator& comm) { write_sample(comm, folder); });
  CheckpointReader reader(folder);
  Tensor x(DType::kF32, {4, 6});
  Tensor wide(DType::kF32, {4, 7});
  has(message([&] { reader.read("model/tail", x); }), "holds no tensor 'model/tail'");
  has(message([&] { reader.read_range("model/norm", 0, x); }), "is fp64, not fp32");
  has(message([&] { reader.read("model/head", wide); }), "has shape [4, 6], not [4, 7]");
  has(message([&] { reader.read("model/head", {1, 0}, x); }), "has no [4, 6] at [1, 0] of [4, 6]");
  has(message([&] { reader.attachment("notes"); }), "holds no attachment 'notes'");
  has(message([&] { CheckpointReader(temporary.path() + "/none"); }), "no such checkpoint folder");
  has(message([&] { CheckpointReader(temporary.path() + "/."); }), "not a checkpoint");
}

TEST_CASE("parts must cover a tensor once; all ranks learn of it and nothing remains") {
  const TemporaryFolder temporary;
  const std::string folder = temporary.path() + "/c";
  struct Case {
    int64_t second_begin;
    const char* reason;
  };
  for (const Case& c :
       {Case{5, "element 4 is stored nowhere"}, Case{3, "element 3 is stored twice"}}) {
    std::atomic<int> told{0};
    run_as_threads(2, [&](Communicator& comm) {
      CheckpointWriter writer(comm, folder, {});
      const int64_t begin = comm.rank() == 0 ? 0 : c.second_begin;
      const int64_t end = comm.rank() == 0 ? 4 : 8;
      writer.add_range("t", {8}, begin, Tensor(DType::kF32, {end - begin}));
      const std::string what = message([&] { writer.commit(); });
      told += what.find(c.reason) != std::string::npos;
    });
    CHECK(told == 2);
    CHECK(fs::is_empty(temporary.path()));
  }
  run_as_threads(2, [&](Communicator& comm) {
    CheckpointWriter writer(comm, folder, {});
    writer.add_range("t", {8 + comm.rank()}, 4 * comm.rank(), Tensor(DType::kF32, {4}));
    const std::string what = message([&] { writer.commit(); });
    if (what.find("on a rank before it") == std::string::npos) throw std::runtime_error(what);
  });
  const auto self = make_self_communicator();
  CheckpointWriter writer(*self, folder, {});
  CHECK_THROWS_AS(writer.add("../escape", Tensor(DType::kF32, {4})), ShapeError);
  CHECK_THROWS_AS(writer.add("t", {4}, {1}, Tensor(DType::kF32, {4})), ShapeError);
}

TEST_CASE("a rank whose file cannot be written fails the checkpoint on all ranks") {
  const TemporaryFolder temporary;
  const std::string good = temporary.path() + "/" + checkpoint_name(1);
  const std::string bad = temporary.path() + "/" + checkpoint_name(2);
  run_as_threads(3, [&](Communicator& comm) { write_sample(comm, good, 1); });
  std::atomic<int> told{0};
  run_as_threads(3, [&](Communicator& comm) {
    CheckpointWriter writer(comm, bad, {});
    // Something stands where rank 1 wants to write.
    if (comm.rank() == 1) fs::create_directory(bad + ".partial/rank-00001.h5");
    writer.add_range("t", {12}, 4 * comm.rank(), Tensor(DType::kF32, {4}));
    try {
      writer.commit();
    } catch (const IoError& error) {
      const std::string what = error.what();
      told += what.starts_with("rank 1: ") && what.find("rank-00001.h5") != std::string::npos;
    }
  });
  CHECK(told == 3);
  CHECK_FALSE(fs::exists(bad));
  CHECK_FALSE(fs::exists(bad + ".partial"));
  CHECK(find_latest(temporary.path()) == good);
  check_sample(good, 1);
}

TEST_CASE("a checkpoint replaces one of its name") {
  const TemporaryFolder temporary;
  const std::string folder = temporary.path() + "/" + checkpoint_name(5);
  run_as_threads(4, [&](Communicator& comm) { write_sample(comm, folder, 1); });
  run_as_threads(2, [&](Communicator& comm) { write_sample(comm, folder, 2); });
  check_sample(folder, 2);
  CHECK_FALSE(fs::exists(folder + "/rank-00003.h5"));
  CHECK(std::distance(fs::directory_iterator(temporary.path()), {}) == 1);
}

TEST_CASE("the latest whole checkpoint is found; old ones and leftovers are pruned") {
  const TemporaryFolder temporary;
  CHECK(find_latest(temporary.path() + "/none").empty());
  CHECK(find_latest(temporary.path()).empty());
  const auto self = make_self_communicator();
  for (int64_t step : {5, 40, 300, 2000}) {
    write_sample(*self, temporary.path() + "/" + checkpoint_name(step), step);
  }
  const std::string last = temporary.path() + "/" + checkpoint_name(2000);
  CHECK(find_latest(temporary.path()) == last);
  CHECK(find_latest(last) == last);
  fs::create_directory(temporary.path() + "/" + checkpoint_name(9000) + ".partial");
  fs::create_directory(temporary.path() + "/" + checkpoint_name(9001));  // no manifest
  fs::create_directory(temporary.path() + "/notes");
  CHECK(find_latest(temporary.path()) == last);
  fs::resize_file(last + "/rank-00000.h5", 100);
  CHECK(find_latest(temporary.path()) == temporary.path() + "/" + checkpoint_name(300));
  prune_checkpoints(temporary.path(), 2);
  std::vector<int64_t> steps;
  for (const CheckpointPlace& place : list_checkpoints(temporary.path()))
    steps.push_back(place.step);
  CHECK(steps == std::vector<int64_t>{40, 300});
  CHECK_FALSE(fs::exists(temporary.path() + "/" + checkpoint_name(9000) + ".partial"));
  CHECK(fs::exists(temporary.path() + "/notes"));
}

TEST_CASE("truncated, altered and missing files are named") {
  const TemporaryFolder temporary;
  const std::string folder = temporary.path() + "/c";
  auto fresh = [&] { run_as_threads(2, [&](Communicator& comm) { write_sample(comm, folder); }); };
  const std::string data = folder + "/rank-00001.h5";

  fresh();
  fs::resize_file(data, fs::file_size(data) - 1);
  has(message([&] { CheckpointReader reader(folder); }), "rank-00001.h5: ");
  fresh();
  fs::remove(data);
  has(message([&] { CheckpointReader reader(folder); }), "rank-00001.h5: missing");
  fresh();
  fs::remove(folder + "/attachments/config.yaml");
  has(message([&] { CheckpointReader reader(folder); }), "config.yaml: missing");
  fresh();
  overwrite(folder + "/attachments/config.yaml", "model: {layers: 2}\n");
  has(message([&] { CheckpointReader(folder).verify(); }), "config.yaml: altered");
  fresh();
  const std::string manifest = read_file(folder + "/manifest.json");
  overwrite(folder + "/manifest.json", manifest.substr(0, manifest.size() / 2));
  has(message([&] { CheckpointReader reader(folder); }), "manifest.json: truncated or altered");
  fresh();
  // Each stored number in turn: its bytes are found by their pattern.
  std::string bytes = read_file(data);
  const Tensor shard = part_of("m", DType::kF32, Region::range({12, 5, 3}, 96, 84));
  const std::string pattern(static_cast<const char*>(shard.view().data), shard.bytes());
  const size_t at = bytes.find(pattern);
  REQUIRE(at != std::string::npos);
  bytes[at + 17] = static_cast<char>(bytes[at + 17] ^ 4);
  overwrite(data, bytes);
  const std::string what = message([&] { CheckpointReader(folder).verify(); });
  has(what, "rank-00001.h5");
  has(what, "'optimizer/m/layers.0.experts.w' is altered: checksum");
}

CheckpointManifest sample_manifest() {
  CheckpointManifest manifest;
  manifest.metadata = {{"step", 3}, {"note", "naïve \"quotes\"\n"}};
  manifest.files = {{"rank-00000.h5", 1234}, {"rank-00001.h5", 99}};
  CheckpointManifest::TensorEntry tensor{DType::kBF16, {4, 6}, {}};
  tensor.parts.push_back({0, "a/b", Region::box({4, 6}, {0, 0}, {4, 2}), 0xdeadbeef});
  tensor.parts.push_back({1, "a/b", Region::box({4, 6}, {0, 2}, {4, 4}), 1});
  manifest.tensors["a/b"] = tensor;
  manifest.tensors["flat"] = {DType::kF32, {10}, {{1, "flat", Region::range({10}, 0, 10), 7, 59}}};
  manifest.tensors["scalar"] = {DType::kI64, {}, {{1, "scalar", Region::all({}), 7}}};
  manifest.attachments = {{"tokenizer.model", 17, 5}};
  return manifest;
}

TEST_CASE("a manifest is read as it was written") {
  const CheckpointManifest manifest = sample_manifest();
  const CheckpointManifest read = CheckpointManifest::parse(manifest.text(), "here");
  CHECK(read.metadata == manifest.metadata);
  CHECK(read.files == manifest.files);
  CHECK(read.tensors == manifest.tensors);
  CHECK(read.attachments == manifest.attachments);
}

// With the checksum put right again, so that the parser behind it is reached.
std::string with_checksum(std::string text) {
  constexpr size_t kTail = 25;  // ",\n \"crc32\": \"xxxxxxxx\"\n}\n"
  if (text.size() <= kTail) return text;
  const std::string sum =
      fmt::format("{:08x}", crc32(std::string_view(text).substr(0, text.size() - kTail)));
  return text.replace(text.size() - 12, 8, sum);
}

TEST_CASE("no damaged manifest does worse than a DataError") {
  const std::string text = sample_manifest().text();
  REQUIRE(with_checksum(text) == text);
  const std::vector<std::string> pieces = {
      "-1",  "1e99", "18446744073709551615", "null", "[",  "{",    "}",
      "\"",  "[[",   "99999999999999999999", "0",    "\\", "\xff", "4",
      "]]]", ",",    "9223372036854775807",  "true"};
  int refused = 0;
  for (uint64_t round = 0; round < 20000; ++round) {
    const RandomStream draw(3, "manifest", round);
    std::string damaged = text;
    const uint64_t edits = 1 + draw.below(0, 3);
    for (uint64_t e = 0; e < edits; ++e) {
      const size_t at = draw.below(10 * e + 1, damaged.size());
      switch (draw.below(10 * e + 2, 4)) {
        case 0:
          damaged[at] = static_cast<char>(draw.below(10 * e + 3, 256));
          break;
        case 1:
          damaged.erase(at, draw.below(10 * e + 4, 20));
          break;
        case 2:
          damaged.insert(at, pieces[draw.below(10 * e + 5, pieces.size())]);
          break;
        default: {  // a number becomes another
          const size_t digit = damaged.find_first_of("0123456789", at);
          if (digit != std::string::npos)
            damaged.replace(digit, 1, pieces[draw.below(10 * e + 6, pieces.size())]);
        }
      }
    }
    for (const std::string& tried : {damaged, with_checksum(damaged)}) {
      try {
        CheckpointManifest::parse(tried, "fuzz");
      } catch (const DataError&) {
        ++refused;
      }
    }
  }
  CHECK(refused > 30000);
  // Deep nesting must not exhaust the stack.
  std::string deep = text;
  deep.insert(deep.find("\"metadata\": ") + 12, std::string(200'000, '['));
  CHECK_THROWS_AS(CheckpointManifest::parse(with_checksum(deep), "deep"), DataError);
}

TEST_CASE("a manifest of another version is refused with the remedy") {
  std::string text = sample_manifest().text();
  text.replace(text.find("\"version\": 1"), 12, "\"version\": 2");
  has(message([&] { CheckpointManifest::parse(with_checksum(text), "here"); }),
      "format version 2, this program reads version 1");
}

TEST_CASE("the golden checkpoint of version 1 is read") {
  check_sample(DEGU_GOLDEN "/checkpoint_v1");
}

// Writes it again; only when the format changes: io_checkpoint_test "[golden]".
TEST_CASE("write the golden checkpoint", "[.][golden]") {
  run_as_threads(2, [](Communicator& comm) { write_sample(comm, DEGU_GOLDEN "/checkpoint_v1"); });
}

}  // namespace
}  // namespace degu
