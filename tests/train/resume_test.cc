#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "io/atomic_file.h"
#include "tests/train/tiny_run.h"

namespace degu {
namespace {

using testing::RankLayout;
using testing::tiny_run;

std::string fresh_folder() {
  static int count = 0;
  const auto path = std::filesystem::temp_directory_path() /
                    ("degu_resume_" + std::to_string(::getpid()) + "_" + std::to_string(count++));
  std::filesystem::remove_all(path);
  return path.string();
}

RunResult run(RunConfig config, const RankLayout& layout, RunOptions options) {
  config.cluster.expert_parallel = layout.expert_parallel;
  const TokenDataset dataset(config.data.paths);
  config = resolve_config(config, dataset);
  options.live = false;
  options.peak_flops = 1e9;
  RunResult result;
  run_as_threads(layout.ranks, [&](Communicator& world) {
    Context context({.threads = layout.threads, .scratch_bytes = size_t{1} << 30});
    const RunResult own = run_training(config, options, dataset, world, context);
    if (world.rank() == 0) result = own;
  });
  return result;
}

// Losses by step, from a run's metrics.
std::vector<double> losses(const std::string& folder) {
  std::vector<double> all;
  const std::string text = read_file(folder + "/metrics.jsonl");
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    const nlohmann::json line = nlohmann::json::parse(text.substr(begin, end - begin));
    if (line.contains("loss")) {
      REQUIRE(line["step"].get<size_t>() == all.size());
      all.push_back(line["loss"].get<double>());
    }
    begin = end + 1;
  }
  return all;
}

TEST_CASE("a run that was stopped and resumed on another layout ends with the same bits") {
  RunConfig config = tiny_run();
  config.train.checkpoint_every = 4;
  const std::string whole = fresh_folder();
  const RunResult expected = run(config, {.ranks = 1}, {.folder = whole});
  REQUIRE(expected.complete);
  REQUIRE(losses(whole).size() == 20);

  const std::string parts = fresh_folder();
  const RunResult first =
      run(config, {.ranks = 2, .expert_parallel = 2}, {.folder = parts, .stop_after = 7});
  CHECK_FALSE(first.complete);
  CHECK(first.steps == 7);
  run(config, {.ranks = 4, .expert_parallel = 2},
      {.folder = parts, .resume = true, .stop_after = 13});
  const RunResult last = run(config, {.ranks = 1}, {.folder = parts, .resume = true});
  CHECK(last.complete);
  CHECK(last.validation.loss == expected.validation.loss);
  CHECK(losses(parts) == losses(whole));

  CheckpointReader a(expected.checkpoint);
  CheckpointReader b(last.checkpoint);
  for (const auto& info : a.list()) {
    Tensor x(info.dtype, info.shape);
    Tensor y(info.dtype, info.shape);
    a.read(info.name, x);
    b.read(info.name, y);
    INFO(info.name);
    CHECK(std::memcmp(x.view().data, y.view().data, x.bytes()) == 0);
  }
  std::filesystem::remove_all(whole);
  std::filesystem::remove_all(parts);
}

TEST_CASE("a folder that holds a run is not written over") {
  RunConfig config = tiny_run();
  config.train.steps = 2;
  const std::string folder = fresh_folder();
  run(config, {.ranks = 1}, {.folder = folder});
  CHECK_THROWS_AS(run(config, {.ranks = 1}, {.folder = folder}), ConfigError);
  CHECK(run(config, {.ranks = 1}, {.folder = folder, .resume = true}).complete);
  std::filesystem::remove_all(folder);
}

TEST_CASE("gradients that are not finite are skipped and counted, and end the run in the end") {
  RunConfig config = tiny_run(Precision::kFp32);
  config.train.optimizer.learning_rate = 1e30;
  config.train.optimizer.clip = 0;
  config.train.max_bad_steps = 3;
  const std::string folder = fresh_folder();
  CHECK_THROWS_AS(run(config, {.ranks = 2}, {.folder = folder}), NumericError);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace degu
