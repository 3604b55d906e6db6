// Whole training runs on a GPU: near the CPU's, the same bits however ranks share the work, and
// checkpoints that go on on the other device.
#include <catch2/catch.hpp>

#include "tests/support/device_testing.h"
#include "tests/support/scoped_environment.h"
#include "tests/train/folder_run.h"

namespace degu {
namespace {

using testing::kFewSteps;
using testing::RankLayout;
using testing::tiny_run;
using testing::train;
using testing::Trained;

constexpr DeviceType kGpu = DeviceType::kCuda;

// A run's losses differ by rounding alone at first, and drift apart as steps follow steps.
void check_near(const std::vector<double>& gpu, const std::vector<double>& cpu, double rounding) {
  REQUIRE(gpu.size() == cpu.size());
  for (size_t i = 0; i < gpu.size(); ++i) {
    INFO("number " << i);
    CHECK(gpu[i] == Approx(cpu[i]).epsilon(rounding).margin(rounding));
  }
}

// Of each step's five numbers the fourth, the gradient's norm, moves the most with the rounding of
// its sums.
void check_runs_near(const Trained& gpu, const Trained& cpu, double rounding) {
  std::vector<double> kept[2];
  std::vector<double> norms[2];
  for (int side = 0; side < 2; ++side) {
    const std::vector<double>& all = side == 0 ? gpu.numbers : cpu.numbers;
    for (size_t i = 0; i < all.size(); ++i) (i % 5 == 3 ? norms : kept)[side].push_back(all[i]);
  }
  check_near(kept[0], kept[1], rounding);
  check_near(norms[0], norms[1], 4 * rounding);
}

TEST_CASE("a run on the GPU follows the one on the CPU", "[device]") {
  if (!testing::has_gpu()) return;
  constexpr int64_t kSteps = 8;
  for (bool tied : {true, false}) {
    RunConfig config = tiny_run(Precision::kFp32);
    config.model.tied_head = tied;
    check_runs_near(train(config, {.device = kGpu}, kSteps), train(config, {}, kSteps), 2e-3);
    config.train.precision = Precision::kBf16;
    check_runs_near(train(config, {.device = kGpu}, kSteps), train(config, {}, kSteps), 5e-2);
  }
}

TEST_CASE("layouts and recomputation leave no trace on the GPU either", "[device][long]") {
  if (!testing::has_gpu()) return;
  RunConfig config = tiny_run();
  const Trained reference = train(config, {.device = kGpu}, kFewSteps);
  CHECK(train(config, {.device = kGpu}, kFewSteps) == reference);  // no run differs from the next
  for (const RankLayout& layout :
       {RankLayout{.ranks = 1, .micro_sequences = 4, .device = kGpu},
        RankLayout{.ranks = 2, .expert_parallel = 1, .device = kGpu},
        RankLayout{.ranks = 2, .expert_parallel = 2, .device = kGpu},
        RankLayout{.ranks = 4, .expert_parallel = 2, .micro_sequences = 2, .device = kGpu}}) {
    INFO(layout.ranks << " ranks, expert_parallel " << layout.expert_parallel);
    CHECK(train(config, layout, kFewSteps) == reference);
    RunConfig in_shards = config;
    in_shards.train.shard_gradients = true;
    CHECK(train(in_shards, layout, kFewSteps) == reference);
  }
  for (Recompute recompute : {Recompute::kExperts, Recompute::kBlock}) {
    config.train.recompute = recompute;
    CHECK(train(config, {.device = kGpu}, kFewSteps) == reference);
  }
}

TEST_CASE("rows in two stages leave no trace on the GPU either", "[device][long]") {
  if (!testing::has_gpu()) return;
  RunConfig config = tiny_run();
  const Trained reference = train(config, {.device = kGpu}, kFewSteps);
  const test::ScopedEnvironment per_node("DEGU_RANKS_PER_NODE", "2");
  config.cluster.all_to_all = AllToAll::kTwoStage;
  CHECK(train(config, {.ranks = 4, .expert_parallel = 4, .device = kGpu}, kFewSteps) == reference);
}

TEST_CASE("rows in chunks leave no trace on the GPU either", "[device]") {
  if (!testing::has_gpu()) return;
  RunConfig config = tiny_run();
  const Trained reference = train(config, {.device = kGpu}, 1);
  config.cluster.exchange_chunks = 2;
  for (double headroom : {2, 1}) {
    config.cluster.headroom = headroom;
    CHECK(train(config, {.ranks = 2, .expert_parallel = 2, .device = kGpu}, 1) == reference);
  }
}

// How often the host waits for the GPU while it gives it one step of a model with so many layers,
// in passes of so many sequences (0: all).
int64_t waits_of_a_step(int layers, int64_t micro_sequences) {
  RunConfig config = tiny_run();
  config.model.layers = layers;
  config.train.micro_batch_sequences = micro_sequences;
  const TokenDataset dataset(config.data.paths);
  config = resolve_config(config, dataset);
  int64_t waits = 0;
  run_as_threads(1, [&](Communicator& ranks) {
    testing::RankOnDevice own(ranks, {.device = kGpu});
    Trainer trainer(config, dataset, own.world, own.context);
    trainer.begin_step();
    const int64_t before = own.context.device_state()->host_syncs();
    trainer.begin_step();
    waits = own.context.device_state()->host_syncs() - before;
    trainer.finish_step();
    trainer.finish_step();
    CHECK(own.context.device_state()->host_syncs() ==
          before + waits + 2);  // for each one's numbers
  });
  return waits;
}

TEST_CASE("on one rank a step begins without a wait of the host", "[device]") {
  if (!testing::has_gpu()) return;
  CHECK(waits_of_a_step(1, 0) == 0);
  CHECK(waits_of_a_step(3, 0) == 0);
  CHECK(waits_of_a_step(1, 2) == 0);
}

TEST_CASE("a step that begins before the last one's numbers are seen is the same step",
          "[device]") {
  if (!testing::has_gpu()) return;
  RunConfig config = tiny_run();
  config.train.optimizer.clip = 0.5;  // of some steps
  const Trained one_by_one = train(config, {.device = kGpu}, kFewSteps);
  CHECK(train(config, {.device = kGpu, .steps_ahead = 1}, kFewSteps) == one_by_one);
}

TEST_CASE("a checkpoint goes on where the other device left it", "[device]") {
  if (!testing::has_gpu()) return;
  const RunConfig config = tiny_run(Precision::kFp32);
  const auto whole = testing::fresh_folder();
  testing::run(config, {}, {.folder = whole});
  for (DeviceType first : {DeviceType::kCpu, kGpu}) {
    const auto folder = testing::fresh_folder();
    testing::run(config, {.device = first}, {.folder = folder, .stop_after = 10});
    const DeviceType second = first == kGpu ? DeviceType::kCpu : kGpu;
    testing::run(config, {.device = second}, {.folder = folder, .resume = true});
    check_near(testing::losses(folder), testing::losses(whole), 2e-3);
  }
}

}  // namespace
}  // namespace degu
