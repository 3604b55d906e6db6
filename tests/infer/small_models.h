// Models small enough to serve thousands of tokens in a test, one per part that parity could break
// on.
#pragma once

#include <vector>

#include "shape/model_shape.h"

namespace degu::testing {

struct ModelCase {
  const char* name;
  ModelShape shape;
};

inline ModelShape small_shape() {
  const ModelShape shape{.vocab = 75,
                         .width = 48,
                         .layers = 2,
                         .heads = 4,
                         .kv_heads = 2,
                         .head_width = 12,
                         .ffn_width = 80,
                         .init_std = 0.15,
                         .moe = {.experts = 8, .top_k = 2, .expert_width = 40}};
  return shape.resolved();
}

inline std::vector<ModelCase> serving_models() {
  std::vector<ModelCase> cases;
  const auto add = [&](const char* name, auto&& change) {
    ModelShape shape = small_shape();
    change(shape);
    cases.push_back({name, shape.resolved()});
  };
  add("softmax router", [](ModelShape&) {});
  add("dense", [](ModelShape& s) { s.moe = {}; });
  add("sigmoid router with shared experts", [](ModelShape& s) {
    s.moe.router = RouterKind::kSigmoid;
    s.moe.shared_experts = 2;
  });
  add("hash router with an untied head", [](ModelShape& s) {
    s.moe.router = RouterKind::kHash;
    s.tied_head = false;
  });
  add("qk norm with a dense first layer", [](ModelShape& s) {
    s.qk_norm = true;
    s.layers = 3;
    s.moe.first_dense_layers = 1;
  });
  add("muP without renormalisation", [](ModelShape& s) {
    s.mup_base_width = 24;
    s.moe.renormalize = false;
    s.kv_heads = 4;
  });
  return cases;
}

}  // namespace degu::testing
