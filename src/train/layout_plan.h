// What a training run takes on each rank of a cluster, before it starts: memory from the objects
// themselves, laid out for one rank of a world that need not be there; time from the cluster's
// measured rates.
#pragma once

#include <string>
#include <vector>

#include "shape/cluster.h"
#include "train/train_config.h"

namespace degu {

class Layout;

// Bytes of one rank. On the CPU operators take some megabytes more.
struct TrainingMemory {
  double parameters = 0;   // fp32 values, and what products read, forward and backward
  double gradients = 0;    // fp32; reproducible runs hold one more per level of the tree;
                           // with shard_gradients this rank's shards, and one block's
  double moments = 0;      // this rank's shard of AdamW's two
  double activations = 0;  // of one pass, rows of the experts for cluster.headroom
  double evaluation = 0;   // of one validation pass
  double scratch = 0;  // what layers hold within a pass: rows on their way, one chunk of logits;
                       // on a GPU also what kernels and sums over ranks take
  double total() const {
    return parameters + gradients + moments + activations + evaluation + scratch;
  }
};
// Lays the rank's objects out in address space that nobody touches. ConfigError as plan_steps and
// Layout.
TrainingMemory training_memory(const RunConfig& config, const Layout& layout);

// Seconds of one optimizer step; nothing is assumed to overlap but, between GPUs, rows with
// products (cluster.exchange_chunks).
struct StepSeconds {
  double compute = 0;    // products, at `utilisation` of the peak, the busiest rank's experts
  double exchange = 0;   // rows to experts and back, forward and backward; what is not hidden
  double reduction = 0;  // gradients to their shards, in each pass or once; values back to all
  double update = 0;     // AdamW and packing, at the memory's bandwidth
  double total() const { return compute + exchange + reduction + update; }
};

struct LayoutAssumptions {
  double utilisation = 0.5;  // share of the peak that products reach
  double imbalance = 1.2;    // rows of the busiest rank's experts over the mean, with several ranks
};
StepSeconds step_seconds(const RunConfig& config, const ClusterSpec& cluster,
                         const LayoutAssumptions& assumptions);

struct PlannedLayout {
  int expert_parallel = 1;
  int64_t micro_batch_sequences = 0;
  TrainingMemory memory;
  StepSeconds seconds;
  bool fits = true;  // in the device's memory, where that is known
};

struct LayoutPlan {
  std::vector<PlannedLayout> layouts;  // those that fit first, the fastest first among them
  std::vector<std::string> refused;    // layouts that cannot be, each with the reason
  int64_t tokens_per_step = 0;
  int64_t steps = 0;
  double flops_per_step = 0;
};
// Every number of ranks per expert group, and every size of pass, that divides. The configuration's
// model must be resolved; its own cluster.expert_parallel and train.micro_batch_sequences are not
// looked at.
LayoutPlan plan_layouts(const RunConfig& config, const ClusterSpec& cluster,
                        const LayoutAssumptions& assumptions);

}  // namespace degu
