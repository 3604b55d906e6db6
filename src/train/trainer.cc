#include "train/trainer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "comm/agree.h"
#include "kernels/api/elementwise.h"
#include "kernels/api/router.h"
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
      norm_(context, regions_, plan_),
      pending_{PendingStep(context), PendingStep(context)},
      flops_per_token_(training_flops(config.model, plan_.sequence_length, 1.0)) {
  if (dataset.vocab_size() != config.model.vocab) {
    throw ConfigError(
        "model.vocab is {} but the data's tokenizer has {} pieces; set model.vocab: {}",
        config.model.vocab, dataset.vocab_size(), dataset.vocab_size());
  }
  if (config.train.balance.bias_update != 0 && moe_layers() > 0) {
    load_LE_ = Tensor(DType::kI64, {moe_layers(), config.model.moe.experts}, context.device());
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

void Trainer::run_micro_batch(int64_t micro, PendingStep& step) {
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
                     pass_.targets(), 1.0f / static_cast<float>(step.counted), pass_.groups().units,
                     head_chunks_, regions_.head_sink(), pass_.loss_T(), pass_.dh_TD());
  norm_.add_losses(context_, micro, pass_.loss_T());
  pass_.backward(context_, weights, pass_.dh_TD(), &regions_);

  if (load_LE_) add(context_, load_LE_, pass_.activations().balance_load_LE, load_LE_);
  step.passes.push_back(
      {step.downloads.add(pass_.loss_T()),
       BalanceNumbers(step.downloads, pass_.activations(), pass_.groups().balance_groups())});
}

void Trainer::sum_passes(PendingStep& step, StepSums& sums) {
  for (int64_t m = 0; m < plan_.micro_batches; ++m) {
    pass_.sequence_losses(step.passes[at(m)].loss_T.as<const float>(),
                          sums.losses().subspan(at(first_sequence(m)), at(plan_.micro_sequences)));
    sum_balance(m, step, sums);
  }
  sums.all_reduce(context_, world_);
}

void Trainer::sum_balance(int64_t micro, PendingStep& step, StepSums& sums) {
  const int64_t first_group = first_sequence(micro) / plan_.balance_sequences;
  int64_t layer = 0;
  for (const BalanceRecord& record : step.passes[at(micro)].balance.records()) {
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

double Trainer::learning_rate(int64_t step) const {
  return config_.train.optimizer.learning_rate * plan_.schedule.factor(step);
}

void Trainer::update() {
  const OptimizerConfig& o = config_.train.optimizer;
  const AdamWStep hyper{.learning_rate = learning_rate(next_step_),
                        .beta1 = o.beta1,
                        .beta2 = o.beta2,
                        .eps = o.eps,
                        .weight_decay = o.weight_decay,
                        .step = next_step_ + 1};
  std::vector<Work> gathers;  // each beside the steps of the regions behind it
  for (TrainedRegion& state : regions_.all()) {
    const AnyView values = state.region->values;
    state.adamw->step(context_, hyper, norm_.scale(), values, state.grad_shard);
    const FlatRange mine = state.adamw->range();
    gathers.push_back(state.group->all_gather(context_, values.rows(mine.begin, mine.elements()),
                                              values, state.adamw->layout().shard_elements()));
  }
}

void Trainer::update_biases() {
  if (!load_LE_) return;
  world_.all_reduce(context_, load_LE_, Reduce::kSum, Order::kAny).wait();
  for (int64_t layer = 0, moe = 0; layer < config_.model.layers; ++layer) {
    if (!config_.model.is_moe_layer(static_cast<int>(layer))) continue;
    Parameter& bias = parameters_.get("blocks." + std::to_string(layer) + ".moe.router_bias");
    balance_bias(context_, load_LE_.view().rows(moe++, 1), config_.train.balance.bias_update,
                 norm_.scale(), bias.value);
  }
}

StepResult Trainer::summarise(StepSums& sums, int64_t counted) const {
  StepResult result;
  result.step = finished_steps_;
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

void Trainer::begin_step() {
  DEGU_DCHECK(pending_steps() <= steps_ahead());
  read_batches();
  PendingStep& step = numbers_of(next_step_);
  step.passes.clear();
  step.downloads.clear();
  step.counted = 0;
  for (const SequenceBatch& batch : micro_batches_) step.counted += batch.counted_targets;
  world_.all_reduce(context_, View<int64_t>(&step.counted, {1}), Reduce::kSum, Order::kAny);
  step.counted = std::max<int64_t>(step.counted, 1);

  if (load_LE_) zero(context_, load_LE_);
  for (int64_t m = 0; m < plan_.micro_batches; ++m) run_micro_batch(m, step);
  if (routes_) routes_->share(context_, world_);
  reduce_gradients();
  norm_.measure(context_, world_, regions_.all(), config_.train.optimizer.clip);
  step.square_sums = step.downloads.add(norm_.square_sums());
  step.downloads.close();
  update();
  update_biases();
  parameters_.pack(context_);
  ++next_step_;
}

StepResult Trainer::finish_step() {
  DEGU_DCHECK(pending_steps() > 0);
  PendingStep& step = numbers_of(finished_steps_);
  step.downloads.wait();
  StepSums sums(plan_, moe_layers(), config_.model.moe.experts);
  sum_passes(step, sums);

  StepResult result = summarise(sums, step.counted);
  const View<double> square_sums = step.square_sums.as<double>();
  result.gradient_norm = std::sqrt(square_sums[0]);
  result.learning_rate = learning_rate(finished_steps_);
  // As gradient_scale decided; the sums are the same bits on every rank.
  result.skipped = !std::isfinite(square_sums[0]) || !std::isfinite(square_sums[1]);
  ++finished_steps_;
  bad_steps_ = result.skipped ? bad_steps_ + 1 : 0;
  if (bad_steps_ >= config_.train.max_bad_steps && result.skipped) {
    throw NumericError(
        "step {}: gradients were not finite {} times in a row (loss {}); lower "
        "train.optimizer.learning_rate",
        result.step, bad_steps_, result.loss);
  }
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
