// What is planned for a layout is what a trainer of that layout lays out, and the time is the sum
// of parts that can be worked out by hand.
#include "train/layout_plan.h"

#include <catch2/catch.hpp>

#include "comm/sizing_comm.h"
#include "config/yaml.h"
#include "shape/accounting.h"
#include "tests/train/tiny_run.h"

namespace degu {
namespace {

using testing::RankLayout;
using testing::tiny_run;

RunConfig resolved(RunConfig config) {
  return resolve_config(config, TokenDataset(config.data.paths));
}

ClusterSpec cluster(int nodes, int ranks_per_node) {
  return {.source = "made up",
          .nodes = nodes,
          .ranks_per_node = ranks_per_node,
          .device = {.name = "d",
                     .memory = 0,
                     .fp32_flops = 1e12,
                     .bf16_flops = 4e12,
                     .memory_bandwidth = 1e11},
          .within_node = {.latency = 1e-6, .bandwidth = 1e10},
          .between_nodes = {.latency = 1e-5, .bandwidth = 1e9}};
}

TEST_CASE("planned memory is what the trainer of the layout reserves", "[layout]") {
  const RankLayout layouts[] = {{.ranks = 1},
                                {.ranks = 1, .micro_sequences = 4},
                                {.ranks = 2, .expert_parallel = 2},
                                {.ranks = 4, .expert_parallel = 2, .micro_sequences = 2}};
  for (bool reproducible : {true, false}) {
    for (const RankLayout& layout : layouts) {
      RunConfig config = resolved(tiny_run());
      const Precision moments = reproducible ? Precision::kFp32 : Precision::kBf16;
      config.train.reproducible = reproducible;
      config.train.optimizer.moments = moments;
      config.cluster.expert_parallel = layout.expert_parallel;
      config.train.micro_batch_sequences = layout.micro_sequences;
      const TokenDataset dataset(config.data.paths);
      run_as_threads(layout.ranks, [&](Communicator& world) {
        Context context({.threads = 1, .scratch_bytes = size_t{1} << 28});
        Trainer trainer(config, dataset, world, context);
        const TrainingMemory planned =
            training_memory(config, Layout(world.rank(), layout.ranks, layout.expert_parallel));
        CHECK(planned.activations == static_cast<double>(trainer.reserved_bytes()));
        CHECK(planned.parameters == static_cast<double>(trainer.parameters().bytes()));
        const Memory counted =
            count_memory(config.model, {.bytes_per_value = 2,
                                        .bytes_per_moment = moments == Precision::kBf16 ? 2 : 4,
                                        .bias_balancing = true,
                                        .ranks = layout.ranks,
                                        .expert_parallel = layout.expert_parallel});
        // Shards end where blocks of the norm end, so they are even only nearly.
        CHECK(planned.moments == Approx(counted.moments).epsilon(0.25));
        CHECK(planned.gradients >= counted.gradients);
      });
    }
  }
}

TEST_CASE("gradients in shards take a share of memory, and one block's beside it", "[layout]") {
  RunConfig config = resolved(tiny_run());
  config.model.layers = 8;
  config.model.width = 256;  // shards end where blocks of the norm end, so are even only nearly
  config.model.head_width = 128;
  config.cluster.expert_parallel = 2;
  const Parameters p = count_parameters(config.model);
  const auto experts = static_cast<double>(p.experts) / 2;  // of a rank
  const auto dense = static_cast<double>(p.total() - p.experts);
  const auto embedding = static_cast<double>(config.model.vocab * config.model.width);
  const auto gradients = [&](bool shard, bool reproducible, int64_t micro_sequences) {
    config.train.shard_gradients = shard;
    config.train.reproducible = reproducible;
    config.train.micro_batch_sequences = micro_sequences;
    return training_memory(config, Layout(1, 4, 2)).gradients / 4;
  };
  // The tied embedding twice: its look-up's and the head's.
  CHECK(gradients(false, false, 0) == Approx(dense + embedding + experts).epsilon(0.01));
  // Four ranks share the dense part, two the experts. One block: (dense - embedding) / 8 and its
  // experts.
  const double block = (dense - embedding) / 8 + experts / 8;
  const double shards = (dense + embedding) / 4 + experts / 2;
  CHECK(gradients(true, false, 0) == Approx(shards + block).epsilon(0.05));
  config.train.overlap_reduction = true;
  CHECK(gradients(true, false, 0) == Approx(shards + 2 * block).epsilon(0.05));
  config.train.overlap_reduction = false;
  // Two passes are a pair. Two slots of the block's experts, and their sum.
  CHECK(gradients(true, true, 2) ==
        Approx(shards + (dense - embedding) / 8 + 3 * experts / 8).epsilon(0.05));
  CHECK(gradients(false, true, 2) > 2.4 * gradients(true, true, 2));
}

TEST_CASE("planned scratch is what a step's layers take", "[layout]") {
  RunConfig base = resolved(tiny_run());
  base.model.width = 128;
  base.model.ffn_width = 256;
  base.model.moe.expert_width = 256;
  base.data.sequence_length = 128;
  const RankLayout layouts[] = {{.ranks = 1},
                                {.ranks = 1, .micro_sequences = 2},
                                {.ranks = 2, .expert_parallel = 2},
                                {.ranks = 4, .expert_parallel = 4, .micro_sequences = 2}};
  for (const RankLayout& layout : layouts) {
    for (Recompute recompute : {Recompute::kNone, Recompute::kBlock}) {
      RunConfig config = base;
      // Rows on their way have memory of their own then.
      if (recompute == Recompute::kBlock && layout.ranks == 2) config.cluster.exchange_chunks = 2;
      config.train.recompute = recompute;
      config.train.shard_gradients = recompute == Recompute::kBlock;
      config.cluster.expert_parallel = layout.expert_parallel;
      config.train.micro_batch_sequences = layout.micro_sequences;
      const TokenDataset dataset(config.data.paths);
      std::vector<double> taken(static_cast<size_t>(layout.ranks));
      run_as_threads(layout.ranks, [&](Communicator& world) {
        Context context({.threads = 1, .scratch_bytes = size_t{1} << 28});
        Trainer trainer(config, dataset, world, context);
        trainer.step();
        trainer.validate();
        taken[static_cast<size_t>(world.rank())] = static_cast<double>(context.scratch().peak());
      });
      for (int rank = 0; rank < layout.ranks; ++rank) {
        const double planned =
            training_memory(config, Layout(rank, layout.ranks, layout.expert_parallel)).scratch;
        // The CPU's operators take some beside the layers; rows are planned for, not all came.
        const double share = planned / taken[static_cast<size_t>(rank)];
        CHECK(share > 0.65);
        CHECK(share < 1.05);
      }
    }
  }
}

TEST_CASE("what is computed again takes no memory", "[layout]") {
  RunConfig config = resolved(tiny_run());
  config.model.layers = 6;
  config.data.sequence_length = 1024;  // memory is counted in huge pages
  const auto activations = [&](Recompute recompute) {
    config.train.recompute = recompute;
    return training_memory(config, Layout(0, 1, 1)).activations;
  };
  const double all = activations(Recompute::kNone);
  const double without_experts = activations(Recompute::kExperts);
  const double streams = activations(Recompute::kBlock);
  // Five of six layers' expert rows: inputs, answers, and three of the experts' width, in bf16.
  const ModelShape& s = config.model;
  const double rows = 16.0 * 1024 * s.moe.top_k;
  const double saved = 5 * rows * 2 * (2.0 * s.width + 3.0 * s.moe.expert_width);
  CHECK(all - without_experts == Approx(saved).epsilon(0.05));
  CHECK(streams < all / 3);
}

TEST_CASE("one rank computes and updates, and exchanges nothing", "[layout]") {
  const RunConfig config = resolved(tiny_run());
  const StepSeconds s = step_seconds(config, cluster(1, 1), {.utilisation = 0.5, .imbalance = 3});
  CHECK(s.exchange == 0);
  CHECK(s.reduction == 0);
  CHECK(s.compute == Approx(training_flops(config.model, 32, 16 * 32) / (0.5 * 4e12)));
  RunConfig again = config;
  again.train.recompute = Recompute::kBlock;
  CHECK(step_seconds(again, cluster(1, 1), {.utilisation = 0.5, .imbalance = 3}).compute ==
        Approx(s.compute * 4 / 3));
  const double n = static_cast<double>(count_parameters(config.model).total());
  CHECK(s.update == Approx((28 + 4 + 2 * 2) * n / 1e11));
  RunConfig rounded = config;
  rounded.train.optimizer.moments = Precision::kBf16;
  CHECK(step_seconds(rounded, cluster(1, 1), {}).update == Approx((20 + 4 + 2 * 2) * n / 1e11));
}

TEST_CASE("what several ranks exchange", "[layout]") {
  RunConfig config = resolved(tiny_run());
  config.cluster.expert_parallel = 2;
  const Flops flops = count_flops(config.model, 32);
  const Parameters p = count_parameters(config.model);
  // Two ranks of one node: each sends half of its 256 x 2 rows, four times in each of two layers.
  StepSeconds s = step_seconds(config, cluster(1, 2), {.utilisation = 1, .imbalance = 1.5});
  const double bytes = 256 * 2 / 2.0 * 32 * 2 * 1.5;
  CHECK(s.exchange == Approx(4 * 2 * (1e-6 + bytes / 1e10)));
  const double dense = static_cast<double>(p.total() - p.experts);
  // The tied embedding has two gradients.
  const double tied = config.model.vocab * config.model.width;
  CHECK(s.reduction == Approx(2 * 1e-6 + 4 * (2 * dense + tied) / 2 / 1e10));
  // In shards: four passes, in each of which two blocks, the look-up and the head are reduced.
  RunConfig in_shards = config;
  in_shards.train.shard_gradients = true;
  in_shards.train.micro_batch_sequences = 2;
  CHECK(step_seconds(in_shards, cluster(1, 2), {}).reduction ==
        Approx(5 * 4 * 1e-6 + 4 * (4 * (dense + tied) + dense) / 2 / 1e10));
  const double experts = static_cast<double>(flops.experts);
  const double rest = static_cast<double>(flops.forward()) - experts;
  CHECK(s.compute == Approx(3 * 256 * (rest + 1.5 * experts) / 4e12));
  // In two chunks on GPUs: one of two is hidden, as far as the experts' products last.
  config.cluster.exchange_chunks = 2;
  CHECK(step_seconds(config, cluster(1, 2), {.utilisation = 1, .imbalance = 1.5}).exchange ==
        Approx(2 * 4 * 2 * (1e-6 + bytes / 2 / 1e10)));  // on the host they only add messages
  config.cluster.device = DeviceType::kCuda;
  CHECK(step_seconds(config, cluster(1, 2), {.utilisation = 0.001, .imbalance = 1.5}).exchange ==
        Approx(4 * 2 * (1e-6 + bytes / 2 / 1e10)));
  CHECK(step_seconds(config, cluster(1, 2), {.utilisation = 1, .imbalance = 1.5}).exchange ==
        Approx(2 * 4 * 2 * (1e-6 + bytes / 2 / 1e10) - 3 * 256 * 1.5 * experts / 4e12));
  config.cluster.device = DeviceType::kCpu;
  config.cluster.exchange_chunks = 1;
  // The same two ranks on two nodes: all of it over the slower link.
  s = step_seconds(config, cluster(2, 1), {.utilisation = 1, .imbalance = 1.5});
  CHECK(s.exchange == Approx(4 * 2 * (1e-5 + bytes / 1e9)));
  // Four ranks on two nodes: experts' rows stay in the node, their gradients leave it.
  s = step_seconds(config, cluster(2, 2), {.utilisation = 1, .imbalance = 1.5});
  CHECK(s.exchange == Approx(4 * 2 * (1e-6 + bytes / 2 / 1e10)));
  const double third = 4 * (2 * dense + tied) * 3 / 4 / 3;  // to each of the three others
  const double held = static_cast<double>(p.experts) / 2;
  CHECK(s.reduction == Approx(2 * (1e-6 + 2e-5) + third / 1e10 + 2 * third / 1e9 +
                              2 * (1e-5 + 4 * held / 2 / 1e9)));
}

TEST_CASE("layouts are ordered by what fits, then by time", "[layout]") {
  const RunConfig config = resolved(tiny_run());
  ClusterSpec machines = cluster(1, 2);
  const LayoutPlan free = plan_layouts(config, machines, {});
  REQUIRE(free.layouts.size() == 2 * 3);  // passes of 8, 4 and 2 sequences, experts over 1 and 2
  for (size_t i = 1; i < free.layouts.size(); ++i) {
    CHECK(free.layouts[i - 1].seconds.total() <= free.layouts[i].seconds.total());
  }
  double least = 1e30;
  for (const PlannedLayout& p : free.layouts) least = std::min(least, p.memory.total());
  machines.device.memory = least;
  const LayoutPlan tight = plan_layouts(config, machines, {});
  CHECK(tight.layouts.front().fits);
  CHECK(tight.layouts.front().memory.total() == least);
  CHECK_FALSE(tight.layouts.back().fits);
  // Sixteen ranks cannot share eight units.
  const LayoutPlan none = plan_layouts(config, cluster(2, 8), {});
  CHECK(none.layouts.empty());
  REQUIRE_FALSE(none.refused.empty());
  CHECK_THAT(none.refused.front(), Catch::Contains("cannot be shared by 16 ranks"));
}

TEST_CASE("the GPU configurations fit their machines", "[layout]") {
  const std::string configs = DEGU_SOURCE_DIR "/configs/";
  const std::pair<const char*, const char*> pairs[] = {
      {"gpu/1_gpu.yaml", "machines/h200_x1.yaml"},
      {"gpu/1_gpu_olmoe.yaml", "machines/h200_x1.yaml"},
      {"gpu/8_gpus.yaml", "machines/h200_x8.yaml"},
      {"gpu/64_gpus.yaml", "machines/h200_x64.yaml"}};
  for (const auto& [run, machines] : pairs) {
    INFO(run);
    RunConfig config = load_config<RunConfig>(configs + run);
    config.model = config.model.resolved();
    const LayoutPlan plan = plan_layouts(config, load_cluster(configs + machines), {});
    REQUIRE_FALSE(plan.layouts.empty());
    CHECK(plan.layouts.front().fits);
  }
}

TEST_CASE("a rank that is alone exchanges nothing", "[layout]") {
  const auto place = make_sizing_communicator(3, 8);
  CHECK(place->rank() == 3);
  CHECK(place->size() == 8);
  CHECK_THROWS_AS(place->barrier(), CommError);
}

TEST_CASE("damaged clusters are refused", "[layout]") {
  ClusterSpec c = cluster(1, 2);
  CHECK_NOTHROW(c.check());
  c.within_node.bandwidth = 0;
  CHECK_THROWS_WITH(c.check(), Catch::Contains("within_node"));
  c = cluster(1, 1);
  c.within_node = c.between_nodes = {};  // not needed
  CHECK_NOTHROW(c.check());
  c.device.bf16_flops = 0;
  CHECK_THROWS_WITH(c.check(), Catch::Contains("bf16_flops"));
}

}  // namespace
}  // namespace degu
