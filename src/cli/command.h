// A subcommand of the binary: one file of src/cli/ each, one line in main.cc's table.
#pragma once

#include <CLI/CLI.hpp>

#include <functional>

#include "base/error.h"

namespace degu {

// Called once the command line is parsed; throws Error or returns the exit code.
using Action = std::function<ExitCode()>;

struct Command {
  const char* name;
  const char* summary;              // one line for `degu --help`
  Action (*attach)(CLI::App& app);  // declares the options, returns what to run
  bool many_ranks = false;          // may run under `mpirun -n 2` and more
};

// Defined in src/cli/<name>.cc.
Action attach_info(CLI::App& app);
Action attach_data(CLI::App& app);
Action attach_train(CLI::App& app);
Action attach_eval(CLI::App& app);
Action attach_generate(CLI::App& app);
Action attach_serve(CLI::App& app);
Action attach_chat(CLI::App& app);
Action attach_parity(CLI::App& app);
Action attach_sweep(CLI::App& app);
Action attach_fit(CLI::App& app);
Action attach_plan(CLI::App& app);
Action attach_bench(CLI::App& app);
Action attach_export(CLI::App& app);
Action attach_quantize(CLI::App& app);
Action attach_profile(CLI::App& app);
Action attach_help(CLI::App& app);

}  // namespace degu
