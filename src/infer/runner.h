// One pass of the model over new tokens of several sequences: the only place where serving calls
// Transformer::forward.
//
// What a pass runs is a PassPlan: plain numbers, so that one rank can schedule for all and send
// each its plan (expert_parallel.h). A pass holds no state but the cached keys and values in the
// pages that its plan names.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "infer/decode_graphs.h"
#include "infer/kv_cache.h"
#include "model/transformer.h"
#include "tensor/device.h"

namespace degu {

// New tokens of one sequence.
struct SequenceRows {
  int64_t first_position = 0;   // keys of the sequence that are in its pages already
  std::vector<int32_t> tokens;  // at positions first_position, first_position + 1, …
  std::vector<int32_t> pages;   // of all blocks from position 0 to the last new token
  std::vector<int32_t> fresh;   // those among them that hold nothing yet; zeroed before use
  int64_t logits_from = 0;      // rows [logits_from, tokens.size()) want logits

  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
  int64_t logit_rows() const { return rows() - logits_from; }
};

struct PassPlan {
  std::vector<SequenceRows> sequences;

  int64_t rows() const;
  int64_t logit_rows() const;
};

// A plan as bytes, for the ranks that follow. DataError when `bytes` is not one.
std::string encode_plan(const PassPlan& plan);
PassPlan decode_plan(std::string_view bytes);

// What a pass leaves; views are valid until the next pass.
struct PassOutput {
  View<float> logit_RV;             // the wanted rows, in the plan's order
  std::vector<AnyView> expert_LTK;  // int32 experts of every row, one view per MoE layer
  double exchange_seconds = 0;      // in which tokens travelled to experts on other ranks and back
};

struct PassLimits {
  int64_t rows = 512;        // most new tokens in a pass
  int64_t logit_rows = 256;  // most rows with logits
};

// ConfigError naming the reason when a model cannot be served with the promise that a token's
// result depends on its own past alone: routers that are not causal or not invariant to the batch,
// and experts of limited capacity.
void require_servable(const ModelShape& shape);

class ModelRunner {
 public:
  // `kv_type`: the activation type, or int8 (kernels/api/attention.h). `graphs`: on a GPU that has
  // all experts, decode passes become graphs (infer/decode_graphs.h); results are the same.
  // References outlive the runner. ConfigError as require_servable.
  ModelRunner(Context& context, ParameterSet& parameters, const Transformer& model,
              const PassLimits& limits, DType kv_type, int32_t pages, bool graphs = true);

  const ModelShape& shape() const { return model_.shape(); }
  const PassLimits& limits() const { return limits_; }
  KvMemory& memory() { return kv_; }
  // Bytes of everything but weights and pages, for the same arguments.
  static size_t workspace_bytes(const ParameterSet& parameters, const Transformer& model,
                                const PassLimits& limits);

  // Collective over the expert group; a rank without work brings an empty plan. ShapeError when the
  // plan is over the limits.
  PassOutput run(const PassPlan& plan);
  GraphStats graph_stats() const;

 private:
  void start_graphs(bool wanted, AnyView inputs);
  void load(const PassPlan& plan);
  void forward(const Batch& batch);
  void run_decode(const PassPlan& plan);
  void run_rows(const PassPlan& plan);

  Context& context_;
  ParameterSet& parameters_;
  const Transformer& model_;
  PassLimits limits_;
  KvMemory kv_;
  Arena arena_;
  Activations activations_;
  AnyView wanted_R_, h_RD_, logit_RV_;
  std::vector<OnHost> on_host_;  // what the last pass's output shows
  std::vector<int32_t> tokens_, positions_, table_;
  std::vector<int64_t> offsets_, first_position_, all_rows_;
  int64_t max_pages_ = 0;
  std::unique_ptr<DecodeGraphs> graphs_;
  std::string no_graphs_;  // why there are none
};

}  // namespace degu
