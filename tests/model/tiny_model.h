// A model small enough for finite differences, with its batch, run outside the trainer.
#pragma once

#include <numeric>
#include <vector>

#include "base/random.h"
#include "model/transformer.h"
#include "nn/head.h"

namespace degu::testing {

inline ModelShape tiny_shape(int experts = 4) {
  const ModelShape shape{.vocab = 37,
                         .width = 16,
                         .layers = 2,
                         .heads = 2,
                         .kv_heads = 1,
                         .head_width = 8,
                         .ffn_width = 32,
                         .init_std = 0.2,
                         .moe = {.experts = experts, .top_k = 2, .expert_width = 16}};
  return shape.resolved();
}

// Writes every parameter's gradient into memory of its own.
class GradientMemory : public LeafSink {
 public:
  explicit GradientMemory(ParameterSet& parameters) : parameters_(parameters) {
    for (auto& p : parameters.all()) {
      memory_.emplace_back(DType::kF32, p->value.shape);
      head_memory_ = p->spec.name == "embedding" ? Tensor(DType::kF32, p->value.shape)
                                                 : std::move(head_memory_);
    }
    restart();
  }
  void restart() {
    for (size_t i = 0; i < memory_.size(); ++i) {
      parameters_.all()[i]->gradient = memory_[i];
      parameters_.all()[i]->write = Write::kOverwrite;
    }
    chunks_ = 0;
  }
  // The head's chunks are simply added up; a tied embedding keeps the two sums apart until the end.
  void begin_leaf() override {
    Parameter& head = parameters_.head();
    if (parameters_.shape().tied_head) head.gradient = head_memory_;
    head.write = chunks_++ == 0 ? Write::kOverwrite : Write::kAdd;
  }
  void end_leaf() override {
    if (!parameters_.shape().tied_head) return;
    parameters_.head().gradient = memory_.front();
    parameters_.head().write = Write::kOverwrite;
  }
  double of(size_t parameter, int64_t element) const {
    double g = memory_[parameter].as<float>()[element];
    if (parameters_.shape().tied_head && parameter == 0) g += head_memory_.as<float>()[element];
    return g;
  }

 private:
  ParameterSet& parameters_;
  std::vector<Tensor> memory_;
  Tensor head_memory_;
  int chunks_ = 0;
};

struct TinyBatch {
  std::vector<int32_t> tokens, targets, positions;
  std::vector<int64_t> sequence_offsets, first_position, unit_offsets;

  // `lengths`: of the ragged sequences; `units`: how many sequences each unit holds.
  TinyBatch(const std::vector<int64_t>& lengths, const std::vector<int64_t>& units, int vocab,
            uint64_t seed = 3) {
    const RandomStream stream(seed, "tiny batch");
    sequence_offsets = {0};
    for (int64_t length : lengths) {
      for (int64_t i = 0; i < length; ++i) {
        const auto at = static_cast<uint64_t>(tokens.size());
        tokens.push_back(static_cast<int32_t>(stream.below(2 * at, static_cast<uint64_t>(vocab))));
        targets.push_back(i + 1 == length ? -1
                                          : static_cast<int32_t>(stream.below(
                                                2 * at + 1, static_cast<uint64_t>(vocab))));
        positions.push_back(static_cast<int32_t>(i));
      }
      sequence_offsets.push_back(static_cast<int64_t>(tokens.size()));
    }
    first_position.assign(lengths.size(), 0);
    unit_offsets = {0};
    size_t sequence = 0;
    for (int64_t count : units) {
      sequence += static_cast<size_t>(count);
      unit_offsets.push_back(sequence_offsets[sequence]);
    }
  }
  Batch view(std::span<const KvView> kv) const {
    return {.tokens_T = tokens,
            .positions_T = positions,
            .sequences = {.offsets = sequence_offsets, .first_position = first_position},
            .kv_L = kv};
  }
  TokenGroups groups() const {
    return {.units = {.offsets = unit_offsets,
                      .groups = 1,
                      .slots = 1,
                      .units = static_cast<int64_t>(unit_offsets.size()) - 1},
            .balance_offsets = unit_offsets,
            .capacity_offsets = unit_offsets};
  }
};

}  // namespace degu::testing
