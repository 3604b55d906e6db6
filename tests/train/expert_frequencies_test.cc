// How often experts are taken, from every file that knows it.
#include "train/expert_frequencies.h"

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/temporary_folder.h"

namespace degu {
namespace {

using Catch::Matchers::Contains;
using degu::test::TemporaryFolder;
using Json = nlohmann::json;

// Three layers, the first dense.
ModelShape shape() {
  const ModelShape s{.vocab = 50,
                     .width = 16,
                     .layers = 3,
                     .heads = 1,
                     .moe = {.experts = 4, .top_k = 2, .expert_width = 8, .first_dense_layers = 1}};
  return s.resolved();
}

void write(const std::string& path, const std::string& text) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path) << text;
}

std::string step_line(int64_t step, const std::vector<int64_t>& first,
                      const std::vector<int64_t>& second) {
  const Json line = {
      {"step", step}, {"loss", 3.5}, {"layers", {{{"load", first}}, {{"load", second}}}}};
  return line.dump() + "\n";
}

void write_checkpoint(const std::string& folder, const Json& metadata) {
  const std::unique_ptr<Communicator> self = make_self_communicator();
  CheckpointWriter writer(*self, folder, metadata);
  float one = 1;
  writer.add("model/x", View<float>(&one, {1}));
  writer.commit();
}

TEST_CASE("routes are counted by layer and expert") {
  const TemporaryFolder folder;
  const std::string path = folder / "routes.jsonl";
  write(path, R"({"experts":[[0,3],[1,2]],"position":0,"prompt":0,"token":5})"
              "\n"
              R"({"experts":[[0,1],[2,1]],"position":1,"prompt":0,"token":6})"
              "\n"
              R"({"experts":[],"position":2,"prompt":0,"token":6})"
              "\n");
  const ExpertFrequencies got = read_frequencies(path, shape());
  CHECK(got.rows_LE == ExpertRows{{}, {2, 1, 0, 1}, {0, 2, 2, 0}});
  CHECK_THAT(got.source, Contains("2 tokens"));
  write(path, R"({"experts":[],"position":2,"prompt":0,"token":6})");
  CHECK_THROWS_WITH(read_frequencies(path, shape()), Contains("no token"));
  write(path, R"({"experts":[[0,4],[2,1]],"position":1,"prompt":0,"token":6})");
  CHECK_THROWS_WITH(read_frequencies(path, shape()), Contains(path + ":1: expert 4 of 4"));
}

TEST_CASE("of a run's metrics the newest tenth counts") {
  const TemporaryFolder folder;
  std::string text;
  for (int64_t step = 0; step < 25; ++step) {
    text += step_line(step, {step, 0, 0, 1}, {1, 1, 1, 1});
    text += R"({"step":)" + std::to_string(step) + R"(,"validation":{"loss":3}})" + "\n";
  }
  write(folder / "run/metrics.jsonl", text);
  for (const char* name : {"run", "run/metrics.jsonl"}) {
    const ExpertFrequencies got = read_frequencies(folder / name, shape());
    CHECK(got.rows_LE == ExpertRows{{}, {22 + 23 + 24, 0, 0, 3}, {3, 3, 3, 3}});
    CHECK_THAT(got.source, Contains("steps 22 to 24"));
  }
  write(folder / "torn/metrics.jsonl", step_line(0, {1, 2, 3, 4}, {5, 6, 7, 8}) + R"({"layers":[)");
  CHECK(read_frequencies(folder / "torn", shape()).rows_LE ==
        ExpertRows{{}, {1, 2, 3, 4}, {5, 6, 7, 8}});
  // A checkpoint of the run counts what came before it.
  const std::string checkpoint = folder / "run/checkpoints/step-00000012";
  write_checkpoint(checkpoint, {{"next_step", 12}});
  for (const std::string& name : {checkpoint, checkpoint + "/"}) {
    const auto own = checkpoint_frequencies(CheckpointReader(name), shape());
    REQUIRE(own.has_value());
    CHECK(own->rows_LE == ExpertRows{{}, {10 + 11, 0, 0, 2}, {2, 2, 2, 2}});
    CHECK(read_frequencies(name, shape()).rows_LE == own->rows_LE);
  }
}

TEST_CASE("a server's counts are read as it gave them") {
  const TemporaryFolder folder;
  const std::string path = folder / "metrics.txt";
  std::string text =
      "# HELP degu:expert_rows_total Tokens\n# TYPE degu:expert_rows_total counter\n";
  for (int l = 0; l < 2; ++l) {
    for (int e = 0; e < 4; ++e) {
      text += fmt::format("degu:expert_rows_total{{expert=\"{}\",layer=\"{}\"}} {}\n", e, l,
                          e == 3 ? "1.5e+06" : std::to_string(10 * l + e));
    }
  }
  write(path, text + "degu:other_total 7\n");
  const ExpertFrequencies got = read_frequencies(path, shape());
  CHECK(got.rows_LE == ExpertRows{{}, {0, 1, 2, 1500000}, {10, 11, 12, 1500000}});
  write(path, text + "degu:expert_rows_total{expert=\"4\",layer=\"0\"} 1\n");
  CHECK_THROWS_WITH(read_frequencies(path, shape()), Contains(path + ":11: not a count"));
  write(path, "# HELP degu:other_total Other\ndegu:other_total 7\n");
  CHECK_THROWS_WITH(read_frequencies(path, shape()), Contains("0 lines of"));
}

TEST_CASE("a calibrated checkpoint knows its own") {
  const TemporaryFolder folder;
  Json calibration = {{"tokens", 640}, {"experts", Json::array()}};
  calibration["experts"].push_back({{"layer", 1}, {"minimum", 3}, {"tokens", {5, 6, 7, 8}}});
  calibration["experts"].push_back({{"layer", 2}, {"minimum", 3}, {"tokens", {1, 0, 0, 2}}});
  const auto with = [&](const std::string& name) {
    write_checkpoint(folder / name, {{"quantization", {{"calibration", calibration}}}});
    return CheckpointReader(folder / name);
  };
  const auto own = checkpoint_frequencies(with("good"), shape());
  REQUIRE(own.has_value());
  CHECK(own->rows_LE == ExpertRows{{}, {5, 6, 7, 8}, {1, 0, 0, 2}});
  CHECK_THAT(own->source, Contains("calibration (640 tokens)"));
  calibration["experts"][1]["layer"] = 0;
  CHECK_THROWS_WITH(checkpoint_frequencies(with("dense"), shape()), Contains("layer 0"));
  calibration["experts"].erase(1);
  CHECK_THROWS_WITH(checkpoint_frequencies(with("few"), shape()), Contains("1 MoE layers"));
}

TEST_CASE("what knows nothing says so") {
  const TemporaryFolder folder;
  write_checkpoint(folder / "plain", {{"next_step", 12}});
  CHECK_FALSE(checkpoint_frequencies(CheckpointReader(folder / "plain"), shape()).has_value());
  ModelShape dense = shape();
  dense.moe = {};
  CHECK_FALSE(checkpoint_frequencies(CheckpointReader(folder / "plain"), dense).has_value());
  struct Case {
    const char* name;
    std::string text;
    const char* message;
  };
  const Case cases[] = {
      {"a", "", ":1: neither routes"},
      {"b", "hello\n", ":1: neither routes"},
      {"c", R"({"step":1,"validation":{}})", "no step in it counts rows"},
      {"d", step_line(0, {1, 2, 3}, {1, 2, 3, 4}), ":1: counts of 3 experts, the model has 4"},
      {"e", step_line(0, {1, 2, 3, -4}, {1, 2, 3, 4}), ":1: expert 3 took -4 rows"},
      {"f", R"({"step":1,"layers":[{"load":[1,2,3,4]}]})", ":1: 1 MoE layers, the model has 2"},
      {"g", R"({"step":1,"layers":[{"load":[1,2,3,4]},{}]})", ":1: layers[].load"},
      {"h", step_line(0, {1, 2, 3, 4}, {1, 2, 3, 4}) + "{\"layers\":[\n", ":2: not a line"},
  };
  for (const Case& c : cases) {
    INFO(c.message);
    write(folder / c.name, c.text);
    CHECK_THROWS_WITH(read_frequencies(folder / c.name, shape()),
                      Contains(folder / c.name) && Contains(c.message));
    CHECK_THROWS_AS(read_frequencies(folder / c.name, shape()), DataError);
  }
  CHECK_THROWS_AS(read_frequencies(folder / "none", shape()), IoError);
  CHECK_THROWS_WITH(read_frequencies(folder.path(), shape()), Contains("neither a run's folder"));
  CHECK_THROWS_WITH(read_frequencies(folder / "plain", shape()), Contains("neither calibrated"));
  CHECK_THROWS_WITH(read_frequencies(folder / "d", dense), Contains("a dense model"));
}

}  // namespace
}  // namespace degu
