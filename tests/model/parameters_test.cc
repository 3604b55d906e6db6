#include "model/parameters.h"

#include <catch2/catch.hpp>

#include "shape/accounting.h"
#include "tests/model/tiny_model.h"

namespace degu {
namespace {

TEST_CASE("the model holds exactly the parameters that the accounting counts") {
  for (int experts : {0, 4}) {
    ModelShape shape = testing::tiny_shape(experts);
    shape.tied_head = experts == 0;
    shape.moe.shared_experts = experts > 0 ? 2 : 0;
    shape.qk_norm = true;
    int64_t elements = 0;
    for (const ParameterSpec& spec : parameter_specs(shape)) {
      if (spec.role != ParameterRole::kState) elements += spec.shape.elements();
    }
    CHECK(elements == parameter_count(shape, ParameterCount::kTotal));
  }
}

TEST_CASE("initial values do not depend on which experts a rank holds") {
  const ModelShape shape = testing::tiny_shape(4);
  Context context;
  ParameterSet all(context, shape, DType::kBF16, {0, 4}, false);
  ParameterSet part(context, shape, DType::kBF16, {2, 2}, false);
  all.initialise(context, 7);
  part.initialise(context, 7);
  const View<float> whole = all.get("blocks.1.moe.up").value.as<float>();
  const View<float> own = part.get("blocks.1.moe.up").value.as<float>();
  for (int64_t i = 0; i < own.elements(); ++i) REQUIRE(own[i] == whole[whole.elements() / 2 + i]);
  CHECK(whole[0] != whole[whole.elements() / 2]);
}

TEST_CASE("muP scales hidden matrices and leaves embeddings and gains alone") {
  ModelShape shape = testing::tiny_shape(0);
  shape.mup_base_width = 4;
  shape.ffn_width = 0;
  for (const ParameterSpec& spec : parameter_specs(shape.resolved())) {
    INFO(spec.name);
    const bool matrix = spec.role == ParameterRole::kMatrix;
    CHECK((spec.rate_multiplier == 1.0) == !matrix);
    if (spec.name == "blocks.0.attention.wq") CHECK(spec.rate_multiplier == 0.25);
  }
}

}  // namespace
}  // namespace degu
