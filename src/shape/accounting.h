// What a shape costs, counted exactly and in one place: parameters under each definition of N,
// FLOPs per token, bytes. Printed by `degu info`; used by the trainer, the sweep, the fits and the
// planner.
//
// Every function takes a shape with or without zeros to fill (ModelShape::resolved) and throws
// ConfigError for an impossible one.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "shape/model_shape.h"

namespace degu {

// What "N" means. Every scaling law counts differently, and at small sizes the definition
// dominates. Gains of norms and router matrices belong to the blocks and are in all of them; state
// that no gradient reaches (the balancing bias) is in none. With a tied head the one matrix is an
// embedding.
enum class ParameterCount {
  kTotal,              // everything, each matrix once: Hoffmann, Abnar
  kActive,             // everything but the experts that a token does not visit
  kTotalNoEmbedding,   // neither embedding nor head, all experts: Krajewski, Kumar
  kActiveNoEmbedding,  // neither embedding nor head nor unvisited experts: Clark (the released
                       // runs' counts)
  kActiveWithHead      // active, embedding and unembedding counted once each even when tied:
                       // Ludziejewski
};
inline constexpr std::array<ParameterCount, 5> kParameterCounts = {
    ParameterCount::kTotal, ParameterCount::kActive, ParameterCount::kTotalNoEmbedding,
    ParameterCount::kActiveNoEmbedding, ParameterCount::kActiveWithHead};
// The columns of run tables.
constexpr auto enum_names(ParameterCount) {
  return std::array<std::string_view, 5>{"n_total", "n_active", "n_total_no_embedding",
                                         "n_active_no_embedding", "n_active_with_head"};
}
std::string_view parameter_count_text(
    ParameterCount count);  // for people: what it holds and who uses it

// Parameters by part, over all layers and all experts.
struct Parameters {
  int64_t embedding = 0;       // V D
  int64_t head = 0;            // V D, 0 when tied
  int64_t attention = 0;       // per block D A (2 H + 2 G)
  int64_t norms = 0;           // gains: 2 D per block, D at the end, 2 A per block with qk_norm
  int64_t dense_ffn = 0;       // 3 D F per dense block
  int64_t router = 0;          // E D per MoE block; none for hash routing
  int64_t experts = 0;         // 3 D F E per MoE block
  int64_t shared_experts = 0;  // 3 D F (shared) per MoE block
  int64_t experts_active = 0;  // of `experts`, those one token visits: 3 D F K per MoE block
  int64_t total() const {
    return embedding + head + attention + norms + dense_ffn + router + experts + shared_experts;
  }
};
Parameters count_parameters(const ModelShape& shape);
int64_t parameter_count(const ModelShape& shape, ParameterCount count);

// Floating-point operations of one forward pass, per token, mean over a sequence of S tokens.
//
// The convention for utilisation, everywhere: a multiply-add is 2; matrix products only (norms,
// softmax, SwiGLU's pointwise part, rotation, gating and the optimizer are not counted); of
// attention only the unmasked pairs, of which a token has (S + 1) / 2 on average; the head counted;
// look-ups and recomputation not. Documents packed into one sequence are counted as if they were
// one. Capacity drops are not subtracted. A training step does 3 times the forward: the gradient of
// every product is two products.
struct Flops {
  int64_t attention_projections = 0;  // 2 D A (2 H + 2 G) per block
  int64_t attention = 0;              // 2 H A (S + 1) per block: scores and values
  int64_t dense_ffn = 0;              // 6 D F per dense block
  int64_t router = 0;                 // 2 D E per MoE block
  int64_t experts = 0;                // 6 D F K per MoE block
  int64_t shared_experts = 0;         // 6 D F (shared) per MoE block
  int64_t head = 0;                   // 2 D V
  int64_t forward() const {
    return attention_projections + attention + dense_ffn + router + experts + shared_experts + head;
  }
  int64_t training() const { return 3 * forward(); }
};
// `sequence`: S, at least 1.
Flops count_flops(const ModelShape& shape, int64_t sequence);
// Name and value of each operator, in the order of the struct.
std::vector<std::pair<std::string_view, int64_t>> flops_by_operator(const Flops& flops);
// FLOPs of training on `tokens` tokens; a double, for it passes 2^63 on large runs.
double training_flops(const ModelShape& shape, int64_t sequence, double tokens);

struct MemoryOptions {
  int bytes_per_value = 2;   // of packed weights and activations: 2 bf16, 4 fp32
  int bytes_per_moment = 4;  // 4 fp32, 2 bf16 (train.optimizer.moments)
  bool bias_balancing = false;
  int ranks = 1;            // data-parallel; the optimizer's moments are sharded over them
  int expert_parallel = 1;  // ranks that share each layer's experts; divides `ranks` and E
};

// Bytes on each rank, as model/parameters.h and optim/sharded_adamw.h hold them. Routers are packed
// in fp32; gains are fp32 and their own master. A tied embedding is kept as a table and as the
// head's matrix. Padding of packed tiles is not counted.
struct Memory {
  double weights = 0;           // what the forward pass reads
  double backward_weights = 0;  // training: the matrices as dX reads them
  double gradients = 0;         // fp32, one sum; reproducible runs park one more per tree level
  double master = 0;            // fp32 of whatever is packed; whole on each rank
  double moments = 0;           // AdamW's two, sharded
  double router_bias = 0;       // fp32 [E] per MoE block with bias balancing
  double activations_per_token = 0;  // kept for the backward pass
  double kv_cache_per_token = 0;     // 2 L G A values
  double serving() const { return weights + router_bias; }
  double training() const {
    return weights + backward_weights + gradients + master + moments + router_bias;
  }
};
Memory count_memory(const ModelShape& shape, const MemoryOptions& options = {});

// Values kept from forward to backward for each token, all layers: the residual stream at each half
// of a block and the normalised copy of it, queries, keys, values (twice with qk_norm), heads'
// outputs, the three SwiGLU buffers of every visited expert, their inputs and outputs, router
// scores and logits.
double activation_bytes_per_token(const ModelShape& shape, int bytes_per_value);

}  // namespace degu
