// Counts against numbers worked out by hand and against the layer-by-layer list of tensors.
#include "shape/accounting.h"

#include <catch2/catch.hpp>

#include "base/error.h"

namespace {

using degu::ModelShape;
using degu::ParameterCount;

// V 100, D 8, two blocks, 2 heads of width 4 with one key/value head, F 16; the second block has E
// 4 experts of width 5, K 2, one shared.
ModelShape small() {
  const ModelShape s{.vocab = 100,
                     .width = 8,
                     .layers = 2,
                     .heads = 2,
                     .kv_heads = 1,
                     .ffn_width = 16,
                     .moe = {.experts = 4,
                             .top_k = 2,
                             .expert_width = 5,
                             .shared_experts = 1,
                             .first_dense_layers = 1}};
  return s;
}

TEST_CASE("parameters by part") {
  const degu::Parameters p = degu::count_parameters(small());
  CHECK(p.embedding == 800);
  CHECK(p.head == 0);
  CHECK(p.attention == 2 * (8 * 8 + 4 * 8 + 4 * 8 + 8 * 8));  // wq, wk, wv, wo
  CHECK(p.norms == 5 * 8);
  CHECK(p.dense_ffn == 3 * 16 * 8);
  CHECK(p.router == 4 * 8);
  CHECK(p.experts == 4 * 3 * 5 * 8);
  CHECK(p.experts_active == 2 * 3 * 5 * 8);
  CHECK(p.shared_experts == 3 * 5 * 8);
  CHECK(p.total() == 800 + 384 + 40 + 384 + 32 + 480 + 120);
}

TEST_CASE("every definition of N") {
  struct Case {
    const char* name;
    bool tied;
    int64_t expected[5];  // in the order of kParameterCounts
  };
  const Case cases[] = {
      {"tied", true, {2240, 2000, 1440, 1200, 2800}},
      {"untied", false, {3040, 2800, 1440, 1200, 2800}},
  };
  for (const Case& c : cases) {
    INFO(c.name);
    ModelShape s = small();
    s.tied_head = c.tied;
    for (size_t i = 0; i < degu::kParameterCounts.size(); ++i) {
      INFO(degu::enum_name(degu::kParameterCounts[i]));
      CHECK(degu::parameter_count(s, degu::kParameterCounts[i]) == c.expected[i]);
    }
  }
}

TEST_CASE("options that add or remove tensors") {
  ModelShape s = small();
  s.qk_norm = true;
  CHECK(degu::count_parameters(s).norms == 40 + 2 * (4 + 4));
  s.moe.router = degu::RouterKind::kHash;
  CHECK(degu::count_parameters(s).router == 0);
  CHECK(degu::count_flops(s, 4).router == 0);
  s.moe.experts = 0;  // the rest of `moe` says nothing then
  const degu::Parameters dense = degu::count_parameters(s);
  CHECK(dense.dense_ffn == 2 * 384);
  CHECK(dense.experts + dense.experts_active + dense.shared_experts + dense.router == 0);
  CHECK(degu::parameter_count(s, ParameterCount::kTotal) ==
        degu::parameter_count(s, ParameterCount::kActive));
}

// The shape of the speed comparison with PyTorch: 17.84M parameters, of which a token
// multiplies 6.30M.
TEST_CASE("a known model") {
  ModelShape s;
  s.vocab = 8192;
  s.width = 256;
  s.layers = 4;
  s.heads = 4;
  s.tied_head = false;
  s.moe.experts = 8;
  s.moe.top_k = 2;
  s.moe.expert_width = 512;
  CHECK(degu::parameter_count(s, ParameterCount::kTotal) ==
        2 * 2097152 + 4 * 262144 + 4 * (512 + 2048) + 256 + 4 * 8 * 393216);
  CHECK(degu::parameter_count(s, ParameterCount::kTotal) == 17'836'288);
  CHECK(degu::parameter_count(s, ParameterCount::kActiveNoEmbedding) +
            degu::count_parameters(s).head ==
        6'301'952);
}

TEST_CASE("FLOPs per token by operator") {
  const degu::Flops f = degu::count_flops(small(), 6);
  CHECK(f.attention_projections == 2 * 384);
  CHECK(f.attention == 2 * 2 * 8 * 7);
  CHECK(f.dense_ffn == 2 * 384);
  CHECK(f.router == 2 * 32);
  CHECK(f.experts == 2 * 240);
  CHECK(f.shared_experts == 2 * 120);
  CHECK(f.head == 2 * 800);
  CHECK(f.forward() == 768 + 224 + 768 + 64 + 480 + 240 + 1600);
  CHECK(f.training() == 3 * 4144);
  int64_t sum = 0;
  for (const auto& [name, value] : degu::flops_by_operator(f)) sum += value;
  CHECK(sum == f.forward());
  CHECK(degu::training_flops(small(), 6, 1e16) == 3 * 4144 * 1e16);
}

TEST_CASE("attention counts the unmasked pairs") {
  const ModelShape s = small();
  for (int64_t sequence : {1, 2, 7, 128}) {
    int64_t pairs = 0;
    for (int64_t query = 0; query < sequence; ++query) {
      for (int64_t key = 0; key <= query; ++key) ++pairs;
    }
    // Scores and values: 2 products of A multiply-adds per pair, head and block.
    CHECK(degu::count_flops(s, sequence).attention * sequence == pairs * 2 * 2 * 4 * 2 * 2);
  }
  CHECK_THROWS_AS(degu::count_flops(s, 0), degu::ConfigError);
}

TEST_CASE("matrix products and parameters agree") {
  ModelShape s = small();
  s.moe.shared_experts = 0;
  const degu::Flops f = degu::count_flops(s, 1);
  const degu::Parameters p = degu::count_parameters(s);
  // Every active matrix is used once per token, the embedding as the head.
  CHECK(f.forward() - f.attention ==
        2 * (degu::parameter_count(s, ParameterCount::kActive) - p.norms));
}

TEST_CASE("bytes by category") {
  const ModelShape s = small();
  degu::Memory m = degu::count_memory(s, {.bytes_per_value = 2, .bias_balancing = true});
  const double fp32 = 40 + 32;
  const double low = 2240 - fp32;
  CHECK(m.weights == 4 * fp32 + 2 * (low + 800));
  CHECK(m.backward_weights == 2 * low + 4 * 32);
  CHECK(m.gradients == 4 * 2240);
  CHECK(m.master == 4 * (low + 32));
  CHECK(m.moments == 8 * 2240);
  CHECK(m.router_bias == 4 * 4);
  CHECK(m.kv_cache_per_token == 2 * 2 * 1 * 4 * 2);
  CHECK(m.training() ==
        m.weights + m.backward_weights + m.gradients + m.master + m.moments + m.router_bias);

  m = degu::count_memory(s, {.bytes_per_value = 4, .ranks = 4, .expert_parallel = 2});
  CHECK(m.weights == 4 * fp32 + 4 * (low - 480 + 240 + 800));
  CHECK(m.gradients == 4 * (2240 - 240));
  CHECK(m.master == 4 * (low - 240 + 32));
  CHECK(m.moments == 8 * 2240 / 4.0);
  CHECK(degu::count_memory(s, {.bytes_per_moment = 2}).moments == 4 * 2240);
  CHECK(m.router_bias == 0);
  CHECK_THROWS_AS(degu::count_memory(s, {.ranks = 3, .expert_parallel = 2}), degu::ConfigError);
  CHECK_THROWS_AS(degu::count_memory(s, {.ranks = 3, .expert_parallel = 3}), degu::ConfigError);

  ModelShape untied = s;
  untied.tied_head = false;
  m = degu::count_memory(untied);
  CHECK(m.weights == 4 * fp32 + 2 * (low + 800));
  CHECK(m.backward_weights ==
        2 * low + 4 * 32);  // the head's matrix, not the table that is looked up
}

TEST_CASE("activations kept per token") {
  ModelShape s = small();
  // Attention: x, norm, q, out of 8 values, k and v of 4; inverse rms and two log-sum-exps in fp32.
  const double attention = 2 * (8 + 8 + 8 + 8 + 4 + 4) + 4 * 3;
  const double dense = 2 * (8 + 8 + 3 * 16) + 4;
  const double moe = 2 * (8 + 8 + 3 * 5 * 3 + 2 * 2 * 8) + 4 + 4 * (4 + 4 + 2 + 2 + 1);
  const double top = 2 * (8 + 8) + 4;
  CHECK(degu::activation_bytes_per_token(s, 2) == 2 * attention + dense + moe + top);
  s.moe.experts = 0;
  CHECK(degu::activation_bytes_per_token(s, 2) == 2 * (attention + dense) + top);
}

}  // namespace
