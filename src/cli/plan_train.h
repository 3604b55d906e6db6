// `degu plan --train`: what a training run takes on each rank of a cluster, and its fastest layout.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "cli/command_line.h"
#include "train/layout_plan.h"

namespace degu {

struct PlanTrainArguments {
  std::string config;   // a run's YAML
  std::string cluster;  // of `degu bench comm`
  double imbalance = LayoutAssumptions{}.imbalance;
  double utilisation = 0;  // 0: the default
  std::string out;         // the run's YAML with the best layout
  std::vector<std::string> overrides;
  bool json = false;
};
void add_plan_train_options(CommandLine& line, PlanTrainArguments& arguments);
ExitCode plan_train(const PlanTrainArguments& arguments);

}  // namespace degu
