// What a model is: the sizes and switches from which everything else follows (parameters, FLOPs,
// bytes: shape/accounting.h). The `model:` part of a run's YAML is read straight into this struct.
//
// D width · L layers · H heads · G key/value heads · A head width · V vocabulary · F dense
// feed-forward width · E experts · K experts per token
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "config/fields.h"

namespace degu {

// How a token finds its experts (src/moe/routers/registry.cc has one line per member).
enum class RouterKind { kSoftmax, kSigmoid, kHash };
constexpr auto enum_names(RouterKind) {
  return std::array<std::string_view, 3>{"softmax", "sigmoid", "hash"};
}

// The feed-forward of a block as routed experts. `experts: 0` makes every block dense.
struct MoeShape {
  int experts = 0;             // E
  int top_k = 2;               // K
  int expert_width = 0;        // F of one expert; 0: ffn_width / top_k (equal active size)
  int shared_experts = 0;      // experts of the same width that every token visits
  int first_dense_layers = 0;  // this many blocks at the bottom stay dense
  RouterKind router = RouterKind::kSoftmax;
  bool renormalize = true;  // gates of the chosen experts sum to one
  double gate_scale = 1.0;  // gates are multiplied with it after renormalisation
  double capacity_factor =
      0;  // 0: dropless; else an expert takes ceil(factor * K * tokens / E) rows per capacity group

  void fields(Fields& f) {
    f("experts", experts, "routed experts per MoE block; 0: all blocks are dense");
    f("top_k", top_k, "experts each token visits");
    f("expert_width", expert_width, "hidden width of one expert; 0: ffn_width / top_k");
    f("shared_experts", shared_experts, "experts of the same width that every token visits");
    f("first_dense_layers", first_dense_layers, "blocks at the bottom that stay dense");
    f("router", router, "how a token finds its experts: softmax, sigmoid or hash");
    f("renormalize", renormalize, "gates of the chosen experts sum to one");
    f("gate_scale", gate_scale, "factor on all gates after renormalisation");
    f("capacity_factor", capacity_factor,
      "0: no token is dropped; else rows per expert and capacity group, relative to the mean");
  }
};

struct ModelShape {
  int vocab = 1024;       // V
  int width = 64;         // D
  int layers = 2;         // L
  int heads = 2;          // H
  int kv_heads = 0;       // G; 0: as many as heads
  int head_width = 0;     // A; 0: width / heads
  int ffn_width = 0;      // F; 0: 8/3 width rounded up to a multiple of 16
  bool qk_norm = false;   // RMSNorm on each query and key head before rotation
  bool tied_head = true;  // the output matrix is the embedding
  double rope_theta = 10000.0;
  double norm_eps = 1e-5;
  int mup_base_width = 0;  // 0: standard parametrisation; else muP relative to this width
  double init_std = 0;     // 0: .02, or under muP .48 / sqrt(mup_base_width)
  MoeShape moe;

  void fields(Fields& f) {
    f("vocab", vocab, "vocabulary size; must be the tokenizer's");
    f("width", width, "residual width D");
    f("layers", layers, "blocks");
    f("heads", heads, "query heads");
    f("kv_heads", kv_heads, "key/value heads (grouped-query attention); 0: as many as heads");
    f("head_width", head_width, "width of one head, even; 0: width / heads");
    f("ffn_width", ffn_width,
      "hidden width of a dense SwiGLU block; 0: 8/3 width, a multiple of 16");
    f("qk_norm", qk_norm, "RMSNorm on each query and key head before rotation");
    f("tied_head", tied_head, "the output matrix is the embedding");
    f("rope_theta", rope_theta, "base of the rotary frequencies");
    f("norm_eps", norm_eps, "added to the mean square in RMSNorm");
    f("mup_base_width", mup_base_width,
      "0: standard parametrisation; else muP: learning rates found at this width hold at every "
      "width");
    f("init_std", init_std,
      "standard deviation of matrix entries at initialisation, under muP at the base width; 0: "
      "0.02, "
      "or 0.48 / sqrt(mup_base_width)");
    f("moe", moe, "the feed-forward as routed experts");
  }

  // Fills the fields that were left 0 and checks that all fit together.
  // ConfigError naming the field, its value and what it must be.
  void check() const;
  ModelShape resolved() const;

  bool is_moe_layer(int layer) const { return moe.experts > 0 && layer >= moe.first_dense_layers; }
};

}  // namespace degu
