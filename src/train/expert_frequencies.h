// How many rows each expert took: what the placement of experts on serving ranks is chosen from.
#pragma once

#include <optional>
#include <string>

#include "io/checkpoint.h"
#include "moe/expert_placement.h"

namespace degu {

struct ExpertFrequencies {
  ExpertRows rows_LE;
  std::string source;  // for people
};

// From what `path` is:
//   a file of routes   of `degu generate --routes` or `train.record_routes` (train/route_file.h)
//   a run's folder, or its metrics.jsonl: `layers[].load` of the newest tenth of the logged steps,
//                      for what routers did while they learned says little about the last ones
//   what a server's /metrics said: degu:expert_rows_total
//   a checkpoint       as checkpoint_frequencies
// IoError when it cannot be read; DataError with file and line when it is none of these, belongs to
// a model of another shape or counts nothing.
ExpertFrequencies read_frequencies(const std::string& path, const ModelShape& shape);

// What a checkpoint knows by itself: the tokens that calibration sent to each expert (AWQ, GPTQ),
// or the metrics of the run in whose folder it lies, up to its own step. Nothing when it has
// neither.
std::optional<ExpertFrequencies> checkpoint_frequencies(const CheckpointReader& reader,
                                                        const ModelShape& shape);

}  // namespace degu
