#include "train/step_plan.h"

#include <algorithm>
#include <cmath>

#include "shape/accounting.h"

namespace degu {
namespace {

constexpr int64_t kDefaultUnits = 8;

// Units per step when the configuration leaves them open: the largest power of two up to 8 that
// divides the batch. It may not depend on the ranks, or two layouts would differ.
int64_t default_unit_sequences(int64_t batch) {
  int64_t units = kDefaultUnits;
  while (batch % units != 0) units /= 2;
  return batch / units;
}

int64_t run_steps(const RunConfig& config, int64_t tokens_per_step) {
  const TrainConfig& t = config.train;
  if (t.steps > 0) return t.steps;
  const double tokens =
      t.tokens > 0 ? static_cast<double>(t.tokens)
                   : t.flops / training_flops(config.model, config.data.sequence_length, 1.0);
  return std::max<int64_t>(1, std::llround(tokens / static_cast<double>(tokens_per_step)));
}

void need_divides(const char* part_name, int64_t part, const char* whole_name, int64_t whole) {
  if (part > 0 && whole % part == 0) return;
  throw ConfigError("{} is {}, which does not divide {} = {}", part_name, part, whole_name, whole);
}

Schedule make_schedule(const OptimizerConfig& config, int64_t steps) {
  const ScheduleConfig& s = config.schedule;
  Schedule result;
  result.steps = steps;
  result.warmup_steps = s.warmup_steps > 0 ? std::min(s.warmup_steps, steps)
                                           : std::llround(s.warmup * static_cast<double>(steps));
  result.final_ratio = s.final_ratio;
  switch (s.kind) {
    case ScheduleKind::kCosine:
      result.decay = Decay::kCosine;
      result.decay_steps = steps - result.warmup_steps;
      break;
    case ScheduleKind::kWsd:
      result.decay = Decay::kLinearRoot;
      result.decay_steps =
          std::min(std::max<int64_t>(1, std::llround(s.decay * static_cast<double>(steps))),
                   steps - result.warmup_steps);
      break;
    case ScheduleKind::kConstant:
      result.decay = Decay::kNone;
      break;
  }
  return result;
}

}  // namespace

void TrainConfig::check() const {
  const int lengths = (tokens > 0) + (steps > 0) + (flops > 0);
  if (lengths > 1) {
    throw ConfigError(
        "train: more than one of tokens ({}), steps ({}) and flops ({}) is set; keep one", tokens,
        steps, flops);
  }
  if (batch_sequences < 1) {
    throw ConfigError("train.batch_sequences is {}; it must be at least 1", batch_sequences);
  }
  if (!(optimizer.learning_rate > 0)) {
    throw ConfigError("train.optimizer.learning_rate is {}; it must be positive",
                      optimizer.learning_rate);
  }
  const ScheduleConfig& s = optimizer.schedule;
  if (s.warmup < 0 || s.warmup > 1 || s.decay < 0 || s.decay > 1 || s.final_ratio < 0 ||
      s.final_ratio > 1) {
    throw ConfigError(
        "train.optimizer.schedule: warmup {}, decay {} and final_ratio {} are shares "
        "between 0 and 1",
        s.warmup, s.decay, s.final_ratio);
  }
  if (overlap_reduction && !shard_gradients) {
    throw ConfigError(
        "train.overlap_reduction: whole gradients are reduced once, at the end of a step; set "
        "train.shard_gradients: true or leave it out");
  }
  if (log_every < 1) throw ConfigError("train.log_every is {}; it must be at least 1", log_every);
  if (keep_checkpoints < 1) {
    throw ConfigError("train.keep_checkpoints is {}; it must be at least 1", keep_checkpoints);
  }
}

void RunConfig::check() const {
  if (train.balance.bias_update > 0 && model.moe.router == RouterKind::kHash) {
    throw ConfigError(
        "train.balance.bias_update is {} but model.moe.router is hash, which has no "
        "scores to bias; set it to 0",
        train.balance.bias_update);
  }
  if (train.attention == AttentionBy::kCudnn) {
    const auto refuse = [](std::string_view why) {
      throw ConfigError("train.attention is cudnn, which {}, or leave it at own", why);
    };
    if (cluster.device != DeviceType::kCuda) refuse("works on GPUs: set cluster.device: cuda");
    if (train.precision != Precision::kBf16) refuse("computes in bf16: set train.precision: bf16");
    if (train.reproducible) {
      refuse("has sums in an order of its own: set train.reproducible: false");
    }
    if (model.head_width % 8 != 0) refuse("takes heads whose width is a multiple of 8: change it");
  }
  if (cluster.headroom != 0 && !(cluster.headroom >= 1)) {
    throw ConfigError(
        "cluster.headroom is {}; even loads need 1, skewed ones more; 0: memory for the worst case",
        cluster.headroom);
  }
  if (model.moe.experts == 0 && (train.record_routes || !train.replay_routes.empty())) {
    throw ConfigError("train.{}: a dense model (model.moe.experts: 0) has no routes; leave it out",
                      train.record_routes ? "record_routes" : "replay_routes");
  }
}

StepPlan plan_steps(const RunConfig& config, const Layout& layout) {
  const TrainConfig& t = config.train;
  if (t.tokens <= 0 && t.steps <= 0 && t.flops <= 0) {
    throw ConfigError("train: the run has no length; set tokens, steps or flops");
  }
  StepPlan plan;
  const int64_t experts_here = config.model.moe.experts / layout.expert_parallel();
  if (config.cluster.exchange_chunks < 0 ||
      config.cluster.exchange_chunks > std::max<int64_t>(1, experts_here)) {
    throw ConfigError(
        "cluster.exchange_chunks is {}; with {} experts on each rank of an expert group it must be "
        "at most as many, or 0 to find the fastest",
        config.cluster.exchange_chunks, experts_here);
  }
  plan.batch_sequences = t.batch_sequences;
  plan.sequence_length = config.data.sequence_length;
  plan.unit_sequences =
      t.unit_sequences > 0 ? t.unit_sequences : default_unit_sequences(t.batch_sequences);
  need_divides("train.unit_sequences", plan.unit_sequences, "train.batch_sequences",
               plan.batch_sequences);
  plan.units = plan.batch_sequences / plan.unit_sequences;
  if (plan.units % layout.ranks() != 0) {
    throw ConfigError(
        "a step's {} units of {} sequences cannot be shared by {} ranks; lower "
        "train.unit_sequences or raise train.batch_sequences",
        plan.units, plan.unit_sequences, layout.ranks());
  }
  const int64_t rank_sequences = plan.batch_sequences / layout.ranks();
  plan.micro_sequences = t.micro_batch_sequences > 0
                             ? std::min(t.micro_batch_sequences, rank_sequences)
                             : rank_sequences;
  need_divides("train.micro_batch_sequences", plan.micro_sequences, "the rank's sequences",
               rank_sequences);
  need_divides("train.unit_sequences", plan.unit_sequences, "the sequences of one pass",
               plan.micro_sequences);
  plan.micro_batches = rank_sequences / plan.micro_sequences;
  plan.units_per_micro = plan.micro_sequences / plan.unit_sequences;
  plan.balance_sequences =
      t.balance.group_sequences > 0 ? t.balance.group_sequences : plan.unit_sequences;
  need_divides("train.balance.group_sequences", plan.balance_sequences, "train.unit_sequences",
               plan.unit_sequences);
  plan.capacity_sequences = std::max(1, t.balance.capacity_group_sequences);
  need_divides("train.balance.capacity_group_sequences", plan.capacity_sequences,
               "train.unit_sequences", plan.unit_sequences);
  if (t.shard_gradients) plan.unit_order = UnitOrder::kPassMajor;
  if (t.reproducible && !layout.aligned(plan.units, plan.micro_batches, plan.unit_order)) {
    throw ConfigError(
        "train.reproducible: {} units over {} ranks in {} passes are not aligned powers of "
        "two; choose counts that are, or set train.reproducible: false",
        plan.units, layout.ranks(), plan.micro_batches);
  }
  plan.recompute = t.recompute;
  plan.attention = t.attention;
  plan.steps = run_steps(config, plan.tokens_per_step());
  plan.schedule = make_schedule(t.optimizer, plan.steps);
  return plan;
}

}  // namespace degu
