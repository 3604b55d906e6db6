// The `train:` and `cluster:` parts of a run's YAML, and the whole run.
#pragma once

#include <string>

#include "comm/mesh.h"
#include "config/fields.h"
#include "data/data_config.h"
#include "nn/attention_by.h"
#include "nn/recompute.h"
#include "shape/model_shape.h"
#include "tensor/view.h"

namespace degu {

enum class Precision { kFp32, kBf16 };
constexpr auto enum_names(Precision) {
  return std::array<std::string_view, 2>{"fp32", "bf16"};
}
constexpr DType activation_type(Precision p) {
  return p == Precision::kFp32 ? DType::kF32 : DType::kBF16;
}

// What AdamW's moments are held in: a precision's own type.
constexpr DType moment_type(Precision p) {
  return activation_type(p);
}

enum class ScheduleKind { kCosine, kWsd, kConstant };
constexpr auto enum_names(ScheduleKind) {
  return std::array<std::string_view, 3>{"cosine", "wsd", "constant"};
}

struct ScheduleConfig {
  ScheduleKind kind = ScheduleKind::kCosine;
  double warmup = 0.05;      // share of the run
  int64_t warmup_steps = 0;  // instead of the share
  double final_ratio = 0.1;  // last learning rate over the peak
  double decay = 0.2;        // wsd: share of the run in which the rate falls (1 - sqrt)

  void fields(Fields& f) {
    f("kind", kind, "cosine, wsd (warm-up, stable, decay) or constant");
    f("warmup", warmup, "share of the run in which the rate rises from 0");
    f("warmup_steps", warmup_steps,
      "steps in which the rate rises from 0, instead of a share; 0: the share");
    f("final_ratio", final_ratio, "last learning rate relative to the peak");
    f("decay", decay, "wsd: share of the run in which the rate falls");
  }
};

struct OptimizerConfig {
  double learning_rate = 3e-3;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;  // matrices only: not norms, embeddings or routers' biases
  double clip = 1.0;          // gradient norm; 0: no clipping
  Precision moments = Precision::kFp32;
  ScheduleConfig schedule;

  void fields(Fields& f) {
    f("learning_rate", learning_rate, "peak learning rate (muP: at the base width)");
    f("beta1", beta1, "AdamW, decay of the mean");
    f("beta2", beta2, "AdamW, decay of the mean square");
    f("eps", eps, "AdamW, added to the root of the mean square");
    f("weight_decay", weight_decay, "decoupled decay of matrices; norms and embeddings have none");
    f("clip", clip, "largest gradient norm; 0: no clipping");
    f("moments", moments,
      "what AdamW's mean and mean square are held in: fp32, or bf16 with stochastic rounding, 4 "
      "bytes less per parameter");
    f("schedule", schedule, "learning rate over the run");
  }
};

struct BalanceConfig {
  double aux_loss = 0.01;
  double z_loss = 0.0;
  double bias_update = 0.0;
  int group_sequences = 0;
  int capacity_group_sequences = 1;

  void fields(Fields& f) {
    f("aux_loss", aux_loss, "weight of the load-balancing loss; 0: none");
    f("z_loss", z_loss, "weight of the router z-loss (mean of squared log-sum-exp); 0: none");
    f("bias_update", bias_update,
      "auxiliary-loss-free balancing: each step moves an expert's selection bias by this much; 0: "
      "off");
    f("group_sequences", group_sequences,
      "sequences over which the balancing loss counts; must divide a unit; 0: the unit");
    f("capacity_group_sequences", capacity_group_sequences,
      "sequences over which capacity counts, with model.moe.capacity_factor; must divide a unit");
  }
};

struct TrainConfig {
  Precision precision = Precision::kBf16;
  int64_t batch_sequences = 16;       // per step, over all ranks
  int64_t unit_sequences = 0;         // 0: batch_sequences / 8, at least 1
  int64_t micro_batch_sequences = 0;  // per rank; 0: the rank's share at once
  int64_t tokens = 0;                 // exactly one of tokens, steps, flops
  int64_t steps = 0;
  double flops = 0;
  Recompute recompute = Recompute::kNone;
  AttentionBy attention = AttentionBy::kOwn;
  bool reproducible = true;
  bool shard_gradients = false;
  bool overlap_reduction = false;
  int64_t seed = 1;
  OptimizerConfig optimizer;
  BalanceConfig balance;
  int64_t evaluate_every = 0;    // steps; 0: only at the end
  int64_t checkpoint_every = 0;  // steps; 0: only at the end
  bool async_checkpoint = false;
  int keep_checkpoints = 2;
  int log_every = 10;
  int max_bad_steps = 10;
  bool record_routes = false;
  std::string replay_routes;

  void fields(Fields& f) {
    f("precision", precision, "type of weights and activations: bf16 or fp32 (masters are fp32)");
    f("batch_sequences", batch_sequences, "sequences per optimizer step, over all ranks");
    f("unit_sequences", unit_sequences,
      "sequences whose gradient is one partial sum; divides the batch into a power of two; 0: "
      "batch / 8");
    f("micro_batch_sequences", micro_batch_sequences,
      "sequences per forward and backward pass of one rank; 0: the rank's whole share");
    f("tokens", tokens, "length of the run in training tokens (one of tokens, steps, flops)");
    f("steps", steps, "length of the run in optimizer steps");
    f("flops", flops, "length of the run in training FLOPs, by shape/accounting.h");
    f("recompute", recompute,
      "what the backward pass computes again instead of keeping it: none, experts or block");
    f("attention", attention,
      "whose kernels compute attention in training passes: own, or cudnn (GPUs, bf16, "
      "reproducible: "
      "false; docs/cuda.md)");
    f("reproducible", reproducible, "the same bits on every layout of ranks");
    f("shard_gradients", shard_gradients,
      "reduce each block's gradients when its backward pass is done and keep this rank's shard "
      "alone: less memory, a reduction in every pass instead of one in every step");
    f("overlap_reduction", overlap_reduction,
      "with shard_gradients: a block's gradients are reduced while the next block's are computed, "
      "which takes memory for a second block; between GPUs alone it saves time");
    f("seed", seed, "initial weights, rounding of bf16 moments (data.seed orders the data)");
    f("optimizer", optimizer, "AdamW and its schedule");
    f("balance", balance, "what keeps experts evenly loaded");
    f("evaluate_every", evaluate_every, "steps between validations; 0: only at the end");
    f("checkpoint_every", checkpoint_every, "steps between checkpoints; 0: only at the end");
    f("async_checkpoint", async_checkpoint,
      "checkpoints on the way are written by a thread beside the next steps, from a copy in the "
      "host's memory; the last one is waited for");
    f("keep_checkpoints", keep_checkpoints, "how many of the newest checkpoints stay");
    f("log_every", log_every, "steps between lines of metrics.jsonl");
    f("max_bad_steps", max_bad_steps,
      "skipped steps with non-finite gradients before the run fails");
    f("record_routes", record_routes,
      "write the experts of every token of every step to routes.jsonl in the run's folder");
    f("replay_routes", replay_routes,
      "a file of such routes for the same batches: tokens take the experts in it, with gates and "
      "gradients from the current router; empty: the router chooses");
  }
  void check() const;
};

struct ClusterConfig {
  DeviceType device = DeviceType::kCpu;
  int expert_parallel = 1;
  double headroom = 2;
  int64_t exchange_chunks = 1;
  AllToAll all_to_all = AllToAll::kAuto;
  int threads = 0;

  void fields(Fields& f) {
    f("device", device, "what computes: cpu, or cuda (a GPU per rank; docs/cuda.md)");
    f("expert_parallel", expert_parallel,
      "ranks over which the experts are spread; divides the ranks");
    f("headroom", headroom,
      "memory for rows of the experts of one rank, relative to even loads, when experts are "
      "spread; "
      "more rows travel in several rounds; 0: memory for the worst case");
    f("exchange_chunks", exchange_chunks,
      "runs into which the experts of a rank are parted, when experts are spread: rows of one run "
      "travel while the experts of another are computed (between GPUs; more memory for rows on "
      "their way); at most the experts of a rank; 0: the fastest of 1, 2, 4 and 8, as the first "
      "steps show");
    f("all_to_all", all_to_all,
      "how rows travel to experts on several nodes: direct, two_stage (within nodes, then across), "
      "or auto (two stages where each node has equally many ranks of the group, two or more)");
    f("threads", threads, "threads per rank; 0: the node's cores divided by its ranks");
  }
};

struct RunConfig {
  ModelShape model;
  DataConfig data;
  TrainConfig train;
  ClusterConfig cluster;

  void fields(Fields& f) {
    f("model", model, "what is trained");
    f("data", data, "what it is trained on");
    f("train", train, "how");
    f("cluster", cluster, "on what");
  }
  void check() const;  // what no part can check alone
};

}  // namespace degu
