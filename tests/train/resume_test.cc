#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>

#include "tests/train/folder_run.h"

namespace degu {
namespace {

using namespace degu::testing;

struct Ended {
  std::string folder;  // removed once it has been looked at
  RunResult result;
};

void check_same_end(const Ended& whole, const Ended& parts) {
  CHECK(parts.result.complete);
  CHECK(parts.result.validation.loss == whole.result.validation.loss);
  CHECK(losses(parts.folder) == losses(whole.folder));
  check_same_checkpoint(whole.result.checkpoint, parts.result.checkpoint);
  std::filesystem::remove_all(whole.folder);
  std::filesystem::remove_all(parts.folder);
}

TEST_CASE("a run that was stopped and resumed on another layout ends with the same bits") {
  RunConfig config = tiny_run();
  config.train.optimizer.moments = GENERATE(Precision::kFp32, Precision::kBf16);
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
  check_same_end({whole, expected}, {parts, last});
}

TEST_CASE("a run goes on in the same bits when gradients come to be kept in shards, and back") {
  RunConfig config = tiny_run();
  config.train.optimizer.moments = Precision::kBf16;
  config.train.micro_batch_sequences = 2;
  config.train.steps = 12;
  const std::string whole = fresh_folder(), parts = fresh_folder();
  const RunResult expected = run(config, {.ranks = 1}, {.folder = whole});
  run(config, {.ranks = 2}, {.folder = parts, .stop_after = 3});
  config.train.shard_gradients = true;
  run(config, {.ranks = 4, .expert_parallel = 2},
      {.folder = parts, .resume = true, .stop_after = 6});
  run(config, {.ranks = 2}, {.folder = parts, .resume = true, .stop_after = 9});
  config.train.shard_gradients = false;
  const RunResult last = run(config, {.ranks = 4}, {.folder = parts, .resume = true});
  check_same_end({whole, expected}, {parts, last});
}

TEST_CASE("bf16 moments train as fp32 ones do") {
  RunConfig config = tiny_run(Precision::kFp32);
  config.train.steps = 60;
  config.train.optimizer.beta2 = GENERATE(0.95, 0.999);
  const Trained exact = train(config, {.ranks = 1});
  config.train.optimizer.moments = Precision::kBf16;
  const Trained rounded = train(config, {.ranks = 1});
  const auto loss = [](const Trained& run, size_t step) { return run.numbers[5 * step]; };
  CHECK(loss(rounded, 0) == loss(exact, 0));
  CHECK(loss(rounded, 59) != loss(exact, 59));
  CHECK(loss(exact, 59) < loss(exact, 0) - 0.5);
  for (size_t step = 0; step < 60; ++step) {
    CHECK(loss(rounded, step) == Approx(loss(exact, step)).epsilon(0.01));
  }
  CHECK(rounded.numbers.back() == Approx(exact.numbers.back()).epsilon(0.005));
}

TEST_CASE("a checkpoint's moments become those of the run that goes on") {
  const auto stored = [](const std::string& checkpoint, DType type) {
    CheckpointReader reader(checkpoint);
    std::map<std::string, Tensor> moments;
    for (const auto& info : reader.list()) {
      if (!info.name.starts_with(kOptimizerPrefix)) continue;
      INFO(info.name);
      REQUIRE(info.dtype == type);
      reader.read(info.name, moments.emplace(info.name, Tensor(type, info.shape)).first->second);
    }
    REQUIRE(!moments.empty());
    return moments;
  };
  const std::string first = fresh_folder(), second = fresh_folder(), third = fresh_folder();
  RunConfig config = tiny_run();
  const RunResult exact = run(config, {.ranks = 1}, {.folder = first, .stop_after = 5});
  // Nothing is trained between reading and writing.
  config.train.optimizer.moments = Precision::kBf16;
  const RunResult rounded =
      run(config, {.ranks = 2, .expert_parallel = 2},
          {.folder = second, .branch_from = exact.checkpoint, .stop_after = 5});
  config.train.optimizer.moments = Precision::kFp32;
  const RunResult back = run(config, {.ranks = 2},
                             {.folder = third, .branch_from = rounded.checkpoint, .stop_after = 5});
  const auto was = stored(exact.checkpoint, DType::kF32);
  const auto is = stored(rounded.checkpoint, DType::kBF16);
  const auto again = stored(back.checkpoint, DType::kF32);
  for (const auto& [name, before] : was) {
    INFO(name);
    int64_t wrong = 0;
    for (int64_t i = 0; i < before.view().elements(); ++i) {
      const bf16 kept = is.at(name).as<bf16>()[i];
      wrong += !(kept == bf16(before.as<float>()[i]));
      wrong += again.at(name).as<float>()[i] != static_cast<float>(kept);
    }
    CHECK(wrong == 0);
  }
  for (const std::string& folder : {first, second, third}) std::filesystem::remove_all(folder);
}

TEST_CASE("checkpoints that are written beside the steps hold what those between the steps hold") {
  RunConfig config = tiny_run();
  config.train.checkpoint_every = 3;
  config.train.keep_checkpoints = 100;
  for (int ranks : {1, 2}) {
    const std::string between = fresh_folder(), beside = fresh_folder();
    config.train.async_checkpoint = false;
    run(config, {.ranks = ranks, .expert_parallel = ranks}, {.folder = between});
    config.train.async_checkpoint = true;
    const RunResult result =
        run(config, {.ranks = ranks, .expert_parallel = ranks}, {.folder = beside});
    CHECK(result.checkpoint == beside + "/checkpoints/" + checkpoint_name(20));
    const auto expected = list_checkpoints(between + "/checkpoints");
    const auto found = list_checkpoints(beside + "/checkpoints");
    REQUIRE(expected.size() == 7);
    REQUIRE(found.size() == expected.size());
    for (size_t i = 0; i < found.size(); ++i) {
      CHECK(found[i].step == expected[i].step);
      check_same_checkpoint(expected[i].folder, found[i].folder);
      CheckpointReader(found[i].folder).verify();
    }
    CHECK(losses(beside) == losses(between));
    for (const std::string& folder : {between, beside}) std::filesystem::remove_all(folder);
  }
}

TEST_CASE("a run that is stopped waits for the checkpoint that is being written") {
  RunConfig config = tiny_run();
  config.train.checkpoint_every = 4;
  config.train.async_checkpoint = true;
  const std::string whole = fresh_folder(), parts = fresh_folder();
  const RunResult expected = run(config, {.ranks = 2}, {.folder = whole});
  const RunResult first = run(config, {.ranks = 2}, {.folder = parts, .stop_after = 8});
  CHECK(first.checkpoint == parts + "/checkpoints/" + checkpoint_name(8));
  const RunResult second = run(config, {.ranks = 1}, {.folder = parts, .resume = true});
  check_same_end({whole, expected}, {parts, second});
}

TEST_CASE("the search for the fastest number of chunks leaves no trace in a run") {
  RunConfig config = tiny_run();
  config.train.steps = 12;  // one that is not timed, three of each of 1, 2 and 4, two after them
  config.model.moe.experts = 8;
  std::vector<double> expected;
  for (int64_t chunks : {1, 0}) {
    config.cluster.exchange_chunks = chunks;
    const std::string folder = fresh_folder();
    run(config, {.ranks = 2, .expert_parallel = 2}, {.folder = folder});
    if (chunks == 1) expected = losses(folder);
    CHECK(losses(folder) == expected);
    std::filesystem::remove_all(folder);
  }
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

TEST_CASE("a skipped step changes nothing but the count of steps") {
  RunConfig config = tiny_run(Precision::kFp32);
  config.train.optimizer.learning_rate = 1e30;
  config.train.optimizer.clip = 0;
  const TokenDataset dataset(config.data.paths);
  config = resolve_config(config, dataset);
  const auto world = make_self_communicator();
  Context context({.threads = 1, .scratch_bytes = size_t{1} << 28});
  Trainer trainer(config, dataset, *world, context);
  const auto values = [&] {
    std::vector<float> all;
    for (const auto& p : trainer.parameters().all()) {
      const View<float> value = p->value.as<float>();
      all.insert(all.end(), value.data(), value.data() + value.elements());
    }
    return all;
  };
  const std::vector<float> first = values();
  CHECK_FALSE(trainer.step().skipped);
  const std::vector<float> after = values();
  CHECK(std::memcmp(after.data(), first.data(), after.size() * sizeof(float)) != 0);
  for (int64_t step = 1; step < 4; ++step) {
    const StepResult result = trainer.step();
    CHECK(result.skipped);
    CHECK(result.step == step);
    CHECK(trainer.counters().bad_steps == step);
    const std::vector<float> now = values();
    CHECK(std::memcmp(now.data(), after.data(), now.size() * sizeof(float)) == 0);
  }
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
