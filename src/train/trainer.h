// A model in training on one rank of a job: steps, validation, state.
//
// On an accelerator a step is given to the device without a wait of the host (with experts on
// several ranks, a capacity or recorded routes, layers wait for counts): clipping, the decision to
// skip a step and the routers' biases are the device's. So a step can begin before the host has
// seen the numbers of the one before, and the device need not wait for the host between them.
//
// Everything that is computed over several tokens or sequences is reduced in an order that the
// layout of ranks does not change (docs/numerics.md), so with `train.reproducible` two trainers of
// one configuration hold the same bits after each step, however their ranks are arranged.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/mesh.h"
#include "data/reader.h"
#include "model/transformer.h"
#include "train/background_checkpoint.h"
#include "train/evaluate.h"
#include "train/gradient_norm.h"
#include "train/pass.h"
#include "train/regions.h"
#include "train/step_plan.h"
#include "train/step_routes.h"

namespace degu {

struct LayerHealth {
  double load_max_over_mean = 1;
  double load_entropy = 1;   // of the shares of routed slots, over ln E: 1 is even
  int64_t dead_experts = 0;  // experts that no token chose
  int64_t dropped = 0;       // routed slots over capacity
  int64_t extra_rounds = 0;  // rounds beyond the first, over passes and expert groups
  std::vector<int64_t> load_E;
};

struct StepResult {
  int64_t step = 0;          // of this update, from 0
  double loss = 0;           // mean cross-entropy over the step's counted targets, nats
  double aux_loss = 0;       // weighted, as added
  double z_loss = 0;         // weighted, as added
  double gradient_norm = 0;  // before clipping
  double learning_rate = 0;
  int64_t tokens = 0;
  bool skipped = false;             // gradient was not finite: weights unchanged
  std::vector<LayerHealth> layers;  // MoE layers only, in order
};

class Trainer {
 public:
  // Collective. The configuration's model must be resolved. The dataset outlives the trainer.
  Trainer(const RunConfig& config, const TokenDataset& dataset, Communicator& world,
          Context& context);

  const StepPlan& plan() const { return plan_; }
  const RunConfig& config() const { return config_; }
  int64_t next_step() const { return next_step_; }
  bool finished() const { return next_step_ >= plan_.steps; }
  ParameterSet& parameters() { return parameters_; }
  double training_flops_per_token() const { return flops_per_token_; }
  size_t reserved_bytes() const { return pass_.reserved_bytes(); }

  // One optimizer step, in two halves. Both collective, in the same order on every rank.
  // Begins the next one; on the CPU, does it. At most steps_ahead() + 1 are pending then.
  void begin_step();
  // The numbers of the first pending step, which the host waits for. NumericError on all ranks
  // alike when non-finite gradients have reached train.max_bad_steps in a row.
  StepResult finish_step();
  StepResult step() {
    begin_step();
    return finish_step();
  }
  int64_t pending_steps() const { return next_step_ - finished_steps_; }
  // How many steps may be pending when another begins: none on the CPU, where nothing is gained.
  int64_t steps_ahead() const { return context_.device_state() != nullptr && !routes_ ? 1 : 0; }
  // From the next step on (cluster.exchange_chunks); the bits do not depend on it. The same on all
  // ranks.
  void set_exchange_chunks(int64_t chunks) { model_.set_exchange_chunks(chunks); }
  // The last step's, with train.record_routes; null without.
  const StepRoutes* routes() const { return routes_ ? &*routes_ : nullptr; }
  // Loss on the fixed validation set. Collective. What follows is for when no step is pending.
  ValidationResult validate();

  // What a checkpoint's metadata holds of a trainer. The optimizer's moments and the data order are
  // functions of it and of the tensors.
  struct Counters {
    int64_t next_step = 0;
    int64_t bad_steps = 0;
  };
  Counters counters() const { return {next_step_, bad_steps_}; }

  // Values and moments: what this rank writes of them, as the next step will find them.
  std::vector<CheckpointPart> checkpoint_parts();
  // Values and moments of a run with the same model, on any layout. Moments of the other type
  // (train.optimizer.moments) are converted, bf16 exactly and fp32 to the nearest, and a line of
  // the log says so. DataError when a tensor is missing or has another shape.
  void load(CheckpointReader& reader, const Counters& counters);
  // Values only: starts a new run from another run's weights.
  void load_weights(CheckpointReader& reader);

 private:
  // Sums over the step that the ranks share: placed by global index, so that adding them is exact.
  struct StepSums;
  // What a step's passes tell the host.
  struct PassNumbers {
    AnyView loss_T;
    BalanceNumbers balance;
  };
  struct PendingStep {
    explicit PendingStep(Context& context) : downloads(context) {}
    Downloads downloads;
    std::vector<PassNumbers> passes;
    AnyView square_sums;  // GradientNorm's
    int64_t counted = 0;  // targets, on all ranks
  };
  PendingStep& numbers_of(int64_t step) { return pending_[step % 2]; }

  int64_t first_sequence(int64_t micro) const;  // of this rank's pass, in the step's batch
  void read_batches();
  void run_micro_batch(int64_t micro, PendingStep& step);
  void sum_passes(PendingStep& step, StepSums& sums);
  void sum_balance(int64_t micro, PendingStep& step, StepSums& sums);
  void reduce_gradients();
  double learning_rate(int64_t step) const;
  void update();
  void update_biases();
  StepResult summarise(StepSums& sums, int64_t counted) const;
  int moe_layers() const;
  // visit(name, whole shape, first element of the whole tensor, this rank's part)
  template <class Visit>
  void each_moment_run(const Visit& visit);

  RunConfig config_;
  Communicator& world_;
  Context& context_;
  Mesh mesh_;
  StepPlan plan_;
  ParameterSet parameters_;
  Transformer model_;
  BatchReader reader_;
  ValidationSet validation_;
  HeadChunks head_chunks_;
  Pass pass_;
  std::unique_ptr<Evaluator> evaluator_;
  TrainedRegions regions_;
  std::vector<SequenceBatch> micro_batches_;
  std::optional<StepRoutes> routes_;
  std::optional<RouteReplay> replay_;
  GradientNorm norm_;
  Tensor load_LE_;  // int64, of the step, where biases balance the routers
  std::array<PendingStep, 2> pending_;
  double flops_per_token_ = 0;
  int64_t next_step_ = 0;
  int64_t finished_steps_ = 0;
  int64_t bad_steps_ = 0;
};

// Fills the values of `parameters` from a checkpoint, this rank's experts only. DataError as
// Trainer::load.
void load_values(Context& context, CheckpointReader& reader, ParameterSet& parameters);

}  // namespace degu
