// A whole training run in a folder: resume, steps, validation, metrics, checkpoints, stop.
//
//   <folder>/config.yaml        the resolved configuration
//   <folder>/environment.json   machine, ranks, versions
//   <folder>/metrics.jsonl      docs/formats/metrics.md
//   <folder>/checkpoints/step-…  docs/formats/checkpoint.md
//   <folder>/routes.jsonl       with train.record_routes
//   <folder>/trace-rank-….json  with RunOptions::trace
//   <folder>/result.json        once the run is complete
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "train/metrics.h"
#include "train/trainer.h"

namespace degu {

struct RunStep {
  int64_t done = 0, steps = 0;
  double loss = 0;
  double tokens_per_second = 0;
};

struct RunOptions {
  std::string folder;
  bool resume = false;      // go on from the newest checkpoint, if there is one
  std::string init_from;    // a checkpoint whose weights a new run starts with
  std::string branch_from;  // a checkpoint of another run that a new run continues, moments and all
  double max_minutes = 0;   // 0: no limit; else checkpoint and stop
  double peak_flops = 0;    // of all ranks together, for utilisation; 0: measured at the start
  bool live = true;         // progress line on rank 0
  std::function<void(const RunStep&)> on_step;  // called on rank 0 after every step
  bool final_checkpoint = true;
  std::vector<int64_t>
      extra_checkpoints;  // also after these steps; they are kept until the run ends
  bool trace = false;     // each rank leaves <folder>/trace-rank-N.json: a span per operator call
  int64_t stop_after =
      0;  // stop (with a checkpoint) once this many steps are done; 0: run to the end
};

struct RunResult {
  bool complete = false;  // false: stopped on request, resumable
  std::string stop_reason;
  int64_t steps = 0;
  int64_t tokens = 0;
  double train_loss = 0;  // of the last step
  double flops = 0;       // by shape/accounting.h
  double seconds = 0;     // in steps, over all starts of the run
  double tokens_per_second = 0;
  double utilisation = 0;  // of peak_flops
  bool annealed = false;
  int64_t skipped_steps = 0;
  ValidationResult validation;
  std::string checkpoint;  // the last one written
};

// `config` with everything filled in that depends on the data (model.vocab when 0) and checked.
// Collective only in that every rank calls it with the same arguments.
RunConfig resolve_config(RunConfig config, const TokenDataset& dataset);

// What a configuration is recognised by, such as the runs of a sweep that is started again: its
// YAML, in which a key that was added after the first sweeps stands only when it is not at its
// default. So a new key with a default changes nobody's identity. A new key of RunConfig is listed
// in the function; tests/train/identity_test.cc fails until it is.
std::string identity_text(const RunConfig& config);

RunResult run_training(const RunConfig& config, const RunOptions& options,
                       const TokenDataset& dataset, Communicator& world, Context& context);

nlohmann::json to_json(const RunResult& result);

// The configuration that a checkpoint was trained with.
RunConfig checkpoint_config(const CheckpointReader& reader);

// Asks the running training to write a checkpoint and stop; what SIGTERM and SIGUSR1 do after
// `stop_on_signals`, which run_training calls once there is something to save.
void request_stop();
void stop_on_signals();

// Sum over ranks of what their contexts reach in registers. Collective.
double measure_peak_flops(Communicator& world, Context& context, DType type);

}  // namespace degu
