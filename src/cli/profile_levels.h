// The levels of `degu profile`: what they are called, and the checkpoints that serve them.
#pragma once

#include <string>
#include <vector>

#include "cli/loaded_model.h"
#include "data/token_dataset.h"

namespace degu {

// A way to serve one checkpoint.
struct ProfileLevel {
  std::string level;   // "int8", "int8+speculative"
  std::string scheme;  // of the weights: "w8a8"; "" when training's values are served as they are
  std::string method;  // of the quantizer; "" likewise
  std::string folder;  // the checkpoint to serve
  bool speculative = false;
  bool shares_quality = false;  // the same weights are also served without speculation, before it
};

// From `--levels`: bf16, int8 (w8a8), int4 (w4a8), fp8, any scheme's name, each also with
// "+speculative"; "speculative" alone speculates over int8 when that is listed, else over the first
// listed. ConfigError for anything else.
struct LevelRequest {
  std::string level;
  std::string scheme;
  bool speculative = false;
};
std::vector<LevelRequest> parse_levels(const std::vector<std::string>& names);

// Folders with the requested levels of `model`, made under `out` where they are not there yet from
// this very checkpoint. A quantized checkpoint is one level, as it is, with and without speculation
// as requested. `method`: of the quantizer; empty: the scheme's default.
//
// `calibration`: shards that calibrated methods (AWQ for 4 bits) read; null: what the model was
// trained on.
struct LevelOptions {
  std::string method;
  const TokenDataset* calibration = nullptr;
  std::string out;
};
std::vector<ProfileLevel> prepare_levels(Job& job, LoadedModel& model,
                                         const std::vector<LevelRequest>& requests,
                                         const LevelOptions& options);

}  // namespace degu
