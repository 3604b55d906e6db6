// `degu plan --serve`: where a model's bytes will lie when it is served, before it is loaded.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "cli/command_line.h"

namespace degu {

struct PlanServeArguments {
  std::string model;                 // a checkpoint, a run or a configuration
  std::vector<std::string> schemes;  // of the weights; empty: as held, and int8 and int4 beside it
  std::vector<std::string> keep;     // rules as `degu quantize --keep`
  int ranks = 1;
  int threads = 1;  // per rank
  int64_t context = 0;
  int64_t running = 64;
  int64_t pass_tokens = 256;
  std::string kv = "auto";
  double memory = 0;  // bytes per rank; 0: nothing to compare with
  std::string frequencies;
  std::string placement = "auto";
  std::string out;  // the file of the placement
  bool measure = false;
  std::vector<std::string> overrides;
  bool json = false;
};
void add_plan_serve_options(CommandLine& line, PlanServeArguments& arguments);
ExitCode plan_serve(const PlanServeArguments& arguments);

}  // namespace degu
