#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "cli/command.h"
#include "cli/loaded_model.h"
#include "io/safetensors.h"
#include "train/compare.h"
#include "train/gradient_probe.h"
#include "train/replay.h"

namespace degu {
namespace {

struct EvalArguments {
  std::string checkpoint;
  std::string reference;
  std::vector<std::string> data;
  int64_t validation_tokens = -1;
  int64_t batch = 8;
  int expert_parallel = 1;
  int threads = 0;
  DeviceType device = DeviceType::kCpu;
  PlacementArguments placement;
  std::string tokens;
  std::string gradients;
  std::string replay;
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

void print_comparison(const Comparison& c) {
  const auto line = [](const char* name, const Estimate& e, double factor, const char* unit) {
    fmt::print("{:<28} {:>11.5f} {:<4} [{:.5f}, {:.5f}]\n", name, factor * e.value, unit,
               factor * e.low, factor * e.high);
  };
  fmt::print("{} tokens of {} documents; intervals: 95 %, documents resampled\n", c.tokens,
             c.documents);
  fmt::print("{:<28} {:>11} {:>11}\n", "", "model", "reference");
  fmt::print("{:<28} {:>11.5f} {:>11.5f}\n", "loss", c.loss, c.reference_loss);
  fmt::print("{:<28} {:>11.4f} {:>11.4f}\n", "perplexity", std::exp(c.loss),
             std::exp(c.reference_loss));
  fmt::print("{:<28} {:>11.5f} {:>11.5f}\n\n", "bits per byte", c.bits_per_byte,
             c.reference_bits_per_byte);
  line("perplexity change", c.perplexity_change, 100, "%");
  line("KL(reference || model)", c.kl, 1, "nats");
  line("same most likely token", c.top1_agreement, 100, "%");
  line("tokens routed otherwise", c.routing_changed, 100, "%");
}

ExitCode compare(const EvalArguments& arguments, Job& job, const ComparedModel& compared,
                 const std::string& folder, const StepPlan& plan, const ValidationSet& data) {
  LoadedModel reference(arguments.reference);
  reference.load(job, arguments.expert_parallel, arguments.placement);
  const Comparison result = compare_models(
      job.context(), compared, {*reference.parameters, *reference.model}, plan, data, &job.world());
  if (job.world().rank() != 0) return ExitCode::kDone;
  if (arguments.json) {
    nlohmann::json json = to_json(result);
    json["checkpoint"] = folder;
    json["reference"] = reference.folder;
    fmt::print("{}\n", json.dump(2));
  } else {
    print_comparison(result);
  }
  return ExitCode::kDone;
}

ExitCode replay_routes(const EvalArguments& arguments, Job& job, LoadedModel& loaded) {
  if (job.world().size() > 1) throw ConfigError("--replay runs on one rank");
  const std::vector<RecordedRoutes> texts = read_routes(arguments.replay, loaded.config.model);
  loaded.load(job, 1, arguments.placement);
  const ReplayLoss r = replay_loss(job.context(), {*loaded.parameters, *loaded.model}, texts);
  if (arguments.json) {
    const nlohmann::ordered_json out = {{"checkpoint", loaded.folder},
                                        {"routes", arguments.replay},
                                        {"texts", r.texts},
                                        {"tokens", r.tokens},
                                        {"loss", r.loss},
                                        {"replayed_loss", r.replayed_loss},
                                        {"recorded_tokens", r.recorded},
                                        {"rerouted_tokens", r.rerouted}};
    fmt::print("{}\n", out.dump(2));
    return ExitCode::kDone;
  }
  fmt::print(
      "{} tokens of {} texts: loss {:.6f} with experts chosen anew, {:.6f} with the recorded "
      "ones; {} of {} recorded tokens would go elsewhere\n",
      r.tokens, r.texts, r.loss, r.replayed_loss, r.rerouted, r.recorded);
  return ExitCode::kDone;
}

ExitCode eval(const EvalArguments& arguments) {
  Job job(arguments.threads, arguments.device);
  LoadedModel loaded(arguments.checkpoint);
  if (!arguments.replay.empty()) return replay_routes(arguments, job, loaded);
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
  loaded.load(job, arguments.expert_parallel, arguments.placement);
  const ValidationSet data(dataset, config.data);
  const StepPlan plan{
      .sequence_length = config.data.sequence_length,
      .unit_sequences = 1,
      .micro_sequences = arguments.batch,
      .balance_sequences = 1,
      .capacity_sequences = std::max(1, config.train.balance.capacity_group_sequences)};
  if (!arguments.reference.empty()) {
    return compare(arguments, job, {*loaded.parameters, *loaded.model}, folder, plan, data);
  }
  const ValidationResult result =
      Evaluator(job.context(), *loaded.parameters, *loaded.model, plan, data, job.world()).run();
  return job.world().rank() == 0 ? report(arguments, folder, result) : ExitCode::kDone;
}

}  // namespace

Action attach_eval(CommandLine& line) {
  auto a = std::make_shared<EvalArguments>();
  line.option("checkpoint", a->checkpoint, "a checkpoint, or the folder of a run").required();
  line.option("--reference", a->reference,
              "another checkpoint of the same shape: compare the two token by token");
  line.option("--data", a->data, "prepared data; default: what the model was trained on");
  line.option("--validation-tokens", a->validation_tokens, "tokens per domain; 0: all")
      .non_negative();
  line.option("--batch", a->batch, "sequences per pass and rank").positive();
  line.option("--expert-parallel", a->expert_parallel, "ranks over which the experts are spread");
  line.option("--threads", a->threads, "threads per rank; 0: the node's cores over its ranks");
  add_device_option(line, a->device);
  line.option("--tokens", a->tokens, "safetensors file with one int32 tensor [sequences, S + 1]");
  line.option("--gradients", a->gradients,
              "write the loss on --tokens and every gradient to this safetensors file");
  line.option("--replay", a->replay,
              "loss on the texts of this file of `degu generate --routes`, with experts chosen "
              "anew and with the recorded ones");
  add_placement_options(line, a->placement);
  line.flag("--json", a->json, "print the result as one JSON object");
  return [a] { return eval(*a); };
}

}  // namespace degu
