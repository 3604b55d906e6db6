// Defaults that follow from other fields, and shapes that cannot be.
#include "shape/model_shape.h"

#include <catch2/catch.hpp>
#include <functional>

#include "config/yaml.h"

namespace {

using degu::ModelShape;

TEST_CASE("zeros are filled from the other fields") {
  ModelShape shape;
  shape.width = 96;
  shape.heads = 3;
  shape.moe.experts = 8;
  const ModelShape full = shape.resolved();
  CHECK(full.kv_heads == 3);
  CHECK(full.head_width == 32);
  CHECK(full.ffn_width == 256);  // 8/3 of 96
  CHECK(full.moe.expert_width == 128);
  CHECK(full.resolved().ffn_width == 256);
  shape.width = 64;
  shape.heads = 2;
  CHECK(shape.resolved().ffn_width == 176);  // 170.67, up to a multiple of 16
  shape.ffn_width = 100;
  shape.kv_heads = 1;
  shape.head_width = 6;
  shape.moe.expert_width = 7;
  const ModelShape given = shape.resolved();
  CHECK(given.ffn_width == 100);
  CHECK(given.kv_heads == 1);
  CHECK(given.head_width == 6);
  CHECK(given.moe.expert_width == 7);
}

TEST_CASE("only blocks above the dense ones have experts") {
  ModelShape shape;
  shape.layers = 3;
  CHECK_FALSE(shape.is_moe_layer(2));
  shape.moe.experts = 4;
  shape.moe.first_dense_layers = 1;
  CHECK_FALSE(shape.is_moe_layer(0));
  CHECK(shape.is_moe_layer(1));
}

TEST_CASE("impossible shapes are refused") {
  struct Case {
    std::function<void(ModelShape&)> change;
    const char* message;
  };
  const Case cases[] = {
      {[](auto& s) { s.vocab = 1; }, "vocab is 1, must be from 2 to 16777216"},
      {[](auto& s) { s.width = 0; }, "width is 0, must be from 1 to 1048576"},
      {[](auto& s) { s.layers = 0; }, "layers is 0, must be from 1 to 16384"},
      {[](auto& s) { s.heads = 0; }, "heads is 0, must be from 1 to 1048576"},
      {[](auto& s) { s.heads = 3; },
       "heads is 3, must divide width, which is 64; or give head_width"},
      {[](auto& s) { s.kv_heads = 3; }, "kv_heads is 3, must be from 0 to 2"},
      {[](auto& s) { s.heads = 4, s.kv_heads = 3; },
       "kv_heads is 3, must divide heads, which is 4"},
      {[](auto& s) { s.heads = 64; },
       "head_width is 1 (width / heads), must be even and at least 2: rotary positions turn pairs"},
      {[](auto& s) { s.head_width = 5; },
       "head_width is 5, must be even and at least 2: rotary positions turn pairs"},
      {[](auto& s) { s.ffn_width = -1; }, "ffn_width is -1, must be from 0 to 4194304"},
      {[](auto& s) { s.norm_eps = 0; }, "norm_eps is 0, must be above 0"},
      {[](auto& s) { s.init_std = -1; }, "init_std is -1, must be above 0, or 0 for the default"},
      {[](auto& s) { s.moe.experts = -1; }, "moe.experts is -1, must be from 1 to 65536"},
      {[](auto& s) { s.moe.experts = 4, s.moe.top_k = 5; },
       "moe.top_k is 5, must be from 1 to moe.experts, which is 4"},
      {[](auto& s) { s.moe.experts = 4, s.moe.top_k = 0; },
       "moe.top_k is 0, must be from 1 to moe.experts, which is 4"},
      {[](auto& s) { s.moe.experts = 4, s.moe.top_k = 3; },
       "moe.expert_width is 0 and ffn_width 176 is no multiple of moe.top_k 3; give the width of "
       "an expert"},
      {[](auto& s) { s.moe.experts = 4, s.moe.first_dense_layers = 2; },
       "moe.first_dense_layers is 2, must be from 0 to 1 so that a block of 2 has experts"},
      {[](auto& s) { s.moe.experts = 4, s.moe.capacity_factor = -1; },
       "moe.capacity_factor is -1, must be 0 (dropless) or above"},
      {[](auto& s) { s.moe.experts = 65536, s.width = 1 << 20, s.layers = 1 << 14; },
       "width is 1048576: with these layers and experts the model has over 1.2e+18 parameters"},
  };
  for (const Case& bad : cases) {
    ModelShape shape;
    bad.change(shape);
    INFO(bad.message);
    CHECK_THROWS_WITH(shape.check(), bad.message);
    CHECK_THROWS_AS(shape.resolved(), degu::ConfigError);
  }
  CHECK_NOTHROW(ModelShape{}.check());
}

TEST_CASE("a bad shape in a file is told with its line") {
  const auto document =
      degu::YamlDocument::from_text("width: 64\nmoe:\n  experts: 4\n  top_k: 9\n", "m.yaml");
  CHECK_THROWS_WITH(degu::read_config<ModelShape>(document),
                    "m.yaml:4: moe.top_k is 9, must be from 1 to moe.experts, which is 4");
}

}  // namespace
