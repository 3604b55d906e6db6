// `degu export`: a checkpoint's weights as a safetensors file, and back with --import; its
// tokenizer as the transformers package reads it.
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "base/log.h"
#include "cli/command.h"
#include "cli/loaded_model.h"
#include "data/tokenizer_export.h"
#include "io/checkpoint.h"
#include "io/exchange.h"

namespace degu {
namespace {

struct Options {
  std::string checkpoint;
  std::string import_from;
  std::string out;
  std::string tokenizer_folder;
  std::string dtype = "stored";
  ExportOptions exported;
  ImportOptions imported;
  bool json = false;
};

ExitCode run_export_tokenizer(const Options& options) {
  const LoadedModel model(options.checkpoint);  // the weights stay where they are
  export_tokenizer(model.tokenizer, model.config.data.sequence_length, options.tokenizer_folder);
  if (options.json) {
    const nlohmann::json line = {{"out", options.tokenizer_folder},
                                 {"pieces", model.tokenizer.vocab_size()}};
    std::printf("%s\n", line.dump().c_str());
  } else {
    std::printf("%s: a tokenizer of %d pieces\n", options.tokenizer_folder.c_str(),
                model.tokenizer.vocab_size());
  }
  return ExitCode::kDone;
}

ExitCode run_export(Options options) {
  const bool importing = !options.import_from.empty();
  if (importing == !options.checkpoint.empty()) {
    throw ConfigError("degu export: give either a checkpoint or --import FILE");
  }
  if (!options.tokenizer_folder.empty()) {
    if (importing || !options.out.empty()) {
      throw ConfigError("degu export: --tokenizer-to stands alone with a checkpoint");
    }
    return run_export_tokenizer(options);
  }
  if (options.out.empty()) throw ConfigError("degu export: give --out, or --tokenizer-to FOLDER");
  const std::string& from = importing ? options.import_from : options.checkpoint;
  ExchangeSummary summary;
  if (importing) {
    if (options.dtype != "stored" || options.exported.everything) {
      throw ConfigError(
          "degu export: --dtype and --all do not go with --import (weights become fp32)");
    }
    summary = import_safetensors(from, options.out, options.imported);
  } else {
    if (!options.imported.like.empty() || !options.imported.config.empty() ||
        !options.imported.tokenizer.empty()) {
      throw ConfigError("degu export: --like, --config and --tokenizer go with --import");
    }
    const std::string folder = find_latest(from);
    if (folder.empty()) throw DataError("{}: no checkpoint here", from);
    options.exported.convert = options.dtype != "stored";
    options.exported.dtype = options.dtype == "fp32" ? DType::kF32 : DType::kBF16;
    summary = export_safetensors(folder, options.out, options.exported);
  }
  if (options.json) {
    const nlohmann::json line = {{"out", options.out},
                                 {"tensors", summary.tensors},
                                 {"elements", summary.elements},
                                 {"bytes", summary.bytes}};
    std::printf("%s\n", line.dump().c_str());
  } else {
    std::printf("%s: %lld tensors, %lld elements, %lld bytes\n", options.out.c_str(),
                static_cast<long long>(summary.tensors), static_cast<long long>(summary.elements),
                static_cast<long long>(summary.bytes));
  }
  return ExitCode::kDone;
}

}  // namespace

Action attach_export(CommandLine& line) {
  auto options = std::make_shared<Options>();
  line.option("CHECKPOINT", options->checkpoint,
              "a checkpoint, or a folder of them (the last is taken)");
  line.option("--out", options->out, "file to write; with --import the checkpoint's folder");
  line.option("--tokenizer-to", options->tokenizer_folder,
              "write the tokenizer alone into this folder, as AutoTokenizer of the transformers "
              "package reads it");
  line.option("--dtype", options->dtype, "weights as fp32, bf16 or as they are stored")
      .among({"stored", "fp32", "bf16"});
  line.flag("--all", options->exported.everything,
            "the optimizer's state too; names keep their prefix");
  line.option("--import", options->import_from, "read this safetensors file into a new checkpoint");
  line.option(
      "--like", options->imported.like,
      "with --import: checkpoint to match in names and shapes, and to take configuration and "
      "tokenizer from");
  line.option("--config", options->imported.config, "with --import: configuration to attach");
  line.option("--tokenizer", options->imported.tokenizer, "with --import: tokenizer to attach");
  line.flag("--json", options->json, "one JSON object on standard output");
  return [options] { return run_export(*options); };
}

}  // namespace degu
