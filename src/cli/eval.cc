#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "cli/command.h"
#include "cli/loaded_model.h"
#include "io/safetensors.h"
#include "train/gradient_probe.h"

namespace degu {
namespace {

struct EvalArguments {
  std::string checkpoint;
  std::vector<std::string> data;
  int64_t validation_tokens = -1;
  int64_t batch = 8;
  int expert_parallel = 1;
  int threads = 0;
  std::string tokens;
  std::string gradients;
  bool json = false;
};

ExitCode dump_gradients(const EvalArguments& arguments, const RunConfig& config,
                        CheckpointReader& checkpoint, Context& context) {
  SafetensorsReader file(arguments.tokens);
  if (file.entries().size() != 1 || file.entries()[0].shape.rank() != 2) {
    throw DataError("{}: one tensor of shape [sequences, S + 1] is wanted", arguments.tokens);
  }
  const Tensor tokens(DType::kI32, file.entries()[0].shape);
  file.read(file.entries()[0].name, tokens);
  const GradientProbe probe = probe_gradients(config, checkpoint, tokens.as<int32_t>(), context);

  std::vector<SafetensorsEntry> entries;
  for (const char* name : {"loss", "aux_loss", "z_loss"})
    entries.push_back({name, DType::kF64, {1}});
  for (const auto& [name, gradient] : probe.gradients) {
    entries.push_back({name, DType::kF32, gradient.shape()});
  }
  SafetensorsWriter writer(arguments.gradients, entries);
  for (double value : {probe.loss, probe.aux_loss, probe.z_loss}) {
    writer.write(View<double>(&value, {1}));
  }
  for (const auto& [name, gradient] : probe.gradients) writer.write(gradient);
  writer.finish();
  return ExitCode::kDone;
}

ExitCode report(const EvalArguments& arguments, const std::string& folder,
                const ValidationResult& result) {
  if (arguments.json) {
    nlohmann::json json = to_json(result);
    json["checkpoint"] = folder;
    std::printf("%s\n", json.dump(2).c_str());
    return ExitCode::kDone;
  }
  std::printf("%-16s %10s %12s %14s %10s\n", "domain", "loss", "perplexity", "bits per byte",
              "tokens");
  for (const DomainLoss& d : result.domains) {
    std::printf("%-16s %10.4f %12.3f %14.4f %10lld\n", d.name.c_str(), d.loss, std::exp(d.loss),
                d.bits_per_byte, static_cast<long long>(d.tokens));
  }
  std::printf("%-16s %10.4f %12.3f %14.4f\n", "all", result.loss, std::exp(result.loss),
              result.bits_per_byte);
  return ExitCode::kDone;
}

ExitCode eval(const EvalArguments& arguments) {
  Job job(arguments.threads);
  LoadedModel loaded(arguments.checkpoint);
  const std::string& folder = loaded.folder;
  RunConfig& config = loaded.config;
  if (!arguments.gradients.empty() || !arguments.tokens.empty()) {
    if (arguments.gradients.empty() || arguments.tokens.empty() || job.world().size() > 1) {
      throw ConfigError("--tokens and --gradients go together, on one rank");
    }
    return dump_gradients(arguments, config, loaded.reader, job.context());
  }
  if (!arguments.data.empty()) {
    config.data.paths = arguments.data;
    config.data.mixture.clear();
  }
  if (arguments.validation_tokens >= 0) config.data.validation_tokens = arguments.validation_tokens;
  const TokenDataset dataset(config.data.paths);
  if (dataset.tokenizer().sha256() != loaded.tokenizer.sha256()) {
    throw DataError(
        "{}: the shards of data.paths were made with another tokenizer than the model's", folder);
  }
  loaded.load(job, arguments.expert_parallel);
  const ValidationSet data(dataset, config.data);
  const StepPlan plan{
      .sequence_length = config.data.sequence_length,
      .unit_sequences = 1,
      .micro_sequences = arguments.batch,
      .balance_sequences = 1,
      .capacity_sequences = std::max(1, config.train.balance.capacity_group_sequences)};
  const ValidationResult result =
      Evaluator(job.context(), *loaded.parameters, *loaded.model, plan, data, job.world()).run();
  return job.world().rank() == 0 ? report(arguments, folder, result) : ExitCode::kDone;
}

}  // namespace

Action attach_eval(CLI::App& app) {
  auto a = std::make_shared<EvalArguments>();
  app.add_option("checkpoint", a->checkpoint, "a checkpoint, or the folder of a run")->required();
  app.add_option("--data", a->data, "prepared data; default: what the model was trained on");
  app.add_option("--validation-tokens", a->validation_tokens, "tokens per domain; 0: all")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--batch", a->batch, "sequences per pass and rank")->check(CLI::PositiveNumber);
  app.add_option("--expert-parallel", a->expert_parallel,
                 "ranks over which the experts are spread");
  app.add_option("--threads", a->threads, "threads per rank; 0: the node's cores over its ranks");
  app.add_option("--tokens", a->tokens,
                 "safetensors file with one int32 tensor [sequences, S + 1]");
  app.add_option("--gradients", a->gradients,
                 "write the loss on --tokens and every gradient to this safetensors file");
  app.add_flag("--json", a->json, "print the result as one JSON object");
  return [a] { return eval(*a); };
}

}  // namespace degu
