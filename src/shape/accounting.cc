#include "shape/accounting.h"

#include "base/error.h"

namespace degu {
namespace {

int64_t moe_layers(const ModelShape& s) {
  return s.moe.experts > 0 ? s.layers - s.moe.first_dense_layers : 0;
}

int64_t attention_matrices(const ModelShape& s) {
  return int64_t{s.width} * s.head_width * (2 * int64_t{s.heads} + 2 * int64_t{s.kv_heads});
}

bool has_router_matrix(const ModelShape& s) {
  return s.moe.router != RouterKind::kHash;
}

}  // namespace

std::string_view parameter_count_text(ParameterCount count) {
  switch (count) {
    case ParameterCount::kTotal:
      return "all parameters (Hoffmann, Abnar)";
    case ParameterCount::kActive:
      return "all but unvisited experts";
    case ParameterCount::kTotalNoEmbedding:
      return "all experts, neither embedding nor head (Krajewski, Kumar)";
    case ParameterCount::kActiveNoEmbedding:
      return "one token's, neither embedding nor head (Clark)";
    case ParameterCount::kActiveWithHead:
      break;
  }
  return "one token's, embedding and unembedding once each (Ludziejewski)";
}

Parameters count_parameters(const ModelShape& shape) {
  const ModelShape s = shape.resolved();
  const int64_t d = s.width;
  const int64_t layers = s.layers;
  const int64_t moe = moe_layers(s);
  const int64_t expert = 3 * d * s.moe.expert_width;
  Parameters p;
  p.embedding = s.vocab * d;
  p.head = s.tied_head ? 0 : s.vocab * d;
  p.attention = layers * attention_matrices(s);
  p.norms = layers * (2 * d + (s.qk_norm ? 2 * int64_t{s.head_width} : 0)) + d;
  p.dense_ffn = (layers - moe) * 3 * d * s.ffn_width;
  p.router = has_router_matrix(s) ? moe * d * s.moe.experts : 0;
  p.experts = moe * expert * s.moe.experts;
  p.experts_active = moe * expert * s.moe.top_k;
  p.shared_experts = moe * expert * s.moe.shared_experts;
  return p;
}

int64_t parameter_count(const ModelShape& shape, ParameterCount count) {
  const Parameters p = count_parameters(shape);
  const int64_t total = p.total();
  const int64_t unvisited = p.experts - p.experts_active;
  switch (count) {
    case ParameterCount::kTotal:
      return total;
    case ParameterCount::kActive:
      return total - unvisited;
    case ParameterCount::kTotalNoEmbedding:
      return total - p.embedding - p.head;
    case ParameterCount::kActiveNoEmbedding:
      return total - p.embedding - p.head - unvisited;
    case ParameterCount::kActiveWithHead:
      break;
  }
  return total - unvisited - p.head + p.embedding;
}

Flops count_flops(const ModelShape& shape, int64_t sequence) {
  if (sequence < 1) throw ConfigError("sequence length is {}, must be at least 1", sequence);
  const ModelShape s = shape.resolved();
  const int64_t d = s.width;
  const int64_t moe = moe_layers(s);
  const int64_t expert = 6 * d * s.moe.expert_width;
  Flops f;
  f.attention_projections = 2 * s.layers * attention_matrices(s);
  // Two products (scores, values) over (S + 1) / 2 keys: 2 * 2 * H A * (S + 1) / 2.
  f.attention = s.layers * 2 * int64_t{s.heads} * s.head_width * (sequence + 1);
  f.dense_ffn = (s.layers - moe) * 6 * d * s.ffn_width;
  f.router = has_router_matrix(s) ? moe * 2 * d * s.moe.experts : 0;
  f.experts = moe * expert * s.moe.top_k;
  f.shared_experts = moe * expert * s.moe.shared_experts;
  f.head = 2 * d * s.vocab;
  return f;
}

std::vector<std::pair<std::string_view, int64_t>> flops_by_operator(const Flops& f) {
  return {{"attention_projections", f.attention_projections},
          {"attention", f.attention},
          {"dense_ffn", f.dense_ffn},
          {"router", f.router},
          {"experts", f.experts},
          {"shared_experts", f.shared_experts},
          {"head", f.head}};
}

double training_flops(const ModelShape& shape, int64_t sequence, double tokens) {
  return static_cast<double>(count_flops(shape, sequence).training()) * tokens;
}

Memory count_memory(const ModelShape& shape, const MemoryOptions& options) {
  const ModelShape s = shape.resolved();
  if (options.ranks < 1 || options.expert_parallel < 1 ||
      options.ranks % options.expert_parallel != 0) {
    throw ConfigError("expert_parallel is {}, must divide the number of ranks, which is {}",
                      options.expert_parallel, options.ranks);
  }
  if (s.moe.experts > 0 && s.moe.experts % options.expert_parallel != 0) {
    throw ConfigError("expert_parallel is {}, must divide moe.experts, which is {}",
                      options.expert_parallel, s.moe.experts);
  }
  const Parameters p = count_parameters(s);
  const double value = options.bytes_per_value;
  const double fp32 = static_cast<double>(p.norms + p.router);
  const double experts = static_cast<double>(p.experts);
  const double matrices =
      static_cast<double>(p.total()) - fp32 - experts;  // low precision, on every rank
  const double local_experts = experts / options.expert_parallel;
  const double embedding = static_cast<double>(p.embedding);

  Memory m;
  // A tied embedding is looked up as a table and multiplied as the head's matrix.
  m.weights = 4 * fp32 + value * (matrices + local_experts + (s.tied_head ? embedding : 0));
  const double router = 4 * static_cast<double>(p.router);
  m.backward_weights = value * (matrices + local_experts - (s.tied_head ? 0 : embedding)) + router;
  m.gradients = 4 * (fp32 + matrices + local_experts);
  m.master = 4 * (matrices + local_experts) + router;
  // Each parameter's moments live on one rank: all ranks share the dense part, and of each expert
  // the ranks / expert_parallel that hold it.
  m.moments = 2 * options.bytes_per_moment * (matrices + fp32 + experts) / options.ranks;
  m.router_bias =
      options.bias_balancing ? 4.0 * static_cast<double>(moe_layers(s)) * s.moe.experts : 0;
  m.activations_per_token = activation_bytes_per_token(s, options.bytes_per_value);
  m.kv_cache_per_token = 2.0 * s.layers * s.kv_heads * s.head_width * value;
  return m;
}

double activation_bytes_per_token(const ModelShape& shape, int bytes_per_value) {
  const ModelShape s = shape.resolved();
  const double d = s.width;
  const double queries = double(s.heads) * s.head_width;
  const double keys = double(s.kv_heads) * s.head_width;
  const double value = bytes_per_value;
  // x, norm(x), q, k, v, heads' outputs; inverse rms and log-sum-exp in fp32.
  double attention = value * (2 * d + 2 * queries + 2 * keys) + 4.0 * (1 + s.heads);
  if (s.qk_norm) attention += value * (queries + keys) + 4.0 * (s.heads + s.kv_heads);
  const double half = value * 2 * d + 4;  // the second half's x, norm(x), inverse rms
  const double dense = half + value * 3 * s.ffn_width;
  const double k = s.moe.top_k;
  const double width = s.moe.expert_width;
  const double moe = half + value * 3 * width * (k + s.moe.shared_experts)  // gate, up, product
                     + value * 2 * k * d  // rows in and out of experts
                     +
                     4.0 * (2 * s.moe.experts + 2 * k + 1);  // logits, scores, choices, gates, lse
  const double moe_count = static_cast<double>(moe_layers(s));
  return s.layers * attention + (s.layers - moe_count) * dense + moe_count * moe + value * 2 * d +
         4;
}

}  // namespace degu
