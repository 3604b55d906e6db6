#include <catch2/catch.hpp>
#include <filesystem>

#include "tests/train/folder_run.h"

namespace degu {
namespace {

using namespace degu::testing;

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

  check_same_checkpoint(expected.checkpoint, last.checkpoint);
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
