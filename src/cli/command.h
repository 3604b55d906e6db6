// A subcommand of the binary: one file of src/cli/ each, one line in main.cc's table.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "base/error.h"
#include "cli/command_line.h"

namespace degu {

// Called once the command line is parsed; throws Error or returns the exit code.
using Action = std::function<ExitCode()>;

// How many processes of a job may run a command.
enum class Ranks : uint8_t {
  kOne,   // several would do the same work and write the same files
  kMany,  // they share the work
  kAny    // each answers for itself
};

struct Command {
  const char* name;
  const char* summary;                  // one line for `degu --help`
  Action (*attach)(CommandLine& line);  // declares the options, returns what to run
  Ranks ranks = Ranks::kOne;
};

// Declares `commands` within `line`, of which the user has to name one: returns what runs that.
Action attach_commands(CommandLine& line, std::span<const Command> commands);

// Defined in src/cli/<name>.cc.
Action attach_info(CommandLine& line);
Action attach_data(CommandLine& line);
Action attach_train(CommandLine& line);
Action attach_eval(CommandLine& line);
Action attach_generate(CommandLine& line);
Action attach_serve(CommandLine& line);
Action attach_chat(CommandLine& line);
Action attach_parity(CommandLine& line);
Action attach_sweep(CommandLine& line);
Action attach_fit(CommandLine& line);
Action attach_plan(CommandLine& line);
Action attach_bench(CommandLine& line);
Action attach_export(CommandLine& line);
Action attach_quantize(CommandLine& line);
Action attach_profile(CommandLine& line);
Action attach_help(CommandLine& line);

}  // namespace degu
