// The command line: the table of subcommands, and the one place where errors end the process.
#include <cstdio>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/log.h"
#include "cli/command.h"
#include "comm/world.h"

namespace degu {
namespace {

constexpr Command kCommands[] = {
    {"info", "parameters, FLOPs and bytes of a model; versions and machine without one",
     attach_info, Ranks::kAny},
    {"data", "text to tokenizer and token shards", attach_data},
    {"train", "train one model", attach_train, Ranks::kMany},
    {"eval", "validation loss of a checkpoint", attach_eval, Ranks::kMany},
    {"generate", "text from a checkpoint", attach_generate, Ranks::kMany},
    {"chat", "a conversation with a checkpoint on the terminal", attach_chat, Ranks::kMany},
    {"serve", "an OpenAI-compatible HTTP server over a checkpoint", attach_serve, Ranks::kMany},
    {"parity", "whether training, prefill and decode compute the same bits", attach_parity,
     Ranks::kMany},
    {"sweep", "train a grid of models for a scaling law", attach_sweep, Ranks::kMany},
    {"fit", "fit a scaling law to a table of runs", attach_fit},
    {"plan", "the best model for a budget, from a fitted law; what training and serving take",
     attach_plan},
    {"bench", "peaks of this machine and its links, and shares of them; a server under load",
     attach_bench, Ranks::kMany},
    {"export", "checkpoints to and from safetensors", attach_export},
    {"quantize", "a checkpoint's weights as 8- or 4-bit codes, to be served", attach_quantize,
     Ranks::kMany},
    {"profile", "memory, latency, throughput, cost and quality of ways to serve a model",
     attach_profile},
    {"help", "the YAML reference: every key, its default and meaning", attach_help, Ranks::kAny},
};

// The command, then what a full disk behind `> result.json` would otherwise hide.
ExitCode run_and_flush(const Action& action) {
  const ExitCode code = action();
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    throw IoError("standard output cannot be written; check the disk or the pipe it goes to");
  }
  return code;
}

int run(int argc, char** argv) {
  CommandLine line("degu",
                   "Mixture-of-Experts language models: data, training, scaling laws, plans.",
                   DEGU_VERSION);
  constexpr std::string_view kLevels[] = {"debug", "info", "warn", "error"};
  LogLevel level = LogLevel::kInfo;
  line.word("--log-level", kLevels, static_cast<size_t>(level), "least severe line to print",
            [&](size_t index) { level = static_cast<LogLevel>(index); });
  const Action action = attach_commands(line, kCommands);
  if (const std::optional<int> code = line.parse(argc, argv)) return *code;
  set_log_level(level);
  return run_as_job([&] { return run_and_flush(action); });
}

}  // namespace
}  // namespace degu

int main(int argc, char** argv) {
  try {
    return degu::run(argc, argv);
  } catch (const std::exception& error) {  // a command could not even declare its options
    std::fprintf(stderr, "degu: %s\n", error.what());
    return static_cast<int>(degu::ExitCode::kFailure);
  }
}
