#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "cli/command.h"
#include "cli/job.h"
#include "config/yaml.h"
#include "infer/memory_plan.h"
#include "tensor/device.h"
#include "train/layout_plan.h"
#include "train/run.h"

namespace degu {
namespace {

struct TrainArguments {
  std::string config;
  std::vector<std::string> overrides;
  RunOptions run;
  bool json = false;
};

ExitCode train(TrainArguments arguments) {
  if (arguments.run.folder.empty()) {
    arguments.run.folder = "runs/" + std::filesystem::path(arguments.config).stem().string();
  }
  RunConfig config = load_config<RunConfig>(arguments.config, arguments.overrides);
  const bool on_host = config.cluster.device == DeviceType::kCpu;
  // A GPU's scratch is laid out once it is known how much a pass takes.
  Job job(config.cluster.threads, config.cluster.device,
          on_host ? ContextOptions{}.scratch_bytes : 1);
  const TokenDataset dataset(config.data.paths);
  config = resolve_config(config, dataset);
  const TrainingMemory memory = training_memory(
      config, Layout(job.world().rank(), job.world().size(), config.cluster.expert_parallel));
  if (!on_host) {
    job.context().scratch() = Arena(static_cast<size_t>(memory.scratch), config.cluster.device);
  }
  const size_t before = resident_bytes();
  const RunResult result = run_training(config, arguments.run, dataset, job.world(), job.context());
  const auto taken =
      static_cast<double>(on_host ? peak_resident_bytes() - before : device_memory_peak());
  log_info("memory{}: {:.1f} MB planned; the run took {:.1f} MB at most",
           on_host ? "" : " of the GPU", memory.total() / 1e6, taken / 1e6);
  if (job.world().rank() == 0) {
    if (arguments.json) {
      nlohmann::json out = to_json(result);
      out["memory"] = {{"planned", memory.total()}, {"taken", taken}};
      std::printf("%s\n", out.dump(2).c_str());
    }
    if (result.complete) {
      log_info(
          "{}: {} steps, {} tokens, validation loss {:.4f} ({:.4f} bits per byte), {:.0f} "
          "tokens/s, "
          "{:.1f}% of peak",
          arguments.run.folder, result.steps, result.tokens, result.validation.loss,
          result.validation.bits_per_byte, result.tokens_per_second, 100 * result.utilisation);
    } else {
      log_info("{}: stopped at step {} ({}); run again with --resume to go on",
               arguments.run.folder, result.steps, result.stop_reason);
    }
  }
  return result.complete ? ExitCode::kDone : ExitCode::kInterrupted;
}

}  // namespace

Action attach_train(CommandLine& line) {
  auto arguments = std::make_shared<TrainArguments>();
  line.option("config", arguments->config, "run configuration (YAML)").required();
  line.option("--out", arguments->run.folder,
              "folder of the run; default: runs/<name of the file>");
  line.option("--set", arguments->overrides, "key=value over the file, e.g. train.steps=200")
      .repeatable();
  line.flag("--resume", arguments->run.resume, "go on from the newest checkpoint, if there is one");
  line.option("--init-from", arguments->run.init_from,
              "checkpoint whose weights the run starts with");
  line.option("--max-minutes", arguments->run.max_minutes,
              "write a checkpoint and stop after this long (exit code 75)");
  line.option("--stop-after", arguments->run.stop_after,
              "write a checkpoint and stop once this many steps are done (exit code 75)");
  line.flag("--checkpoint,!--no-checkpoint", arguments->run.final_checkpoint,
            "write one when the run is complete; without, a measurement leaves none");
  line.flag("--trace", arguments->run.trace, "write a Chrome trace per rank, a span per operator");
  line.flag("--json", arguments->json, "print the result as one JSON object");
  return [arguments] { return train(*arguments); };
}

}  // namespace degu
