// Files that say which rank serves which experts (docs/formats/placement.md): written by `degu plan
// --serve --out`, read by `--placement FILE`.
#pragma once

#include <string>

#include "moe/expert_placement.h"

namespace degu {

struct PlacementFile {
  int ranks = 1;       // that it was chosen for
  std::string source;  // of the frequencies it was chosen by
  ExpertPlacement placement;
};

// Writes the tables of the MoE layers of `shape`.
std::string placement_text(const PlacementFile& file, const ModelShape& shape);
// ConfigError with file, place and remedy when it is not a placement of a model of this shape: each
// MoE layer once, with each of its experts once. `name` stands for the file in messages.
PlacementFile parse_placement(const std::string& text, const std::string& name,
                              const ModelShape& shape);
// IoError too when the file cannot be read.
PlacementFile read_placement(const std::string& path, const ModelShape& shape);

}  // namespace degu
