// `degu bench layer`: what one Mixture-of-Experts layer takes, forward and backward, beside the
// machine's peak.
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/bench_model.h"
#include "cli/job.h"
#include "cli/layer_bench.h"
#include "tensor/device.h"

namespace degu {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  LayerSize size;
  int threads = 0;
  int repetitions = 5;
  DeviceType device = DeviceType::kCpu;
  bool json = false;
};

ExitCode bench_layer(const Options& options) {
  Context context({.threads = options.threads, .device = options.device});
  Json out;
  out["device"] = context.device_state() != nullptr ? context.device_state()->description()
                                                    : std::string(isa_name(context.isa()));
  out["tokens"] = options.size.tokens;
  for (const KernelCase& layer : layer_cases(context, options.size)) {
    if (out.find("size") == out.end()) {
      out["size"] = layer.shape;
      if (!options.json) fmt::print("{}\n{}\n", out["device"].get<std::string>(), layer.shape);
    }
    const KernelRate rate = measure(context, layer, options.repetitions);
    const double seconds = layer.work / rate.rate;
    const double tokens_per_second = static_cast<double>(options.size.tokens) / seconds;
    if (!options.json) {
      fmt::print("{:<20} {:>10.3f} ms {:>14.0f} tokens/s {:>10.1f} GFLOP/s, {:.2f} of the peak\n",
                 layer.name, 1e3 * seconds, tokens_per_second, rate.rate / 1e9, rate.ratio);
      std::fflush(stdout);
    }
    out["cases"].push_back({{"case", layer.name},
                            {"seconds", seconds},
                            {"tokens_per_second", tokens_per_second},
                            {"rate", rate.rate},
                            {"peak", rate.peak},
                            {"ratio", rate.ratio},
                            {"peak_spread", rate.peak_spread}});
  }
  if (options.json) fmt::print("{}\n", out.dump(2));
  return ExitCode::kDone;
}

}  // namespace

Action attach_bench_layer(CommandLine& line) {
  auto options = std::make_shared<Options>();
  LayerSize& size = options->size;
  line.option("--tokens", size.tokens, "tokens of a pass").positive();
  line.option("--width", size.width, "of the residual stream").positive();
  line.option("--experts", size.experts, "routed experts").positive();
  line.option("--top-k", size.top_k, "experts that a token visits").positive();
  line.option("--expert-width", size.expert_width, "hidden width of one expert").positive();
  line.option("--threads", options->threads, "threads; 0: the cores this process may run on")
      .non_negative();
  line.option("--repetitions", options->repetitions, "of peak, layer, peak; at least 3")
      .within(3, 1000);
  add_device_option(line, options->device);
  line.flag("--json", options->json, "one JSON object on standard output");
  return [options] { return bench_layer(*options); };
}

}  // namespace degu
