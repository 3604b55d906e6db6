#include "train/run.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/progress.h"
#include "base/timer.h"
#include "comm/agree.h"
#include "config/yaml.h"
#include "io/atomic_file.h"
#include "kernels/api/probe.h"
#include "tensor/trace.h"
#include "train/step_trial.h"

namespace degu {
namespace {

std::atomic<bool> stop_requested{false};

// A launcher sends SIGTERM both to ask for a stop and to clear away a job whose other rank has
// died; in the second case this rank waits in an exchange that never ends. So a request that
// arrives in a step starts a clock that the end of the step stops: long enough for any step, and
// then SIGALRM ends the process. Outside steps the launcher's own limit (SIGKILL) must do.
std::atomic<unsigned> grace_seconds{0};

void on_signal(int) {
  if (!stop_requested.exchange(true)) alarm(grace_seconds);
}

class StepClock {
 public:
  StepClock() { grace_seconds = 30; }
  ~StepClock() { stop(); }
  void step_took(double seconds) {
    grace_seconds = static_cast<unsigned>(std::clamp(5.0 + 4.0 * seconds, 5.0, 3600.0));
  }
  static void stop() {
    grace_seconds = 0;
    alarm(0);
  }
};

// One run in progress on one rank.
class TrainingRun {
 public:
  TrainingRun(const RunConfig& config, const RunOptions& options, const TokenDataset& dataset,
              Communicator& world, Context& context)
      : options_(options),
        world_(world),
        context_(context),
        dataset_(dataset),
        trainer_(config, dataset, world, context) {
    if (!options.trace) return;
    trace_ = std::make_unique<Trace>();
    context.set_trace(trace_.get());
  }
  ~TrainingRun() { context_.set_trace(nullptr); }

  RunResult go();

 private:
  bool first() const { return world_.rank() == 0; }
  std::string checkpoints() const { return options_.folder + "/checkpoints"; }
  void start();
  void restore(const std::string& folder);
  void write_front_matter();
  bool background_written();
  void log_step(const StepResult& step);
  void count_rounds(const StepResult& step);
  void log_validation();
  void save(bool beside);
  void publish(const std::string& folder);
  void commit_background(bool wait);
  void write_trace() const;
  void timed(const std::function<void()>& work);  // a part of a step
  void finish_steps(int64_t left);                // until so many are pending
  void note(const StepResult& step);
  bool due(int64_t every) const { return every > 0 && trainer_.next_step() % every == 0; }
  bool checkpoint_due() const;
  void try_chunks(double seconds);
  std::string why_stop();
  double tokens_per_second() const;

  RunOptions options_;
  Communicator& world_;
  Context& context_;
  const TokenDataset& dataset_;
  Trainer trainer_;
  std::unique_ptr<MetricsLog> metrics_;
  std::unique_ptr<RouteLog> routes_;
  std::unique_ptr<BackgroundCheckpoint> background_;
  std::string background_folder_;
  std::optional<StepTrial> chunks_;  // while cluster.exchange_chunks is being found
  std::unique_ptr<Trace> trace_;
  std::optional<Progress> progress_;
  RunResult result_;
  Timer wall_;              // of this start, for max_minutes
  double seconds_ = 0;      // in steps, over all starts
  double own_seconds_ = 0;  // in steps, since this start
  int64_t own_tokens_ = 0;
  int64_t own_steps_ = 0;
  int64_t extra_rounds_ = 0;  // LayerHealth's, since this start
  int64_t validated_ = -1;    // steps done at the last validation
};

void TrainingRun::start() {
  if (options_.peak_flops == 0) {
    options_.peak_flops = measure_peak_flops(world_, context_, trainer_.parameters().activation());
  }
  std::string latest;
  run_together(world_, [&] {
    latest = find_latest(checkpoints());
    if (!latest.empty() && !options_.resume) {
      throw ConfigError("{} already holds a run; give --resume to go on with it or another --out",
                        options_.folder);
    }
  });
  if (!latest.empty()) {
    run_together(world_, [&] { restore(latest); });
    if (first()) log_info("resumed {} at step {}", options_.folder, trainer_.next_step());
  } else if (!options_.branch_from.empty()) {
    run_together(world_, [&] { restore(options_.branch_from); });
    result_.checkpoint.clear();
  } else if (!options_.init_from.empty()) {
    run_together(world_, [&] {
      CheckpointReader reader(find_latest(options_.init_from));
      trainer_.load_weights(reader);
    });
  }
  const std::vector<int64_t> chunks = exchange_chunks(trainer_.config());
  if (chunks.size() > 1 && trainer_.config().cluster.expert_parallel > 1) chunks_.emplace(chunks);
  run_together(world_, [&] {
    if (!first()) return;
    write_front_matter();
    metrics_ =
        std::make_unique<MetricsLog>(options_.folder + "/metrics.jsonl", trainer_.next_step());
    if (trainer_.routes() == nullptr) return;
    routes_ = std::make_unique<RouteLog>(options_.folder + "/routes.jsonl",
                                         trainer_.next_step() * trainer_.plan().tokens_per_step());
  });
}

void TrainingRun::restore(const std::string& folder) {
  CheckpointReader reader(folder);
  const nlohmann::json& meta = reader.metadata();
  const std::string fingerprint = meta.at("data_fingerprint").get<std::string>();
  if (fingerprint != dataset_.fingerprint()) {
    throw DataError(
        "{} was trained on other data than data.paths holds now; use the shards it was "
        "trained on, or --init-from for a new run with its weights",
        folder);
  }
  trainer_.load(reader, {.next_step = meta.at("next_step").get<int64_t>(),
                         .bad_steps = meta.at("bad_steps").get<int64_t>()});
  seconds_ = meta.at("seconds").get<double>();
  result_.skipped_steps = meta.at("skipped_steps").get<int64_t>();
  result_.train_loss = meta.at("train_loss").get<double>();
  result_.checkpoint = folder;
}

void TrainingRun::write_front_matter() {
  write_file_atomic(options_.folder + "/config.yaml", to_yaml(trainer_.config()));
  const nlohmann::json environment = {
      {"ranks", world_.size()},
      {"threads_per_rank", context_.threads()},
      {"isa", isa_name(context_.isa())},
      {"peak_flops", options_.peak_flops},
      {"expert_parallel", trainer_.config().cluster.expert_parallel},
      {"activation_bytes", trainer_.reserved_bytes()},
      {"flops_per_token", trainer_.training_flops_per_token()}};
  write_file_atomic(options_.folder + "/environment.json", environment.dump(2) + "\n");
}

double TrainingRun::tokens_per_second() const {
  return own_seconds_ > 0 ? static_cast<double>(own_tokens_) / own_seconds_ : 0;
}

void TrainingRun::log_step(const StepResult& step) {
  if (!first()) return;
  nlohmann::json line = to_json(step);
  line["tokens"] = (step.step + 1) * step.tokens;
  line["seconds"] = seconds_;
  line["tokens_per_second"] = tokens_per_second();
  line["utilisation"] =
      tokens_per_second() * trainer_.training_flops_per_token() / options_.peak_flops;
  metrics_->write(line);
}

void TrainingRun::count_rounds(const StepResult& step) {
  const bool none_before = extra_rounds_ == 0;
  for (const LayerHealth& layer : step.layers) extra_rounds_ += layer.extra_rounds;
  if (extra_rounds_ == 0 || !none_before || !first()) return;
  log_warn(
      "step {}: the experts of one rank got more rows than cluster.headroom {} has memory for; "
      "such "
      "rows travel in further rounds (extra_rounds in metrics.jsonl)",
      step.step, trainer_.config().cluster.headroom);
}

void TrainingRun::log_validation() {
  result_.validation = trainer_.validate();
  validated_ = trainer_.next_step();
  if (!first()) return;
  metrics_->write({{"step", trainer_.next_step() - 1},
                   {"tokens", trainer_.next_step() * trainer_.plan().tokens_per_step()},
                   {"validation", to_json(result_.validation)}});
}

void TrainingRun::save(bool beside) {
  commit_background(/*wait=*/true);
  const Trainer::Counters counters = trainer_.counters();
  const nlohmann::json metadata = {{"next_step", counters.next_step},
                                   {"bad_steps", counters.bad_steps},
                                   {"skipped_steps", result_.skipped_steps},
                                   {"train_loss", result_.train_loss},
                                   {"seconds", seconds_},
                                   {"data_fingerprint", dataset_.fingerprint()}};
  const std::string folder = checkpoints() + "/" + checkpoint_name(counters.next_step);
  auto writer = std::make_unique<CheckpointWriter>(world_, folder, metadata);
  if (first()) {
    writer->attach("config.yaml", to_yaml(trainer_.config()));
    writer->attach("tokenizer.model", dataset_.tokenizer().model_bytes());
  }
  std::vector<CheckpointPart> parts = trainer_.checkpoint_parts();
  if (beside) {
    background_ =
        std::make_unique<BackgroundCheckpoint>(context_, std::move(writer), std::move(parts));
    background_folder_ = folder;
    return;
  }
  for (const CheckpointPart& part : parts) {
    writer->add(part.name, part.region, OnHost(context_, part.values));
  }
  writer->commit();
  publish(folder);
}

void TrainingRun::publish(const std::string& folder) {
  result_.checkpoint = folder;
  if (first() && options_.extra_checkpoints.empty()) {
    prune_checkpoints(checkpoints(), trainer_.config().train.keep_checkpoints);
  }
}

// On all ranks.
bool TrainingRun::background_written() {
  const int64_t unwritten = background_->written() ? 0 : 1;
  return (world_.size() > 1 ? max_over_ranks(world_, unwritten) : unwritten) == 0;
}

// The checkpoint that is being written beside the steps gets its name, if all ranks have written
// it.
void TrainingRun::commit_background(bool wait) {
  if (!background_ || (!wait && !background_written())) return;
  background_->commit();
  background_.reset();
  publish(background_folder_);
}

void TrainingRun::write_trace() const {
  if (!trace_) return;
  if (trace_->left_out() > 0) {
    log_warn("the trace is full: {} later operator calls are not in it", trace_->left_out());
  }
  write_file_atomic(fmt::format("{}/trace-rank-{}.json", options_.folder, world_.rank()),
                    trace_->json(world_.rank()));
}

std::string TrainingRun::why_stop() {
  int64_t code = 0;
  if (options_.max_minutes > 0 && wall_.seconds() > 60 * options_.max_minutes) code = 1;
  if (options_.stop_after > 0 && trainer_.next_step() >= options_.stop_after) code = 2;
  if (stop_requested) code = 3;
  switch (world_.size() > 1 ? max_over_ranks(world_, code) : code) {
    case 1:
      return "time limit";
    case 2:
      return "asked to stop after this step";
    case 3:
      return "signal";
    default:
      return {};
  }
}

void TrainingRun::timed(const std::function<void()>& work) {
  StepClock clock;
  if (own_steps_ > 0) clock.step_took(own_seconds_ / static_cast<double>(own_steps_));
  const Timer timer;
  work();
  seconds_ += timer.seconds();
  own_seconds_ += timer.seconds();
}

void TrainingRun::finish_steps(int64_t left) {
  while (trainer_.pending_steps() > left) {
    StepResult step;
    timed([&] { step = trainer_.finish_step(); });
    own_tokens_ += step.tokens;
    ++own_steps_;
    note(step);
  }
}

void TrainingRun::note(const StepResult& step) {
  if (routes_) routes_->write(trainer_.routes()->lines(step.step));
  result_.train_loss = step.loss;
  result_.skipped_steps += step.skipped;
  count_rounds(step);
  const int64_t done = step.step + 1, steps = trainer_.plan().steps;
  if (step.step % trainer_.config().train.log_every == 0 || done == steps || step.skipped) {
    log_step(step);
  }
  if (step.skipped && first()) {
    log_warn("step {}: the gradient is not finite; the step was skipped", step.step);
  }
  if (options_.on_step && first()) {
    options_.on_step({.done = done,
                      .steps = steps,
                      .loss = step.loss,
                      .tokens_per_second = tokens_per_second()});
  }
  if (!progress_) return;
  const double utilisation =
      tokens_per_second() * trainer_.training_flops_per_token() / options_.peak_flops;
  progress_->set(done, fmt::format("loss {:.4f}  {:.0f} tok/s  {:.1f}% of peak", step.loss,
                                   tokens_per_second(), 100 * utilisation));
}

// A step of the trial took so long on this rank.
void TrainingRun::try_chunks(double seconds) {
  const int64_t slowest = max_over_ranks(world_, static_cast<int64_t>(seconds * 1e6));
  chunks_->took(static_cast<double>(slowest) * 1e-6);
  if (!chunks_->done()) return;
  trainer_.set_exchange_chunks(chunks_->best());
  if (first()) {
    log_info("cluster.exchange_chunks {} is kept (median of a step: {})", chunks_->best(),
             chunks_->str());
  }
  chunks_.reset();
}

bool TrainingRun::checkpoint_due() const {
  const auto& extra = options_.extra_checkpoints;
  return due(trainer_.config().train.checkpoint_every) ||
         std::find(extra.begin(), extra.end(), trainer_.next_step()) != extra.end();
}

RunResult TrainingRun::go() {
  start();
  stop_on_signals();
  int64_t saved = trainer_.next_step();
  if (options_.live && first()) {
    progress_.emplace("train", trainer_.plan().steps, Progress::Unit::kCount, saved);
  }
  while (!trainer_.finished()) {
    if (result_.stop_reason = why_stop(); !result_.stop_reason.empty()) break;
    if (chunks_) trainer_.set_exchange_chunks(chunks_->next());
    const double before = seconds_;
    timed([&] { trainer_.begin_step(); });
    const bool evaluate = due(trainer_.config().train.evaluate_every);
    const bool checkpoint = checkpoint_due();
    finish_steps(evaluate || checkpoint || chunks_ ? 0 : trainer_.steps_ahead());
    if (chunks_) try_chunks(seconds_ - before);
    if (evaluate) log_validation();
    commit_background(/*wait=*/false);
    if (checkpoint) {
      save(trainer_.config().train.async_checkpoint);
      saved = trainer_.next_step();
    }
  }
  finish_steps(0);
  commit_background(/*wait=*/true);
  progress_.reset();
  if (extra_rounds_ > 0 && first()) {
    log_info("rows to experts took {} further rounds (cluster.headroom {})", extra_rounds_,
             trainer_.config().cluster.headroom);
  }
  result_.complete = trainer_.finished();
  if (validated_ != trainer_.next_step() && result_.complete) log_validation();
  const bool wanted = result_.complete ? options_.final_checkpoint : true;
  if (wanted && (saved != trainer_.next_step() || result_.checkpoint.empty()))
    save(/*beside=*/false);

  result_.steps = trainer_.next_step();
  result_.tokens = result_.steps * trainer_.plan().tokens_per_step();
  result_.flops = static_cast<double>(result_.tokens) * trainer_.training_flops_per_token();
  result_.seconds = seconds_;
  result_.tokens_per_second = seconds_ > 0 ? static_cast<double>(result_.tokens) / seconds_ : 0;
  result_.utilisation = seconds_ > 0 ? result_.flops / seconds_ / options_.peak_flops : 0;
  result_.annealed = result_.complete && trainer_.plan().schedule.annealed();
  run_together(world_, [&] { write_trace(); });
  if (result_.complete && first()) {
    write_file_atomic(options_.folder + "/result.json", to_json(result_).dump(2) + "\n");
  }
  world_.barrier();
  return result_;
}

}  // namespace

RunConfig resolve_config(RunConfig config, const TokenDataset& dataset) {
  if (config.model.vocab == 0) config.model.vocab = dataset.vocab_size();
  config.model = config.model.resolved();
  config.check();
  return config;
}

std::string identity_text(const RunConfig& config) {
  // The lines of keys in the order in which they came, with their indentation; each occurs once in
  // a run's YAML.
  constexpr std::array kLater = {"  record_routes",   "  replay_routes",    "  recompute",
                                 "  shard_gradients", "  device",           "    moments",
                                 "  headroom",        "  all_to_all",       "  overlap_reduction",
                                 "  exchange_chunks", "  async_checkpoint", "  attention"};
  std::string text = to_yaml(config);
  const std::string defaults = to_yaml(RunConfig{});
  for (const char* key : kLater) {
    const std::string start = fmt::format("\n{}: ", key);
    const size_t from = defaults.find(start);
    DEGU_DCHECK(from != std::string::npos && defaults.find(start, from + 1) == std::string::npos);
    const std::string line = defaults.substr(from, defaults.find('\n', from + 1) - from);
    const size_t found = text.find(line + "\n");
    if (found != std::string::npos) text.erase(found, line.size());
  }
  return text;
}

RunResult run_training(const RunConfig& config, const RunOptions& options,
                       const TokenDataset& dataset, Communicator& world, Context& context) {
  return TrainingRun(config, options, dataset, world, context).go();
}

nlohmann::json to_json(const RunResult& r) {
  return {{"complete", r.complete},
          {"stop_reason", r.stop_reason},
          {"steps", r.steps},
          {"tokens", r.tokens},
          {"train_loss", r.train_loss},
          {"flops", r.flops},
          {"seconds", r.seconds},
          {"tokens_per_second", r.tokens_per_second},
          {"utilisation", r.utilisation},
          {"annealed", r.annealed},
          {"skipped_steps", r.skipped_steps},
          {"checkpoint", r.checkpoint},
          {"validation", to_json(r.validation)}};
}

RunConfig checkpoint_config(const CheckpointReader& reader) {
  return read_config<RunConfig>(
      YamlDocument::from_text(reader.attachment("config.yaml"), reader.folder() + "/config.yaml"));
}

void request_stop() {
  stop_requested = true;
}

void stop_on_signals() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGUSR1, &action, nullptr);
}

double measure_peak_flops(Communicator& world, Context& context, DType type) {
  world.barrier();
  double peak = probe_peak_flops(context, type);
  world.all_reduce(context, View<double>(&peak, {1}), Reduce::kSum, Order::kTree);
  return peak;
}

}  // namespace degu
