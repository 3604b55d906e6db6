// A sweep that an older version began is known again: keys that came since do not stand in what its
// runs are recognised by.
#include <catch2/catch.hpp>

#include "base/random.h"
#include "config/yaml.h"
#include "train/run.h"

namespace degu {
namespace {

// What the runs of a sweep share, as the first version of this program wrote it for a sweep that it
// ran; the recorded hash of one of its runs is below.
constexpr const char* kFirstSweep = R"(model:
  vocab: 1024
  width: 64
  layers: 2
  heads: 2
  kv_heads: 0
  head_width: 0
  ffn_width: 0
  qk_norm: false
  tied_head: true
  rope_theta: 10000
  norm_eps: 1e-05
  mup_base_width: 64
  init_std: 0.06
  moe:
    experts: 0
    top_k: 2
    expert_width: 0
    shared_experts: 0
    first_dense_layers: 0
    router: softmax
    renormalize: true
    gate_scale: 1
    capacity_factor: 0
data:
  paths: [runs/qs2/data]
  mixture: []
  sequence_length: 128
  confine_documents: true
  seed: 1
  validation_tokens: 32768
train:
  precision: bf16
  batch_sequences: 8
  unit_sequences: 0
  micro_batch_sequences: 0
  tokens: 0
  steps: 0
  flops: 0
  reproducible: true
  seed: 1
  optimizer:
    learning_rate: 0.006
    beta1: 0.9
    beta2: 0.95
    eps: 1e-08
    weight_decay: 0.1
    clip: 1
    schedule:
      kind: cosine
      warmup: 0.05
      warmup_steps: 0
      final_ratio: 0.1
      decay: 0.2
  balance:
    aux_loss: 0.01
    z_loss: 0
    bias_update: 0
    group_sequences: 0
    capacity_group_sequences: 1
  evaluate_every: 0
  checkpoint_every: 0
  keep_checkpoints: 2
  log_every: 10
  max_bad_steps: 10
cluster:
  expert_parallel: 1
  threads: 0
)";

RunConfig first_sweep() {
  return read_config<RunConfig>(YamlDocument::from_text(kFirstSweep, "sweep.yaml"));
}

TEST_CASE("an old configuration keeps its identity") {
  CHECK(identity_text(first_sweep()) == kFirstSweep);
}

TEST_CASE("a run of an old sweep keeps its hash") {
  // As scaling/sweep/sweep.cc hashes run c1.2e+12-d32-l1-dense-lr0.006-s1 of that sweep, whose
  // state file has config_hash: f59d6387f881867d.
  ModelShape shape = first_sweep().model;
  shape.width = 32;
  shape.layers = 1;
  shape.kv_heads = 2;
  shape.head_width = 16;
  shape.ffn_width = 96;
  uint64_t hash = hash_name(to_yaml(shape));
  hash = hash_name(fmt::format("{:.17g} {:.17g} {}", 1.2e12, 0.006, 1), hash);
  const std::string data = "39cd2f298454ee8e77aa7209f1b67b3ba4f1f8612006a5dbb77247dddcf8aa22";
  CHECK(fmt::format("{:016x}", hash_name(identity_text(first_sweep()) + data, hash)) ==
        "f59d6387f881867d");
}

TEST_CASE("a later key that is set makes another configuration") {
  const std::string plain = identity_text(first_sweep());
  RunConfig replayed = first_sweep();
  replayed.train.replay_routes = "routes.jsonl";
  CHECK(identity_text(replayed) != plain);
  CHECK(identity_text(replayed).find("replay_routes: routes.jsonl\n") != std::string::npos);
  CHECK(identity_text(replayed).find("record_routes") == std::string::npos);
  RunConfig rounded = first_sweep();
  rounded.train.optimizer.moments = Precision::kBf16;
  CHECK(identity_text(rounded).find("    moments: bf16\n") != std::string::npos);
  RunConfig seeded = first_sweep();
  seeded.train.seed = 2;
  CHECK(identity_text(seeded) != plain);
}

}  // namespace
}  // namespace degu
