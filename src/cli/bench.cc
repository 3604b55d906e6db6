// `degu bench kernels`: this machine's peaks and each operator's share of the one that bounds it.
// The other subcommands of `degu bench` have files of their own.
#include <nlohmann/json.hpp>

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/timer.h"
#include "cli/bench_model.h"
#include "cli/command.h"
#include "cli/job.h"
#include "cli/kernel_bench.h"
#include "config/yaml.h"
#include "io/atomic_file.h"
#include "tensor/device.h"

namespace degu {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string out;
  std::string only;
  int threads = 0;
  int repetitions = 5;
  bool json = false;
  DeviceType device = DeviceType::kCpu;
};

bool gpu(const Options& options) {
  return options.device != DeviceType::kCpu;
}

Json profile_json(const HardwareProfile& p) {
  Json out;
  out["cpu"] = p.cpu;
  out["isa"] = p.isa;
  out["threads"] = p.threads;
  out["date"] = p.date;
  out["fp32_flops"] = p.fp32_flops;
  out["bf16_flops"] = p.bf16_flops;
  out["int8_ops"] = p.int8_ops;
  out["read_bandwidth"] = p.read_bandwidth;
  out["fp32_flops_1thread"] = p.fp32_flops_1thread;
  out["bf16_flops_1thread"] = p.bf16_flops_1thread;
  out["int8_ops_1thread"] = p.int8_ops_1thread;
  out["read_bandwidth_1thread"] = p.read_bandwidth_1thread;
  return out;
}

void print_profile(const HardwareProfile& p) {
  fmt::print("{}, {}, {}\n\n{:<26} {:>12} {:>12}\n", p.cpu, p.isa, p.date, "peak", "1 thread",
             fmt::format("{} threads", p.threads));
  const auto row = [](const char* name, double one, double all, const char* unit) {
    fmt::print("{:<26} {:>12.1f} {:>12.1f} {}\n", name, one / 1e9, all / 1e9, unit);
  };
  row("fp32", p.fp32_flops_1thread, p.fp32_flops, "GFLOP/s");
  row("bf16", p.bf16_flops_1thread, p.bf16_flops, "GFLOP/s");
  row("int8", p.int8_ops_1thread, p.int8_ops, "GOP/s");
  row("memory, read", p.read_bandwidth_1thread, p.read_bandwidth, "GB/s");
}

Json device_json(const Context& context, const DeviceRates& r) {
  Json out;
  out["device"] = context.device_state()->description();
  out["fp32_flops"] = r.fp32_flops;
  out["bf16_flops"] = r.bf16_flops;
  out["int8_ops"] = r.int8_ops;
  out["read_bandwidth"] = r.read_bandwidth;
  return out;
}

void print_device(const Context& context, const DeviceRates& r) {
  fmt::print("{}\n\npeak\n", context.device_state()->description());
  const auto row = [](const char* name, double rate, const char* unit) {
    fmt::print("{:<26} {:>12.1f} {}\n", name, rate / 1e9, unit);
  };
  row("fp32", r.fp32_flops, "GFLOP/s");
  row("bf16, tensor cores", r.bf16_flops, "GFLOP/s");
  row("int8, tensor cores", r.int8_ops, "GOP/s");
  row("memory, read", r.read_bandwidth, "GB/s");
}

void print_header() {
  fmt::print("\n{:<26} {:<38} {:>9} {:>9} {:>7} {:>6}  {}\n", "operator", "size", "rate",
             "peak beside", "ratio", "bar", "peak varied");
  std::fflush(stdout);
}

void print_rate(const KernelCase& kernel, const KernelRate& rate) {
  const bool memory = kernel.bound == Bound::kMemory;
  const std::string bar = kernel.bar > 0 ? fmt::format("{:.2f}", kernel.bar) : "-";
  const char* verdict = kernel.bar > 0 && rate.ratio < kernel.bar ? "  below" : "";
  fmt::print("{:<26} {:<38} {:>9.1f} {:>9.1f} {} {:>6.2f} {:>6}  x {:.2f}{}\n", kernel.name,
             kernel.shape, rate.rate / 1e9, rate.peak / 1e9, memory ? "GB/s   " : "GFLOP/s",
             rate.ratio, bar, rate.peak_spread, verdict);
  std::fflush(stdout);
}

Json rate_json(const KernelCase& kernel, const KernelRate& rate) {
  Json out;
  out["operator"] = kernel.name;
  out["size"] = kernel.shape;
  out["bound"] = kernel.bound == Bound::kMemory ? "memory"
                 : kernel.bound == Bound::kBf16 ? "bf16"
                 : kernel.bound == Bound::kInt8 ? "int8"
                                                : "fp32";
  out["rate"] = rate.rate;
  out["peak"] = rate.peak;
  out["ratio"] = rate.ratio;
  out["peak_spread"] = rate.peak_spread;
  if (kernel.bar > 0) out["bar"] = kernel.bar;
  return out;
}

// Half of the peaks' swing in spells of a second; a run in which they swung is done once more, and
// the steadier one counts.
constexpr double kSteady = 1.15;

// A case knows its name once it is made, which takes long at its full size.
constexpr double kNameScale = 0.001;

// A GPU's caches and multiprocessors want more rows than a processor's.
constexpr double kDeviceScale = 4;

// Nothing when the case is not asked for.
std::optional<Json> operator_rate(Context& context, MakeCase make, const Options& options) {
  const auto wanted = [&](const KernelCase& kernel) {
    return kernel.name.find(options.only) != std::string::npos;
  };
  if (!options.only.empty() && !wanted(make(context, kNameScale))) return {};
  const KernelCase kernel = make(context, gpu(options) ? kDeviceScale : 1.0);
  KernelRate rate = measure(context, kernel, options.repetitions);
  if (rate.peak_spread > kSteady) {
    const KernelRate again = measure(context, kernel, options.repetitions);
    if (again.peak_spread < rate.peak_spread) rate = again;
  }
  if (!options.json) print_rate(kernel, rate);
  return rate_json(kernel, rate);
}

// Operators that a GPU lacks are named and left out.
Json operator_rates(Context& context, const Options& options) {
  Json operators = Json::array();
  for (std::span<const MakeCase> cases : {compute_cases(), scheme_cases(), memory_cases()}) {
    for (MakeCase make : cases) {
      try {
        if (const auto rate = operator_rate(context, make, options)) operators.push_back(*rate);
      } catch (const DeviceError& error) {
        if (!gpu(options)) throw;
        context.device_state()->synchronize();  // throws when it is the GPU that failed
        log_warn("left out: {}", error.what());
      }
    }
  }
  return operators;
}

ExitCode bench_kernels(const Options& options) {
  const Timer timer;
  if (gpu(options) && !options.out.empty()) {
    throw ConfigError("--out writes a processor's profile; leave it out with --device cuda");
  }
  Context context({.threads = options.threads, .device = options.device});
  Json hardware;
  if (gpu(options)) {
    const DeviceRates rates = measure_device(context);
    if (!options.json) print_device(context, rates);
    hardware = device_json(context, rates);
  } else {
    const HardwareProfile profile = measure_hardware(context);
    if (!options.json) print_profile(profile);
    hardware = profile_json(profile);
    if (!options.out.empty()) write_file_atomic(options.out, to_yaml(profile));
  }
  if (!options.json) print_header();
  const Json operators = operator_rates(context, options);
  if (options.json) {
    Json out;
    out["hardware"] = hardware;
    out["operators"] = operators;
    out["seconds"] = timer.seconds();
    fmt::print("{}\n", out.dump(2));
  } else {
    fmt::print("\n{:.0f} s{}\n", timer.seconds(),
               options.out.empty() ? "" : fmt::format("; peaks written to {}", options.out));
  }
  return ExitCode::kDone;
}

Action attach_bench_kernels(CommandLine& line) {
  auto options = std::make_shared<Options>();
  line.option("--out", options->out, "write the peaks to this YAML file, for `degu plan`");
  line.option("--only", options->only, "measure operators whose name contains this");
  line.option("--threads", options->threads, "threads; 0: the cores this process may run on")
      .non_negative();
  line.option("--repetitions", options->repetitions, "of peak, operator, peak; at least 3")
      .within(3, 1000);
  add_device_option(line, options->device);
  line.flag("--json", options->json, "one JSON object on standard output");
  return [options] { return bench_kernels(*options); };
}

constexpr Command kBenches[] = {
    {"kernels",
     "peaks of this machine; each operator's rate and its share of the peak that bounds it",
     &attach_bench_kernels},
    {"layer", "one Mixture-of-Experts layer, forward and backward, beside the machine's peak",
     &attach_bench_layer},
    {"comm", "bandwidth and latency of each collective between the ranks of this job",
     &attach_bench_comm, Ranks::kMany},
    {"memory", "the read bandwidth of memory at this moment", &attach_bench_memory},
    {"decode", "load, prefill and decode of a checkpoint, beside the read bandwidth of memory",
     &attach_bench_decode},
    {"checkpoint", "writes a checkpoint of random weights in a scheme, to measure with",
     &attach_bench_checkpoint},
    {"speculation", "decoding with drafts against plain decoding, in turns",
     &attach_bench_speculation, Ranks::kMany},
    {"serve", "requests at random times to an OpenAI-compatible server: latency and goodput",
     &attach_bench_serve},
};

}  // namespace

Action attach_bench(CommandLine& line) {
  return attach_commands(line, kBenches);
}

}  // namespace degu
