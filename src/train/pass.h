// One forward (and backward) pass over packed sequences: the memory it needs, laid out once, and
// the views of a SequenceBatch that the model reads.
#pragma once

#include <optional>
#include <vector>

#include "data/reader.h"
#include "model/transformer.h"
#include "tensor/device.h"
#include "train/step_plan.h"

namespace degu {

class Pass {
 public:
  // Memory for passes of at most `sequences` packed sequences; `unit_sequences` and the group sizes
  // as in StepPlan. `training`: keep what the backward pass needs.
  Pass(Context& context, const Transformer& model, const StepPlan& plan, int64_t sequences,
       bool training);

  // Makes `data` the pass's input; it must outlive the pass's use.
  void load(const SequenceBatch& data);
  // Leaves the head's input in activations().
  void forward(Context& context, const BalanceWeights& weights);
  // `sink` as Transformer::backward.
  void backward(Context& context, const BalanceWeights& weights, AnyView dh_TD,
                BlockSink* sink = nullptr);

  Context& context() const { return context_; }
  const TokenGroups& groups() const { return groups_; }
  Activations& activations() { return activations_; }
  AnyView h_TD() const { return activations_.h_TD.rows(0, batch_.tokens()); }
  AnyView loss_T() const { return loss_T_.rows(0, batch_.tokens()); }
  AnyView dh_TD() const { return dh_TD_.rows(0, batch_.tokens()); }
  std::span<const int32_t> targets() const { return targets_T_; }
  OnHost host_loss_T() const { return {context_, loss_T()}; }
  // Sum of the losses of each packed sequence, in token order and double precision. On an
  // accelerator the host waits; the other form takes loss_T() as it has come to the host.
  void sequence_losses(std::span<double> out) const;
  void sequence_losses(View<const float> loss_T, std::span<double> out) const;
  size_t reserved_bytes() const { return arena_.capacity(); }

 private:
  static void layout(Arena& arena, Context& context, const Transformer& model, const StepPlan& plan,
                     int64_t tokens, int64_t groups, bool training, Pass* pass);

  Context& context_;
  const Transformer& model_;
  StepPlan plan_;
  bool training_;
  Arena arena_;
  Activations activations_;
  std::optional<LocalKv> kv_;
  AnyView loss_T_;
  AnyView dh_TD_;
  Batch batch_;
  TokenGroups groups_;
  std::span<const int32_t> targets_T_;
  std::vector<int64_t> first_position_;
  std::vector<int64_t> unit_offsets_, balance_offsets_, capacity_offsets_;
};

}  // namespace degu
