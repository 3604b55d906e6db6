// The layer of `degu bench layer` at a small size, on every backend: both cases run, leave nothing
// in scratch memory, and count the work that the accounting of a model counts.
#include "cli/layer_bench.h"

#include <catch2/catch.hpp>

#include "shape/accounting.h"
#include "tests/support/device_testing.h"

namespace degu {
namespace {

using namespace degu::testing;

constexpr LayerSize kSmall{.tokens = 96, .width = 32, .experts = 4, .top_k = 2, .expert_width = 16};

void check_layer(Context& context) {
  const std::vector<KernelCase> cases = layer_cases(context, kSmall);
  REQUIRE(cases.size() == 2);
  for (const KernelCase& layer : cases) {
    INFO(layer.name);
    const size_t used = context.scratch().used();
    layer.run(context);
    layer.run(context);
    CHECK(context.scratch().used() == used);
  }
  if (context.device_state() != nullptr) context.device_state()->synchronize();
}

TEST_CASE("a layer runs forward and backward", "[bench][device]") {
  Context context(test_options(default_isa(), 2));
  check_layer(context);
  on_gpu(check_layer);
}

TEST_CASE("a layer's work is what the accounting counts", "[bench]") {
  Context context(test_options(default_isa(), 1));
  const ModelShape shape{
      .width = kSmall.width,
      .layers = 1,
      .moe = {
          .experts = kSmall.experts, .top_k = kSmall.top_k, .expert_width = kSmall.expert_width}};
  const Flops flops = count_flops(shape.resolved(), 1);
  const auto work = static_cast<double>(kSmall.tokens * (flops.experts + flops.router));
  const std::vector<KernelCase> cases = layer_cases(context, kSmall);
  CHECK(cases[0].work == work);
  CHECK(cases[1].work == 3 * work);
}

TEST_CASE("a layer of impossible size is refused", "[bench]") {
  Context context(test_options(default_isa(), 1));
  LayerSize size = kSmall;
  size.top_k = 5;
  CHECK_THROWS_AS(layer_cases(context, size), ConfigError);
  size = kSmall;
  size.tokens = 0;
  CHECK_THROWS_AS(layer_cases(context, size), ConfigError);
}

}  // namespace
}  // namespace degu
