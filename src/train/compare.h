// Two models on the same tokens: what quantization, or anything else, changed.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "comm/communicator.h"
#include "data/reader.h"
#include "train/pass.h"

namespace degu {

// A ratio of sums over documents and its 95 % percentile interval, from resampled documents.
struct Estimate {
  double value = 0;
  double low = 0;
  double high = 0;
};

struct Comparison {
  int64_t tokens = 0;                   // targets counted
  int64_t documents = 0;                // parts of documents in the windows: what is resampled
  double loss = 0, reference_loss = 0;  // nats per token
  double bits_per_byte = 0, reference_bits_per_byte = 0;
  Estimate perplexity_change;  // perplexity / the reference's - 1
  Estimate kl;                 // nats per token, reference || model
  Estimate top1_agreement;     // share of tokens
  Estimate routing_changed;    // share of tokens that visit another set of experts in some layer
};

struct ComparedModel {
  ParameterSet& parameters;
  const Transformer& model;
};

// Both models must share vocabulary and layers. A pass has `plan.micro_sequences` sequences; ranks
// of `world` (null: one) take passes in turn and end with the same numbers, whatever their count.
// Collective.
Comparison compare_models(Context& context, const ComparedModel& model,
                          const ComparedModel& reference, const StepPlan& plan,
                          const ValidationSet& data, Communicator* world = nullptr);

nlohmann::json to_json(const Comparison& comparison);

}  // namespace degu
