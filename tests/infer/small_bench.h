// A small model with random weights that reads the small tokenizer's tokens, and a lane to run it
// on.
#pragma once

#include "infer/lanes.h"
#include "tests/infer/small_models.h"

namespace degu::testing {

inline ModelShape shape_for_text() {
  ModelShape shape = small_shape();
  shape.vocab = 300;
  return shape;
}

// A model with random weights and everything an engine needs.
struct Bench {
  Context context;
  ParameterSet parameters;
  Transformer model;
  ModelRunner runner;
  LocalLane lane;

  explicit Bench(int32_t pages, PassLimits limits = {.rows = 48, .logit_rows = 40},
                 const ModelShape& shape = shape_for_text(), uint64_t seed = 7,
                 const ContextOptions& options = {.threads = 2})
      : context(options),
        parameters(context, shape, DType::kBF16, {0, shape.moe.experts}, false),
        model(filled(seed)),
        runner(context, parameters, model, limits, DType::kBF16, pages),
        lane(context, runner) {}

 private:
  ParameterSet& filled(uint64_t seed) {
    parameters.initialise(context, seed);
    parameters.pack(context);
    return parameters;
  }
};

}  // namespace degu::testing
