// A trained tensor as layers see it: its fp32 value, the packings that products read, and where
// this pass's gradient goes. When serving, what is packed has no value beside it. Storage, sharding
// and updates belong to model/parameters.h.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/api/rows.h"
#include "kernels/api/weight.h"

namespace degu {

enum class ParameterRole {
  kEmbedding,  // rows looked up by token; with a tied head also the output matrix
  kMatrix,     // [F, D]
  kExperts,    // [E, F, D], spread over the expert-parallel group
  kGain,       // [D], fp32
  kRouter,     // [E, D], multiplied in fp32
  kHead,       // [V, D]
  kState       // fp32 numbers that no gradient reaches (the balancing bias)
};

struct ParameterSpec {
  std::string name;  // "blocks.3.moe.up"
  Shape shape;       // of the whole tensor, all experts
  ParameterRole role;
  double init_std = 0;         // 0: gains start at one, state at zero
  double rate_multiplier = 1;  // on the learning rate (muP)
  bool decay = false;          // takes weight decay
  int layer = -1;              // the block it belongs to; -1: none
};

struct Parameter {
  ParameterSpec spec;
  AnyView value;          // fp32, this rank's part (its experts; all of it otherwise); or null
  PackedWeight forward;   // matrices, and when serving the embedding
  PackedWeight backward;  // matrices only
  AnyView table;          // training's embedding only: [V, D] in the activation type
  AnyView gradient;       // fp32, [slots, …]: where the present pass writes
  Write write = Write::kOverwrite;
};

}  // namespace degu
