#include "train/evaluate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "nn/head.h"

namespace degu {

Evaluator::Evaluator(Context& context, ParameterSet& parameters, const Transformer& model,
                     const StepPlan& plan, const ValidationSet& data, Communicator& world)
    : context_(context),
      parameters_(parameters),
      model_(model),
      data_(data),
      world_(world),
      per_pass_(plan.micro_sequences),
      pass_(context, model, plan, plan.micro_sequences, /*training=*/false) {}

ValidationResult Evaluator::run() {
  const int64_t all = data_.sequences();
  std::vector<double> losses(static_cast<size_t>(all), 0.0);
  std::vector<double> own(static_cast<size_t>(per_pass_));
  // Ranks take passes in turn. A pass is collective over the expert group, so a rank that has run
  // out of sequences repeats the first ones and drops the result.
  for (int64_t round = 0; round < all; round += per_pass_ * world_.size()) {
    const int64_t mine = round + per_pass_ * world_.rank();
    const int64_t count = std::clamp<int64_t>(all - mine, 0, per_pass_);
    data_.read(count > 0 ? mine : 0, count > 0 ? count : std::min(per_pass_, all), batch_);
    pass_.load(batch_);
    pass_.forward(context_, {});
    if (count == 0) continue;
    head_loss(context_, pass_.h_TD(), parameters_.head(), model_.logit_multiplier(),
              pass_.targets(), pass_.loss_T());
    const std::span<double> sums = std::span(own).first(static_cast<size_t>(count));
    pass_.sequence_losses(sums);
    std::copy(sums.begin(), sums.end(), losses.begin() + mine);
  }
  world_.all_reduce(context_, View<double>(losses.data(), {all}), Reduce::kSum, Order::kAny);

  ValidationResult result;
  const double bits = 1.0 / std::log(2.0);
  double sum = 0;
  int64_t tokens = 0;
  int64_t bytes = 0;
  for (const ValidationSet::Domain& d : data_.domains()) {
    const auto first = losses.begin() + d.first_sequence;
    const double loss = std::accumulate(first, first + d.sequences, 0.0);
    result.domains.push_back({.name = d.name,
                              .loss = loss / static_cast<double>(d.counted_targets),
                              .bits_per_byte = loss * bits / static_cast<double>(d.counted_bytes),
                              .tokens = d.counted_targets});
    sum += loss;
    tokens += d.counted_targets;
    bytes += d.counted_bytes;
  }
  result.loss = sum / static_cast<double>(tokens);
  result.bits_per_byte = sum * bits / static_cast<double>(bytes);
  return result;
}

}  // namespace degu
