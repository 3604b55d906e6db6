#include "train/gradients.h"

#include <catch2/catch.hpp>
#include <cmath>

#include "tests/model/tiny_model.h"

namespace degu {
namespace {

// What a leaf of the tree is worth: fp32 numbers whose sum depends on the order.
float leaf_value(int64_t leaf, int64_t element) {
  return static_cast<float>(
      RandomStream(1, "leaf").normal(static_cast<uint64_t>(leaf * 1000 + element)) *
      std::pow(10.0, static_cast<double>(leaf % 5)));
}

float tree(int64_t first, int64_t count, int64_t element) {
  if (count == 1) return leaf_value(first, element);
  return tree(first, count / 2, element) + tree(first + count / 2, count / 2, element);
}

TEST_CASE("leaves are joined in the binary tree over their indices") {
  Context context;
  const ModelShape shape = testing::tiny_shape();
  ParameterSet parameters(context, shape, DType::kBF16, {0, shape.moe.experts}, true);
  for (int64_t leaves : {1, 2, 4, 8, 16}) {
    for (const ParameterRegion& region : parameters.regions()) {
      GradientRegion sink(context, region, 1, leaves, true);
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
    GradientRegion sink(context, region, slots, 1, true);
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

}  // namespace
}  // namespace degu
