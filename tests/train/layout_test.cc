// The layout of ranks is not part of the mathematics: design promise 3.
#include <catch2/catch.hpp>
#include <cmath>

#include "tests/support/scoped_environment.h"
#include "tests/train/tiny_run.h"

namespace degu {
namespace {

using testing::kFewSteps;
using testing::RankLayout;
using testing::tiny_run;
using testing::train;
using testing::Trained;

// Every way to share 8 units of 2 sequences over up to 4 ranks.
const std::vector<RankLayout> kLayouts = {
    {.ranks = 1, .threads = 2},
    {.ranks = 1, .micro_sequences = 8},
    {.ranks = 1, .micro_sequences = 4, .threads = 3},
    {.ranks = 1, .micro_sequences = 2},
    {.ranks = 2, .expert_parallel = 1},
    {.ranks = 2, .expert_parallel = 2},
    {.ranks = 2, .expert_parallel = 2, .micro_sequences = 4},
    {.ranks = 2, .expert_parallel = 1, .micro_sequences = 2, .threads = 2},
    {.ranks = 4, .expert_parallel = 1},
    {.ranks = 4, .expert_parallel = 2},
    {.ranks = 4, .expert_parallel = 4, .micro_sequences = 2},
};

std::string describe(const RankLayout& layout) {
  return fmt::format("{} ranks, expert_parallel {}, micro-batches of {}, {} threads", layout.ranks,
                     layout.expert_parallel, layout.micro_sequences, layout.threads);
}

void check_same(const Trained& other, const Trained& reference) {
  CHECK(other.numbers == reference.numbers);
  for (const auto& [name, values] : reference.values) {
    INFO(name);
    CHECK(other.values.at(name) == values);
  }
}

struct Variant {
  const char* name;
  RunConfig config;
};

std::vector<Variant> variants() {
  std::vector<Variant> all;
  auto add = [&](const char* name, auto&& change) {
    RunConfig config = tiny_run();
    change(config);
    all.push_back({name, config});
  };
  add("bf16, all balancing losses, bias updates, tied head", [](RunConfig&) {});
  add("fp32, untied head, shared expert", [](RunConfig& c) {
    c.train.precision = Precision::kFp32;
    c.model.tied_head = false;
    c.model.moe.shared_experts = 1;
  });
  add("capacity, first layer dense, windows not confined", [](RunConfig& c) {
    c.model.moe.capacity_factor = 1.0;
    c.model.moe.first_dense_layers = 1;
    c.data.confine_documents = false;
  });
  add("sigmoid scores, qk norm, muP", [](RunConfig& c) {
    c.model.moe.router = RouterKind::kSigmoid;
    c.model.qk_norm = true;
    c.model.mup_base_width = 16;
  });
  add("bf16 moments", [](RunConfig& c) { c.train.optimizer.moments = Precision::kBf16; });
  return all;
}

TEST_CASE("every layout of ranks trains to the same bits") {
  for (const Variant& variant : variants()) {
    INFO(variant.name);
    const Trained reference = train(variant.config, {.ranks = 1});
    REQUIRE(reference.numbers.size() == 20 * 5 + 1);
    for (double x : reference.numbers) REQUIRE(std::isfinite(x));
    CHECK(reference.numbers[95] < reference.numbers[0]);  // it learns
    for (const RankLayout& layout : kLayouts) {
      INFO(describe(layout));
      check_same(train(variant.config, layout), reference);
    }
  }
}

TEST_CASE("gradients in shards are the same bits as whole ones") {
  std::vector<RankLayout> layouts = kLayouts;
  for (int ep : {1, 2, 4}) {
    for (int64_t micro_sequences : {2, 4}) {
      layouts.push_back({.ranks = 4, .expert_parallel = ep, .micro_sequences = micro_sequences});
      if (ep > 2) continue;
      layouts.push_back({.ranks = 2, .expert_parallel = ep, .micro_sequences = micro_sequences});
    }
  }
  for (Variant& variant : variants()) {
    INFO(variant.name);
    const Trained reference = train(variant.config, {.ranks = 1}, kFewSteps);
    variant.config.train.shard_gradients = true;
    variant.config.cluster.headroom = 1;  // blocks whose rows take further rounds, too
    for (const RankLayout& layout : layouts) {
      INFO(describe(layout));
      check_same(train(variant.config, layout, kFewSteps), reference);
    }
  }
}

TEST_CASE("the head's chunks are leaves of their own") {
  RunConfig config = tiny_run();
  config.data.sequence_length = 4096;
  config.train.batch_sequences = 32;
  config.train.unit_sequences = 8;
  config.train.steps = 1;
  const TokenDataset dataset(config.data.paths);
  REQUIRE(training_head_chunks(plan_steps(config, Layout(0, 2, 1)), dataset.vocab_size()).chunks ==
          2);
  for (bool tied : {true, false}) {
    config.model.tied_head = tied;
    config.train.shard_gradients = false;
    const Trained reference = train(config, {.ranks = 1});
    config.train.shard_gradients = true;
    for (const RankLayout& layout :
         {RankLayout{.ranks = 2}, RankLayout{.ranks = 2, .expert_parallel = 2}}) {
      INFO(describe(layout));
      check_same(train(config, layout), reference);
    }
  }
}

TEST_CASE("rows that travel in two stages over two nodes of two ranks leave the same bits") {
  const test::ScopedEnvironment per_node("DEGU_RANKS_PER_NODE", "2");
  for (const Variant& variant : variants()) {
    INFO(variant.name);
    const Trained reference = train(variant.config, {.ranks = 1}, kFewSteps);
    RunConfig config = variant.config;
    config.cluster.all_to_all = AllToAll::kTwoStage;  // an error where rows would go directly
    CHECK(train(config, {.ranks = 4, .expert_parallel = 4}, kFewSteps) == reference);
    CHECK(train(config, {.ranks = 4, .expert_parallel = 4, .micro_sequences = 2}, kFewSteps) ==
          reference);
    CHECK_THROWS_AS(train(config, {.ranks = 4, .expert_parallel = 2}, 1), ConfigError);
    config.cluster.headroom = 1;  // several rounds
    CHECK(train(config, {.ranks = 4, .expert_parallel = 4}, kFewSteps) == reference);
  }
}

TEST_CASE("exchanges that end as late as their wait leave the same bits") {
  for (const Variant& variant : variants()) {
    INFO(variant.name);
    const Trained reference = train(variant.config, {.ranks = 1}, kFewSteps);
    for (RankLayout layout : kLayouts) {
      if (layout.ranks == 1) continue;
      INFO(describe(layout));
      layout.late = true;
      RunConfig config = variant.config;
      config.cluster.headroom = 1;
      CHECK(train(config, layout, kFewSteps) == reference);
      config.train.shard_gradients = true;
      for (bool beside : {false, true}) {
        config.train.overlap_reduction = beside;
        CHECK(train(config, layout, kFewSteps) == reference);
      }
    }
  }
}

TEST_CASE("what is computed again is what was computed before") {
  for (const Variant& variant : variants()) {
    INFO(variant.name);
    const Trained reference = train(variant.config, {.ranks = 1});
    for (Recompute recompute : {Recompute::kExperts, Recompute::kBlock}) {
      RunConfig config = variant.config;
      config.train.recompute = recompute;
      for (const RankLayout& layout : {RankLayout{.ranks = 1, .micro_sequences = 4},
                                       RankLayout{.ranks = 2, .expert_parallel = 2}}) {
        CHECK(train(config, layout) == reference);
      }
    }
  }
}

TEST_CASE("rows that find no room travel in further rounds and leave the same bits") {
  for (const Variant& variant : variants()) {
    INFO(variant.name);
    const Trained reference = train(variant.config, {.ranks = 1}, kFewSteps);
    CHECK(reference.extra_rounds == 0);
    RunConfig config = variant.config;
    config.cluster.headroom = 1;  // loads are never quite even
    for (Recompute recompute : {Recompute::kNone, Recompute::kExperts, Recompute::kBlock}) {
      config.train.recompute = recompute;
      for (const RankLayout& layout :
           {RankLayout{.ranks = 2, .expert_parallel = 2, .micro_sequences = 4},
            RankLayout{.ranks = 4, .expert_parallel = 2},
            RankLayout{.ranks = 4, .expert_parallel = 4}}) {
        const Trained other = train(config, layout, kFewSteps);
        CHECK(other == reference);
        // A capacity of the mean leaves no rank more than its share.
        CHECK((other.extra_rounds > 0) == (config.model.moe.capacity_factor == 0));
      }
    }
    config.cluster.headroom = 0;
    CHECK(train(config, {.ranks = 4, .expert_parallel = 4}, 2).extra_rounds == 0);
  }
}

TEST_CASE("rows that travel in chunks leave the same bits") {
  for (Variant& variant : variants()) {
    INFO(variant.name);
    variant.config.model.moe.experts = 12;
    const Trained reference = train(variant.config, {.ranks = 1}, 2);
    for (RankLayout layout : {RankLayout{.ranks = 2, .expert_parallel = 2, .micro_sequences = 4},
                              RankLayout{.ranks = 4, .expert_parallel = 2},
                              RankLayout{.ranks = 4, .expert_parallel = 4}}) {
      for (int chunks : {1, 2, 3, 4}) {  // of six experts on a rank, or of three
        if (chunks > 12 / layout.expert_parallel) continue;
        RunConfig config = variant.config;
        config.cluster.exchange_chunks = chunks;
        for (double headroom : {2, 1}) {
          config.cluster.headroom = headroom;  // with 1 in several rounds, too
          for (bool late : {false, true}) {
            INFO(describe(layout) << ", " << chunks << " chunks, headroom " << headroom);
            layout.late = late;
            CHECK(train(config, layout, 2) == reference);
          }
        }
      }
    }
    RunConfig config = variant.config;
    config.cluster.exchange_chunks = 2;
    config.cluster.headroom = 1;
    for (Recompute recompute : {Recompute::kExperts, Recompute::kBlock}) {
      config.train.recompute = recompute;
      config.train.shard_gradients = recompute == Recompute::kBlock;
      CHECK(train(config, {.ranks = 2, .expert_parallel = 2}, 2) == reference);
    }
    const test::ScopedEnvironment per_node("DEGU_RANKS_PER_NODE", "2");
    config.cluster.all_to_all = AllToAll::kTwoStage;
    CHECK(train(config, {.ranks = 4, .expert_parallel = 4, .late = true}, 2) == reference);
  }
}

TEST_CASE("chunks part a rank's own sums only between experts") {
  RunConfig config = tiny_run();
  config.train.reproducible = false;
  const RankLayout layout{.ranks = 2, .expert_parallel = 2};
  const Trained reference = train(config, layout, kFewSteps);
  config.cluster.exchange_chunks = 2;
  CHECK(train(config, layout, kFewSteps) == reference);
}

TEST_CASE("without `reproducible` one step agrees within rounding") {
  RunConfig config = tiny_run(Precision::kFp32);
  const Trained exact = train(config, {.ranks = 1}, 1);
  config.train.reproducible = false;
  for (double headroom : {2, 1}) {
    config.cluster.headroom = headroom;
    for (bool in_shards : {false, true}) {
      config.train.shard_gradients = in_shards;
      for (const RankLayout& layout : kLayouts) {
        const Trained fast = train(config, layout, 1);
        // Sums of fp32 partial sums in another order: a few units in the last place of the largest.
        CHECK(fast.numbers[0] == Approx(exact.numbers[0]).epsilon(1e-6));
        CHECK(fast.numbers[3] == Approx(exact.numbers[3]).epsilon(1e-5));
      }
    }
  }
}

TEST_CASE("passes of one rank, and the head's chunks, need be no power of two") {
  RunConfig config = tiny_run(Precision::kFp32);
  config.train.batch_sequences = 10;  // five units
  const Trained whole = train(config, {.ranks = 1});
  check_same(train(config, {.ranks = 1, .micro_sequences = 2}), whole);
  config.train.shard_gradients = true;
  check_same(train(config, {.ranks = 1, .micro_sequences = 2}), whole);
  config.train.reproducible = false;
  CHECK(train(config, {.ranks = 1}, 1).numbers[3] == Approx(whole.numbers[3]).epsilon(1e-5));
}

TEST_CASE("unaligned layouts are refused when results must be reproducible") {
  RunConfig config = tiny_run();
  config.train.unit_sequences = 0;
  config.train.batch_sequences = 12;
  CHECK_THROWS_AS(train(config, {.ranks = 3}, 1), ConfigError);
  config.train.unit_sequences = 2;
  config.train.reproducible = false;
  CHECK_NOTHROW(train(config, {.ranks = 3}, 1));
}

TEST_CASE("passes over all ranks must be aligned when gradients are kept in shards") {
  RunConfig config = tiny_run();
  config.train.batch_sequences = 12;  // three ranks with two passes of one unit
  const RankLayout layout{.ranks = 3, .micro_sequences = 2};
  CHECK_NOTHROW(train(config, layout, 1));
  config.train.shard_gradients = true;
  CHECK_THROWS_AS(train(config, layout, 1), ConfigError);
  CHECK_NOTHROW(train(config, {.ranks = 3}, 1));
  config.train.reproducible = false;
  CHECK_NOTHROW(train(config, layout, 1));
}

}  // namespace
}  // namespace degu
