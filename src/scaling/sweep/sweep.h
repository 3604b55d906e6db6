// Runs a designed sweep: groups of ranks take families of runs as they become free, and every run
// is recorded once, whatever ends the job.
//
//   <folder>/state/<run>.yaml   status and attempts of each run: the sweep's only memory
//   <folder>/runs/<run>/        the run's own folder
//   <folder>/runs.csv, runs.h5  the table, rewritten as runs finish
//   <folder>/live/              what each group is doing, while the sweep runs
//
// A run is `running` in its state file before it starts and `done`, `diverged` or `invalid` after.
// A start that finds it running knows that the job died under it: the attempt is counted, and a run
// that died twice is `failed`. A stop on request leaves it `interrupted`, which is not counted.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "scaling/run_table.h"
#include "scaling/sweep/board.h"
#include "scaling/sweep/design.h"

namespace degu::scaling {

// What a finished run adds to its record.
struct RunMeasurement {
  bool interrupted = false;  // stopped on request; nothing below is set
  int64_t tokens = 0;
  double flops = 0;
  bool annealed = false;
  double val_loss = 0;
  double bits_per_byte = 0;
  double seconds = 0;
  double utilisation = 0;
};

// Trains one run on all ranks of `group`, in `folder`. NumericError: diverged. ConfigError or
// ShapeError: invalid. Every rank of the group throws alike. Anything else ends the job. The
// group's first rank may tell `on_step` of every step.
using OnStep = std::function<void(const RunProgress&)>;
using TrainRun =
    std::function<RunMeasurement(const RunFamily& family, size_t index, const std::string& folder,
                                 Communicator& group, const OnStep& on_step)>;

struct SweepOptions {
  std::string folder;
  int64_t ranks_per_run = 1;
  int threads = 1;                   // per rank, for the record
  std::string shared_configuration;  // text of what all runs share: part of each run's hash
  bool retry_failed = false;         // forget that runs failed
};

struct SweepOutcome {
  std::vector<RunRecord> records;  // all of the grid, in the grid's order; on every rank
  bool interrupted = false;
  int64_t trained = 0;  // by this start
};

// The unchanging part of a run's record.
RunRecord describe_run(const PlannedRun& run, int64_t sequence_length);

// Collective over `world`.
SweepOutcome run_sweep(const std::vector<RunFamily>& families, int64_t sequence_length,
                       const SweepOptions& options, Communicator& world, const TrainRun& train);

}  // namespace degu::scaling
