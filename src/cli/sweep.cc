#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/timer.h"
#include "cli/command.h"
#include "cli/job.h"
#include "config/yaml.h"
#include "io/atomic_file.h"
#include "scaling/sweep/sweep.h"
#include "train/run.h"

namespace degu {
namespace {

using scaling::PlannedRun;
using scaling::RunFamily;
using scaling::RunMeasurement;

// A sweep's file: what the runs share, and the grid.
struct SweepFile {
  scaling::SweepConfig sweep;
  RunConfig run;

  void fields(Fields& f) {
    f("sweep", sweep, "the grid of runs");
    run.fields(f);
  }
};

struct SweepArguments {
  std::string config;
  std::string folder;
  std::vector<std::string> overrides;
  double max_minutes = 0;
  bool retry_failed = false;
  bool dry_run = false;
  bool json = false;
};

RunConfig config_of(const RunConfig& shared, const PlannedRun& run) {
  RunConfig config = shared;
  config.model = run.shape;
  config.train.tokens = 0;
  config.train.steps = 0;
  config.train.flops = run.budget;
  config.train.seed = run.seed;
  config.data.seed = run.seed;
  config.train.optimizer.learning_rate = run.learning_rate;
  return config;
}

// Trains the runs of a sweep on whatever group of ranks it is given.
class Executor {
 public:
  Executor(const RunConfig& shared, const TokenDataset& dataset, Job& job, double max_minutes)
      : shared_(shared), dataset_(dataset), job_(job), max_minutes_(max_minutes) {
    const DType type = activation_type(shared.train.precision);
    // Each rank alone, all at once: what a group of them reaches is the sum of its ranks. The best
    // of a few, or a neighbour's moment on the core would make every run look better than it was.
    job.world().barrier();
    for (int i = 0; i < 5; ++i) own_peak_ = std::max(own_peak_, probe_peak(type));
  }

  RunMeasurement train(const RunFamily& family, size_t index, const std::string& folder,
                       Communicator& group, const scaling::OnStep& on_step) {
    RunConfig config = config_of(shared_, family[index]);
    RunOptions options;
    options.folder = folder;
    options.resume = true;
    options.live = false;
    options.on_step = [&](const RunStep& s) {
      on_step({.step = s.done,
               .steps = s.steps,
               .loss = s.loss,
               .tokens_per_second = s.tokens_per_second});
    };
    options.final_checkpoint = false;
    options.peak_flops = own_peak_ * group.size();
    if (max_minutes_ > 0)
      options.max_minutes = std::max(1e-6, max_minutes_ - timer_.seconds() / 60);
    if (family.size() > 1) share_trunk(family, index, folder, group, config, options);
    const RunResult r = run_training(config, options, dataset_, group, job_.context());
    if (!r.complete) return {.interrupted = true};
    return {.tokens = r.tokens,
            .flops = r.flops,
            .annealed = r.annealed,
            .val_loss = r.validation.loss,
            .bits_per_byte = r.validation.bits_per_byte,
            .seconds = r.seconds,
            .utilisation = r.utilisation};
  }

 private:
  double probe_peak(DType type) {
    const std::unique_ptr<Communicator> alone = make_self_communicator();
    return measure_peak_flops(*alone, job_.context(), type);
  }

  // The family's first run leaves a checkpoint where each of the others begins its decay; the
  // others continue from it. All warm up in the steps of the shortest.
  void share_trunk(const RunFamily& family, size_t index, const std::string& folder,
                   Communicator& group, RunConfig& config, RunOptions& options) const {
    const Layout layout(group.rank(), group.size(), config.cluster.expert_parallel);
    const StepPlan shortest = plan_steps(config_of(shared_, family.back()), layout);
    config.train.optimizer.schedule.warmup_steps =
        std::max<int64_t>(1, shortest.schedule.warmup_steps);
    auto decay_start = [&](size_t i) {
      RunConfig other = config_of(shared_, family[i]);
      other.train.optimizer.schedule.warmup_steps = config.train.optimizer.schedule.warmup_steps;
      const StepPlan plan = plan_steps(other, layout);
      return plan.steps - plan.schedule.decay_steps;
    };
    if (index == 0) {
      for (size_t i = 1; i < family.size(); ++i)
        options.extra_checkpoints.push_back(decay_start(i));
      return;
    }
    const std::string trunk =
        std::filesystem::path(folder).replace_filename(family[0].name).string() + "/checkpoints/" +
        checkpoint_name(decay_start(index));
    if (std::filesystem::exists(trunk)) options.branch_from = trunk;
  }

  const RunConfig& shared_;
  const TokenDataset& dataset_;
  Job& job_;
  double max_minutes_;
  double own_peak_ = 0;
  Timer timer_;
};

void print_plan(const std::vector<RunFamily>& families, int64_t sequence_length) {
  double total = 0;
  for (const RunFamily& family : families) {
    for (const PlannedRun& run : family) {
      if (!run.problem.empty()) {
        std::printf("%-36s  invalid: %s\n", run.name.c_str(), run.problem.c_str());
        continue;
      }
      const scaling::RunRecord r = scaling::describe_run(run, sequence_length);
      std::printf("%-36s  %10lld parameters  %10lld tokens  %8.3g FLOPs\n", run.name.c_str(),
                  static_cast<long long>(r.n_active), static_cast<long long>(r.tokens), run.budget);
      total += run.budget;
    }
  }
  std::printf("%zu families, %.3g FLOPs in all\n", families.size(), total);
}

ExitCode report(const SweepArguments& arguments, const scaling::SweepOutcome& outcome) {
  int64_t done = 0;
  nlohmann::json counts = nlohmann::json::object();
  for (const scaling::RunRecord& record : outcome.records) {
    counts[record.status] = counts.value(record.status, 0) + 1;
    done += record.status == "done";
  }
  log_info("{}: {} of {} runs done; table in {}/runs.csv", arguments.folder, done,
           outcome.records.size(), arguments.folder);
  if (arguments.json) {
    const nlohmann::json result = {{"folder", arguments.folder},
                                   {"runs", outcome.records.size()},
                                   {"status", counts},
                                   {"interrupted", outcome.interrupted}};
    std::printf("%s\n", result.dump(2).c_str());
  }
  return outcome.interrupted ? ExitCode::kInterrupted : ExitCode::kDone;
}

ExitCode sweep(SweepArguments arguments) {
  if (arguments.folder.empty()) {
    arguments.folder = "runs/" + std::filesystem::path(arguments.config).stem().string();
  }
  SweepFile file = load_config<SweepFile>(arguments.config, arguments.overrides);
  Job job(file.run.cluster.threads, file.run.cluster.device);
  const TokenDataset dataset(file.run.data.paths);
  file.run.model.vocab = dataset.vocab_size();
  const scaling::RunDefaults defaults{.model = file.run.model,
                                      .sequence_length = file.run.data.sequence_length,
                                      .learning_rate = file.run.train.optimizer.learning_rate,
                                      .seed = file.run.train.seed};
  const std::vector<RunFamily> families = scaling::design_sweep(file.sweep, defaults);
  const bool first = job.world().rank() == 0;
  if (arguments.dry_run) {
    if (first) print_plan(families, defaults.sequence_length);
    return ExitCode::kDone;
  }
  if (first) write_file_atomic(arguments.folder + "/sweep.yaml", to_yaml(file));
  stop_on_signals();
  Executor executor(file.run, dataset, job, arguments.max_minutes);
  RunConfig shared = file.run;
  shared.cluster = {};  // the layout of ranks does not change a result
  const scaling::SweepOptions options{
      .folder = arguments.folder,
      .ranks_per_run = file.sweep.ranks_per_run,
      .threads = job.context().threads(),
      .shared_configuration = identity_text(shared) + dataset.fingerprint(),
      .retry_failed = arguments.retry_failed};
  const scaling::SweepOutcome outcome =
      run_sweep(families, defaults.sequence_length, options, job.world(),
                [&](const RunFamily& family, size_t index, const std::string& folder,
                    Communicator& group, const scaling::OnStep& on_step) {
                  return executor.train(family, index, folder, group, on_step);
                });
  return first                 ? report(arguments, outcome)
         : outcome.interrupted ? ExitCode::kInterrupted
                               : ExitCode::kDone;
}

}  // namespace

Action attach_sweep(CommandLine& line) {
  auto arguments = std::make_shared<SweepArguments>();
  line.option("config", arguments->config, "sweep configuration (YAML)").required();
  line.option("--out", arguments->folder, "folder of the sweep; default: runs/<name of the file>");
  line.option("--set", arguments->overrides, "key=value over the file, e.g. sweep.budgets=[1e12]")
      .repeatable();
  line.option("--max-minutes", arguments->max_minutes, "stop, resumable, after this long");
  line.flag("--retry-failed", arguments->retry_failed, "train runs again that failed twice");
  line.flag("--dry-run", arguments->dry_run, "print the grid and stop");
  line.flag("--json", arguments->json, "print a summary as one JSON object");
  return [arguments] { return sweep(*arguments); };
}

}  // namespace degu
