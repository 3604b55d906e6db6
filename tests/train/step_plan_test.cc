#include "train/step_plan.h"

#include <catch2/catch.hpp>

#include "shape/accounting.h"

namespace degu {
namespace {

RunConfig config() {
  RunConfig c;
  c.model = c.model.resolved();
  c.data.sequence_length = 64;
  c.train.batch_sequences = 32;
  c.train.steps = 10;
  return c;
}

TEST_CASE("units do not depend on the ranks") {
  for (int ranks : {1, 2, 4, 8}) {
    const StepPlan plan = plan_steps(config(), Layout(0, ranks, 1));
    CHECK(plan.units == 8);
    CHECK(plan.micro_sequences == 32 / ranks);
    CHECK(plan.balance_sequences == 4);
  }
  RunConfig odd = config();
  odd.train.batch_sequences = 6;
  CHECK(plan_steps(odd, Layout(0, 1, 1)).units == 2);
}

TEST_CASE("a run is as long as its tokens or FLOPs") {
  RunConfig c = config();
  c.train.steps = 0;
  c.train.tokens = 32 * 64 * 7;
  CHECK(plan_steps(c, Layout(0, 1, 1)).steps == 7);
  c.train.tokens = 0;
  c.train.flops = 5.0 * training_flops(c.model, 64, 32 * 64);
  CHECK(plan_steps(c, Layout(0, 1, 1)).steps == 5);
}

TEST_CASE("cuDNN's attention is refused where it cannot be, with what to set") {
  using Catch::Contains;
  RunConfig config;
  config.train.attention = AttentionBy::kCudnn;
  config.train.reproducible = false;
  CHECK_THROWS_WITH(config.check(), Contains("set cluster.device: cuda, or leave it at own"));
  config.cluster.device = DeviceType::kCuda;
  CHECK_NOTHROW(config.check());
  config.train.reproducible = true;
  CHECK_THROWS_WITH(config.check(), Contains("set train.reproducible: false"));
  config.train.precision = Precision::kFp32;
  CHECK_THROWS_WITH(config.check(), Contains("set train.precision: bf16"));
}

TEST_CASE("sizes that do not fit together are refused with their names") {
  auto message = [](auto&& change, int ranks = 1) -> std::string {
    RunConfig c = config();
    change(c);
    try {
      c.train.check();
      plan_steps(c, Layout(0, ranks, 1));
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "accepted";
  };
  using Catch::Contains;
  CHECK_THAT(message([](RunConfig& c) { c.train.steps = 0; }), Contains("tokens, steps or flops"));
  CHECK_THAT(message([](RunConfig& c) { c.train.tokens = 5; }), Contains("keep one"));
  CHECK_THAT(message([](RunConfig& c) { c.train.unit_sequences = 5; }),
             Contains("train.unit_sequences is 5"));
  CHECK_THAT(message([](RunConfig& c) { c.train.overlap_reduction = true; }),
             Contains("shard_gradients: true"));
  for (int chunks : {-1, 5}) {
    CHECK_THAT(message([&](RunConfig& c) {
                 c.model.moe.experts = 4;
                 c.cluster.exchange_chunks = chunks;
               }),
               Contains("cluster.exchange_chunks is"));
  }
  CHECK_THAT(message([](RunConfig&) {}, 16), Contains("cannot be shared by 16 ranks"));
  CHECK_THAT(message([](RunConfig& c) { c.train.balance.group_sequences = 3; }),
             Contains("train.balance.group_sequences is 3"));
  CHECK_THAT(message([](RunConfig& c) { c.train.micro_batch_sequences = 12; }),
             Contains("train.micro_batch_sequences is 12"));
}

}  // namespace
}  // namespace degu
