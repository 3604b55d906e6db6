#include "train/trainer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "comm/agree.h"
#include "kernels/api/elementwise.h"
#include "shape/accounting.h"

namespace degu {
namespace {

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

}  // namespace

struct Trainer::StepSums {
  StepSums(const StepPlan& plan, int64_t moe_layers, int64_t experts_per_layer)
      : sequences(plan.batch_sequences),
        groups(plan.balance_groups()),
        experts(experts_per_layer),
        values(at(sequences + 2 * groups), 0.0),
        counts(at(moe_layers * (experts + 2)), 0) {}

  std::span<double> losses() { return std::span(values).first(at(sequences)); }
  std::span<double> aux() { return std::span(values).subspan(at(sequences), at(groups)); }
  std::span<double> z() { return std::span(values).last(at(groups)); }
  std::span<int64_t> load(int64_t layer) {
    return std::span(counts).subspan(at(layer * (experts + 2)), at(experts));
  }
  int64_t& dropped(int64_t layer) { return counts[at(layer * (experts + 2) + experts)]; }
  int64_t& extra_rounds(int64_t layer) { return counts[at(layer * (experts + 2) + experts + 1)]; }

  void all_reduce(Context& context, Communicator& world) {
    // Every place has one non-zero contribution (losses) or is an integer: any order is exact.
    world.all_reduce(context, View<double>(values.data(), {static_cast<int64_t>(values.size())}),
                     Reduce::kSum, Order::kAny);
    if (counts.empty()) return;
    world.all_reduce(context, View<int64_t>(counts.data(), {static_cast<int64_t>(counts.size())}),
                     Reduce::kSum, Order::kAny);
  }

  int64_t sequences, groups, experts;
  std::vector<double> values;   // loss per sequence, then aux and z per balance group
  std::vector<int64_t> counts;  // per MoE layer: load of each expert, dropped slots, further rounds
};

Trainer::Trainer(const RunConfig& config, const TokenDataset& dataset, Communicator& world,
                 Context& context)
    : config_(config),
      world_(world),
      context_(context),
      mesh_(world, config.cluster.expert_parallel, config.cluster.all_to_all),
      plan_(plan_steps(config, mesh_.layout())),
      parameters_(context, config.model, activation_type(config.train.precision),
                  local_experts(mesh_.layout(), config.model), /*training=*/true),
      model_(parameters_, expert_spread(config, mesh_.ep())),
      reader_(dataset, config.data, plan_.batch_sequences),
      validation_(dataset, config.data),
      head_chunks_(training_head_chunks(plan_, config.model.vocab)),
      pass_(context, model_, plan_, plan_.micro_sequences, /*training=*/true),
      regions_(context, config_, plan_, mesh_.layout(), parameters_),
      micro_batches_(at(plan_.micro_batches)),
      downloads_(context),
      flops_per_token_(training_flops(config.model, plan_.sequence_length, 1.0)) {
  if (dataset.vocab_size() != config.model.vocab) {
    throw ConfigError(
        "model.vocab is {} but the data's tokenizer has {} pieces; set model.vocab: {}",
        config.model.vocab, dataset.vocab_size(), dataset.vocab_size());
  }
  if (config.train.record_routes) routes_.emplace(config.model, plan_);
  if (!config.train.replay_routes.empty()) {
    run_together(world, [&] { replay_.emplace(config.train.replay_routes, config.model, plan_); });
  }
  regions_.reduce_over(mesh_);
  parameters_.initialise(context_, static_cast<uint64_t>(config.train.seed));
  parameters_.pack(context_);
}

int Trainer::moe_layers() const {
  return config_.model.moe.experts == 0
             ? 0
             : config_.model.layers - config_.model.moe.first_dense_layers;
}

int64_t Trainer::first_sequence(int64_t micro) const {
  const Range units =
      mesh_.layout().units(plan_.units, plan_.micro_batches, micro, plan_.unit_order);
  return units.begin * plan_.unit_sequences;
}

void Trainer::run_micro_batch(int64_t micro, int64_t counted) {
  const TrainConfig& t = config_.train;
  const BalanceWeights weights{
      .aux_per_group = t.balance.aux_loss / static_cast<double>(plan_.balance_groups()),
      .z_per_token = t.balance.z_loss / static_cast<double>(plan_.tokens_per_step())};
  pass_.load(micro_batches_[at(micro)]);
  if (replay_) replay(pass_.activations(), &replay_->routes()[at(micro)]);
  pass_.forward(context_, weights);
  if (routes_) {
    routes_->record(context_, first_sequence(micro), micro_batches_[at(micro)],
                    pass_.activations());
  }
  head_loss_backward(context_, pass_.h_TD(), parameters_.head(), model_.logit_multiplier(),
                     pass_.targets(), 1.0f / static_cast<float>(counted), pass_.groups().units,
                     head_chunks_, regions_.head_sink(), pass_.loss_T(), pass_.dh_TD());
  pass_.backward(context_, weights, pass_.dh_TD(), &regions_);

  pass_numbers_.push_back(
      {downloads_.add(pass_.loss_T()),
       BalanceNumbers(downloads_, pass_.activations(), pass_.groups().balance_groups())});
}

void Trainer::sum_passes(StepSums& sums) {
  for (int64_t m = 0; m < plan_.micro_batches; ++m) {
    pass_.sequence_losses(pass_numbers_[at(m)].loss_T.as<const float>(),
                          sums.losses().subspan(at(first_sequence(m)), at(plan_.micro_sequences)));
    sum_balance(m, sums);
  }
  sums.all_reduce(context_, world_);
}

void Trainer::sum_balance(int64_t micro, StepSums& sums) {
  const int64_t first_group = first_sequence(micro) / plan_.balance_sequences;
  int64_t layer = 0;
  for (const BalanceRecord& record : pass_numbers_[at(micro)].balance.records()) {
    for (size_t g = 0; g < record.aux_G.size(); ++g) {
      sums.aux()[at(first_group) + g] += record.aux_G[g];
      sums.z()[at(first_group) + g] += record.z_G[g];
    }
    for (size_t e = 0; e < record.load_E.size(); ++e) sums.load(layer)[e] += record.load_E[e];
    sums.dropped(layer) += record.dropped;
    // All ranks of an expert group take the same rounds.
    if (mesh_.layout().ep_rank() == 0) sums.extra_rounds(layer) += record.extra_rounds;
    ++layer;
  }
}

void Trainer::reduce_gradients() {
  for (TrainedRegion& state : regions_.all()) {
    for (size_t i = 0; i < state.gradients.size(); ++i) {
      const AnyView shard = state.gradients[i]->shard();
      if (i == 0) {
        state.grad_shard = shard;
      } else {
        join(context_, state.grad_shard, shard);
      }
    }
  }
}

double Trainer::gradient_norm() {
  const ScratchScope scope(context_.scratch());
  const AnyView sums = context_.scratch().take(DType::kF64, {regions_.norm_blocks()});
  zero(context_, sums);
  for (TrainedRegion& state : regions_.all()) {
    state.adamw->square_sums(context_, state.grad_shard,
                             sums.rows(state.first_norm_block, state.adamw->layout().all_blocks()));
  }
  const AnyView blocks = downloads_.add(sums);
  downloads_.wait();
  world_.all_reduce(context_, blocks, Reduce::kSum, Order::kAny);
  const auto* block = blocks.as<double>().data();
  return std::sqrt(std::accumulate(block, block + blocks.elements(), 0.0));
}

void Trainer::update(double learning_rate, double norm) {
  const OptimizerConfig& o = config_.train.optimizer;
  const AdamWStep hyper{
      .learning_rate = learning_rate,
      .beta1 = o.beta1,
      .beta2 = o.beta2,
      .eps = o.eps,
      .weight_decay = o.weight_decay,
      .step = next_step_ + 1,
      .grad_scale = o.clip > 0 && norm > o.clip ? static_cast<float>(o.clip / norm) : 1.0f};
  std::vector<Work> gathers;  // each beside the steps of the regions behind it
  for (TrainedRegion& state : regions_.all()) {
    const AnyView values = state.region->values;
    state.adamw->step(context_, hyper, values, state.grad_shard);
    const FlatRange mine = state.adamw->range();
    gathers.push_back(state.group->all_gather(context_, values.rows(mine.begin, mine.elements()),
                                              values, state.adamw->layout().shard_elements()));
  }
}

void Trainer::update_biases(StepSums& sums) {
  const double rate = config_.train.balance.bias_update;
  if (rate == 0) return;
  for (int64_t layer = 0, moe = 0; layer < config_.model.layers; ++layer) {
    if (!config_.model.is_moe_layer(static_cast<int>(layer))) continue;
    Parameter& bias = parameters_.get("blocks." + std::to_string(layer) + ".moe.router_bias");
    std::vector<float> steps = bias_steps(sums.load(moe++), rate);
    const ScratchScope scope(context_.scratch());
    const AnyView step_E = context_.scratch().take(DType::kF32, bias.value.shape);
    copy(context_, View<float>(steps.data(), bias.value.shape), step_E);
    add(context_, bias.value, step_E, bias.value);
  }
}

StepResult Trainer::summarise(StepSums& sums, int64_t counted) const {
  StepResult result;
  result.step = next_step_;
  result.tokens = plan_.tokens_per_step();
  const auto total = [](std::span<double> v) { return std::accumulate(v.begin(), v.end(), 0.0); };
  result.loss = total(sums.losses()) / static_cast<double>(counted);
  const BalanceConfig& b = config_.train.balance;
  result.aux_loss = b.aux_loss * total(sums.aux()) / static_cast<double>(plan_.balance_groups());
  result.z_loss = b.z_loss * total(sums.z()) / static_cast<double>(plan_.tokens_per_step());
  for (int64_t layer = 0; layer < moe_layers(); ++layer) {
    LayerHealth health;
    const std::span<int64_t> load = sums.load(layer);
    const auto slots = static_cast<double>(std::accumulate(load.begin(), load.end(), int64_t{0}));
    double entropy = 0;
    for (int64_t n : load) {
      const double share = static_cast<double>(n) / std::max(slots, 1.0);
      if (n > 0) entropy -= share * std::log(share);
      health.dead_experts += n == 0;
    }
    const auto experts = static_cast<double>(load.size());
    const auto most = static_cast<double>(*std::max_element(load.begin(), load.end()));
    health.load_max_over_mean = slots > 0 ? most * experts / slots : 1;
    health.load_entropy = experts > 1 ? entropy / std::log(experts) : 1;
    health.dropped = sums.dropped(layer);
    health.extra_rounds = sums.extra_rounds(layer);
    health.load_E.assign(load.begin(), load.end());
    result.layers.push_back(std::move(health));
  }
  return result;
}

void Trainer::read_batches() {
  std::vector<int64_t> firsts;
  for (int64_t m = 0; m < plan_.micro_batches; ++m) {
    firsts.push_back(first_sequence(m));
    reader_.read_sequences(next_step_, firsts.back(), plan_.micro_sequences, micro_batches_[at(m)]);
  }
  if (routes_) routes_->begin();
  if (!replay_) return;
  run_together(world_, [&] { replay_->read(next_step_, micro_batches_, firsts); });
}

StepResult Trainer::step() {
  read_batches();
  int64_t counted = 0;
  for (const SequenceBatch& batch : micro_batches_) counted += batch.counted_targets;
  world_.all_reduce(context_, View<int64_t>(&counted, {1}), Reduce::kSum, Order::kAny);
  counted = std::max<int64_t>(counted, 1);

  pass_numbers_.clear();
  downloads_.clear();
  for (int64_t m = 0; m < plan_.micro_batches; ++m) run_micro_batch(m, counted);
  if (routes_) routes_->share(context_, world_);
  reduce_gradients();
  const double norm = gradient_norm();
  StepSums sums(plan_, moe_layers(), config_.model.moe.experts);
  sum_passes(sums);

  StepResult result = summarise(sums, counted);
  result.gradient_norm = norm;
  result.learning_rate = config_.train.optimizer.learning_rate * plan_.schedule.factor(next_step_);
  // Norm and loss are the same bits on every rank, so all decide alike.
  result.skipped = !std::isfinite(norm) || !std::isfinite(result.loss);
  if (result.skipped) {
    if (++bad_steps_ >= config_.train.max_bad_steps) {
      throw NumericError(
          "step {}: gradients were not finite {} times in a row (loss {}); lower "
          "train.optimizer.learning_rate",
          next_step_, bad_steps_, result.loss);
    }
  } else {
    bad_steps_ = 0;
    update(result.learning_rate, norm);
    update_biases(sums);
    parameters_.pack(context_);
  }
  ++next_step_;
  return result;
}

ValidationResult Trainer::validate() {
  if (!evaluator_) {
    evaluator_ =
        std::make_unique<Evaluator>(context_, parameters_, model_, plan_, validation_, world_);
  }
  return evaluator_->run();
}

}  // namespace degu
