// What serving a checkpoint really takes, beside what `degu plan --serve` predicts.
#pragma once

#include <string>
#include <vector>

#include "cli/plan_serve.h"
#include "moe/expert_placement.h"

namespace degu {

// Bytes by which this process grew.
struct MeasuredMemory {
  std::vector<size_t> weights_P;  // while rank p's weights were read
  size_t pass = 0;                // all ranks' workspaces, scratch and pages, after one full pass
  int64_t pages = 0;              // of one rank in that pass
};

// Loads the checkpoint as `a.ranks` threads of this process, one after another, and runs one pass
// of `a.pass_tokens` tokens per rank, as serving does.
MeasuredMemory measure_serving(const std::string& folder, const PlanServeArguments& a,
                               const ExpertPlacement& placement);

}  // namespace degu
