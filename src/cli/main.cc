// The command line: the table of subcommands, and the one place where errors end the process.
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "cli/command.h"
#include "cli/job.h"
#include "comm/world.h"

namespace degu {
namespace {

constexpr Command kCommands[] = {
    {"info", "parameters, FLOPs and bytes of a model; versions and machine without one",
     attach_info},
    {"data", "text to tokenizer and token shards", attach_data},
    {"train", "train one model", attach_train, true},
    {"eval", "validation loss of a checkpoint", attach_eval, true},
    {"generate", "text from a checkpoint", attach_generate, true},
    {"chat", "a conversation with a checkpoint on the terminal", attach_chat, true},
    {"serve", "an OpenAI-compatible HTTP server over a checkpoint", attach_serve, true},
    {"parity", "whether training, prefill and decode compute the same bits", attach_parity, true},
    {"sweep", "train a grid of models for a scaling law", attach_sweep, true},
    {"fit", "fit a scaling law to a table of runs", attach_fit},
    {"plan", "the best model for a budget, from a fitted law; what training and serving take",
     attach_plan},
    {"bench", "peaks of this machine and its links, and shares of them; a server under load",
     attach_bench, true},
    {"export", "checkpoints to and from safetensors", attach_export},
    {"quantize", "a checkpoint's weights as 8- or 4-bit codes, to be served", attach_quantize,
     true},
    {"profile", "memory, latency, throughput, cost and quality of ways to serve a model",
     attach_profile},
    {"help", "the YAML reference: every key, its default and meaning", attach_help},
};

struct Attached {
  const Command& command;
  CLI::App* app;
  Action action;
};

// The command, then what a full disk behind `> result.json` would otherwise hide.
ExitCode run_and_flush(const Attached& attached) {
  if (!attached.command.many_ranks) require_one_rank(attached.command.name);
  const ExitCode code = attached.action();
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    throw IoError("standard output cannot be written; check the disk or the pipe it goes to");
  }
  return code;
}

// One line on standard error for a command line that cannot be understood.
int usage_error(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<CLI::App*> parsed = app.get_subcommands();
  std::string what = error.what();
  std::string help = "degu";
  if (!parsed.empty()) {
    help += " " + parsed.front()->get_name();
  } else if (const std::vector<std::string> words = app.remaining(); !words.empty()) {
    what = fmt::format("unknown command \"{}\"", words.front());
  }
  fmt::print(stderr, "degu: {}; see {} --help\n", what, help);
  return static_cast<int>(ExitCode::kUsage);
}

int run(int argc, char** argv) {
  CLI::App app("Mixture-of-Experts language models: data, training, scaling laws, plans.", "degu");
  app.require_subcommand(1);
  app.set_version_flag("--version", "degu " DEGU_VERSION);
  const std::map<std::string, LogLevel> levels = {{"debug", LogLevel::kDebug},
                                                  {"info", LogLevel::kInfo},
                                                  {"warn", LogLevel::kWarn},
                                                  {"error", LogLevel::kError}};
  LogLevel level = LogLevel::kInfo;
  app.add_option("--log-level", level, "least severe line to print: debug, info, warn or error")
      ->transform(CLI::CheckedTransformer(levels).description(""));

  std::vector<Attached> attached;
  for (const Command& command : kCommands) {
    CLI::App* sub = app.add_subcommand(command.name, command.summary);
    sub->fallthrough();  // global options may follow the subcommand
    attached.push_back({command, sub, command.attach(*sub)});
  }

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    return usage_error(app, error);
  }
  set_log_level(level);
  for (const Attached& attachment : attached) {
    if (attachment.app->parsed()) return run_as_job([&] { return run_and_flush(attachment); });
  }
  return static_cast<int>(ExitCode::kUsage);
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
