// `--placement`: on which rank each expert lies when several serve together.
#pragma once

#include <string>
#include <string_view>

#include "cli/command_line.h"
#include "cli/job.h"
#include "io/checkpoint.h"
#include "moe/expert_placement.h"
#include "train/expert_frequencies.h"

namespace degu {

struct PlacementArguments {
  std::string placement = "contiguous";  // contiguous, auto, or a file of `degu plan --serve --out`
  std::string frequencies;               // what auto chooses by; "": what the checkpoint knows
};
void add_placement_options(CommandLine& line, PlacementArguments& arguments);

// The frequencies that were named, else the checkpoint's own. ConfigError that says what to give
// when there are none.
ExpertFrequencies frequencies_for(const CheckpointReader& reader, const ModelShape& shape,
                                  const std::string& named);

// "PLACE: nobody measured …", and what to give.
ConfigError frequencies_missing(std::string_view place);

// What `arguments` ask for, the same on all ranks; rank 0 reads, and logs what it chose and why.
// `ranks`: over how many a layer's experts are spread. Collective.
ExpertPlacement settle_placement(Job& job, const CheckpointReader& reader, const ModelShape& shape,
                                 int ranks, const PlacementArguments& arguments);

}  // namespace degu
