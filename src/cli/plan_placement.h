// The part of `degu plan --serve` that says which rank holds which experts.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "train/expert_frequencies.h"

namespace degu {

struct PlannedPlacement {
  ModelShape shape;
  int ranks = 1;
  std::string name;  // "auto", or the file it was read from
  ExpertFrequencies known;
  ExpertPlacement placement;
};

// `name`: auto, contiguous or a file. Errors as read_placement (infer/placement_file.h).
PlannedPlacement plan_placement(const ModelShape& shape, int ranks, const std::string& name,
                                ExpertFrequencies known);

nlohmann::ordered_json placement_json(const PlannedPlacement& plan);
void print_placement(const PlannedPlacement& plan);
void write_placement(const PlannedPlacement& plan, const std::string& path);

}  // namespace degu
