#include "train/gradients.h"

#include <algorithm>
#include <bit>
#include <catch2/catch.hpp>
#include <cmath>

#include "comm/thread_comm.h"
#include "tests/comm/late_comm.h"
#include "tests/model/tiny_model.h"
#include "train/step_gradient.h"

namespace degu {
namespace {

// What a leaf of the tree is worth: fp32 numbers whose sum depends on the order.
float leaf_value(int64_t leaf, int64_t element) {
  return static_cast<float>(
      RandomStream(1, "leaf").normal(static_cast<uint64_t>(leaf * 1000 + element)) *
      std::pow(10.0, static_cast<double>(leaf % 5)));
}

// The left subtree is the largest power of two below the count (comm/tree.h).
float tree(int64_t first, int64_t count, int64_t element) {
  if (count == 1) return leaf_value(first, element);
  const auto left = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(count - 1)));
  return tree(first, left, element) + tree(first + left, count - left, element);
}

TEST_CASE("leaves are joined in the binary tree over their indices") {
  Context context;
  const ModelShape shape = testing::tiny_shape();
  ParameterSet parameters(context, shape, DType::kBF16, {0, shape.moe.experts}, true);
  for (int64_t leaves : {1, 2, 3, 4, 5, 6, 7, 8, 11, 16}) {
    for (const ParameterRegion& region : parameters.regions()) {
      GradientRegion sink(context, region, {.leaves = leaves});
      for (int step = 0; step < 2; ++step) {
        for (int64_t leaf = 0; leaf < leaves; ++leaf) {
          sink.begin_leaf();
          for (Parameter* p : region.members) {
            const View<float> g = p->gradient.as<float>();
            for (int64_t i = 0; i < std::min<int64_t>(g.elements(), 5); ++i) {
              const float value = leaf_value(leaf, i);
              g[i] = p->write == Write::kAdd ? g[i] + value : value;
            }
          }
          sink.end_leaf();
        }
        const View<float> sum = sink.result().as<float>();
        for (size_t m = 0; m < region.members.size(); ++m) {
          const int64_t elements = region.members[m]->value.elements();
          for (int64_t i = 0; i < std::min<int64_t>(elements, 5); ++i) {
            REQUIRE(sum[region.offsets[m] + i] == tree(0, leaves, i));
          }
        }
      }
    }
  }
}

TEST_CASE("slots of one leaf are joined as neighbours in the tree") {
  Context context;
  const ModelShape shape = testing::tiny_shape();
  ParameterSet parameters(context, shape, DType::kBF16, {0, 2}, true);
  for (const ParameterRegion& region : parameters.regions()) {
    if (region.kind != RegionKind::kExperts) continue;
    const int64_t slots = 4;
    GradientRegion sink(context, region, {.slots = slots});
    sink.begin_leaf();
    for (Parameter* p : region.members) {
      REQUIRE(p->gradient.shape[0] == slots);
      const View<float> g = p->gradient.as<float>();
      const int64_t elements = p->value.elements();
      for (int64_t s = 0; s < slots; ++s) {
        for (int64_t i = 0; i < 5; ++i) g[s * elements + i] = leaf_value(s, i);
      }
    }
    sink.end_leaf();
    const View<float> sum = sink.result().as<float>();
    for (int64_t offset : region.offsets) {
      if (offset == region.elements()) continue;
      for (int64_t i = 0; i < 5; ++i) REQUIRE(sum[offset + i] == tree(0, slots, i));
    }
  }
}

// Writes leaf number `leaf` of a step: every parameter gets the same first few values.
void write_leaf(StepGradient& sink, const ParameterRegion& region, int64_t leaf) {
  sink.begin_leaf();
  for (Parameter* p : region.members) {
    const View<float> g = p->gradient.as<float>();
    for (int64_t i = 0; i < g.elements(); ++i) {
      const float value = leaf_value(leaf, i % 5);
      g[i] = p->write == Write::kAdd ? g[i] + value : value;
    }
  }
  sink.end_leaf();
}

// Leaf l of `leaves`, in pass m of `passes`, on rank r: rank-major for whole gradients, pass-major
// for sharded ones, two of which take turns in one memory; the second's leaves begin at kNext. What
// is wrong; empty when nothing is.
constexpr int64_t kNext = 512;
std::string wrong_shards(Communicator& world, int64_t leaves, int64_t passes) {
  Context context;
  const ModelShape shape = testing::tiny_shape();
  ParameterSet parameters(context, shape, DType::kBF16, {0, shape.moe.experts}, true);
  const int64_t ranks = world.size();
  for (const ParameterRegion& whole : parameters.regions()) {
    for (const ParameterRegion& region : split_by_block(whole, shape.layers)) {
      const FlatLayout layout({{.piece_elements = region.elements()}}, world.size());
      const FlatRange mine = layout.shard(world.rank());
      const ShardPlace place{.layout = layout, .mine = mine, .order = Order::kTree};
      Arena kept(size_t{8} << 20);
      GradientTurns shared{Arena(size_t{8} << 20)};
      WholeGradient at_the_end(context, region, place, {.leaves = passes * leaves}, kept);
      ShardedGradient by_pass(context, region, place, {.leaves = leaves}, passes, kept, shared);
      shared.memory().release(0);
      ShardedGradient next(context, region, place, {.leaves = leaves}, passes, kept, shared);
      for (StepGradient* sink :
           {static_cast<StepGradient*>(&at_the_end), static_cast<StepGradient*>(&by_pass),
            static_cast<StepGradient*>(&next)}) {
        sink->reduce_over(world);
      }
      for (int step = 0; step < 2; ++step) {
        for (int64_t m = 0; m < passes; ++m) {
          for (int64_t l = 0; l < leaves; ++l) {
            write_leaf(at_the_end, region, (world.rank() * passes + m) * leaves + l);
          }
          for (int64_t l = 0; l < leaves; ++l) {
            write_leaf(by_pass, region, (m * ranks + world.rank()) * leaves + l);
          }
          for (int64_t l = 0; l < leaves; ++l) {
            write_leaf(next, region, kNext + (m * ranks + world.rank()) * leaves + l);
          }
        }
        const AnyView a = at_the_end.shard(), b = by_pass.shard(), c = next.shard();
        if (a.elements() != mine.elements() || b.elements() != mine.elements()) return "size";
        size_t member = 0;
        for (int64_t i = mine.begin; i < mine.end; ++i) {
          while (region.offsets[member + 1] <= i) ++member;
          const int64_t element = (i - region.offsets[member]) % 5;
          const float sum = tree(0, ranks * passes * leaves, element);
          if (c.as<float>()[i - mine.begin] != tree(kNext, ranks * passes * leaves, element)) {
            return fmt::format("element {} of the next one's", i);
          }
          if (a.as<float>()[i - mine.begin] != sum || b.as<float>()[i - mine.begin] != sum) {
            return fmt::format("element {}: {} and {}, not {}", i, a.as<float>()[i - mine.begin],
                               b.as<float>()[i - mine.begin], sum);
          }
        }
      }
    }
  }
  return "";
}

TEST_CASE("shards of gradients are those of the tree over all leaves of the step") {
  for (int ranks : {1, 2, 4}) {
    for (int64_t leaves : {1, 2, 4}) {
      for (int64_t passes : {1, 2, 4, 8}) {
        INFO(ranks << " ranks, " << passes << " passes of " << leaves << " leaves");
        std::vector<std::string> wrong(static_cast<size_t>(ranks));
        for (bool late : {false, true}) {
          run_as_threads(ranks, [&](Communicator& group) {
            test::LateCommunicator postponing(group);
            Communicator& world = late ? postponing : group;
            wrong[static_cast<size_t>(world.rank())] = wrong_shards(world, leaves, passes);
          });
          CHECK(wrong == std::vector<std::string>(wrong.size()));
        }
      }
    }
  }
}

}  // namespace
}  // namespace degu
