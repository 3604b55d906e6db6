#include "cli/plan_serve.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/loaded_model.h"
#include "cli/placement_option.h"
#include "cli/plan_measure.h"
#include "cli/plan_placement.h"
#include "comm/thread_comm.h"
#include "compress/policy.h"
#include "config/yaml.h"
#include "infer/lanes.h"
#include "infer/memory_plan.h"
#include "model/load.h"

namespace degu {
namespace {

using Json = nlohmann::ordered_json;

struct ServedModel {
  std::string name;
  ModelShape shape;
  DType activation = DType::kBF16;
  int64_t context = 0;
  std::optional<QuantizationInfo> held;  // how a quantized checkpoint holds its tensors
  std::optional<ExpertFrequencies> frequencies;
};

ServedModel read_model(const PlanServeArguments& a) {
  ServedModel m{.name = a.model};
  RunConfig config;
  if (std::filesystem::is_directory(a.model)) {
    const CheckpointReader reader(checkpoint_folder(a.model));
    if (!a.overrides.empty()) {
      throw ConfigError("--set changes a configuration; {} is a checkpoint", a.model);
    }
    m.name = reader.folder();
    config = checkpoint_config(reader);
    m.held = quantization_of(reader);
    if (a.frequencies.empty() && a.ranks > 1) {
      m.frequencies = checkpoint_frequencies(reader, config.model);
    }
  } else {
    config = load_config<RunConfig>(a.model, a.overrides);
    if (config.model.vocab == 0) {
      throw ConfigError("{}: model.vocab is 0 until the data are read; give --set model.vocab=V",
                        a.model);
    }
  }
  m.shape = config.model.resolved();
  require_servable(m.shape);
  if (!a.frequencies.empty()) m.frequencies = read_frequencies(a.frequencies, m.shape);
  m.activation = m.held ? DType::kBF16 : activation_type(config.train.precision);
  m.context = a.context > 0 ? a.context : config.data.sequence_length;
  return m;
}

// Tensor by tensor, as `degu quantize --scheme` would hold them, or as the checkpoint does.
SchemeOf scheme_of(const ServedModel& model, const PlanServeArguments& a, Scheme scheme) {
  std::map<std::string, Scheme> tensors;
  if (model.held) {
    tensors = model.held->tensors;
  } else {
    QuantizationPolicy policy{.scheme = scheme, .keep = {}};
    for (const std::string& text : a.keep) policy.keep.push_back(KeepRule::parse(text));
    tensors = policy.plan(parameter_specs(model.shape));
  }
  return [tensors](const ParameterSpec& spec) { return tensors.at(spec.name); };
}

struct RankMemory {
  size_t weights = 0, workspace = 0, scratch = 0, page = 0;
  int64_t first_expert = 0, experts = 0;
  size_t fixed() const { return weights + workspace + scratch; }
};

// Nothing is touched: what is reserved here is address space.
RankMemory measure_rank(Communicator& group, const ServedModel& model, const PlanServeArguments& a,
                        const SchemeOf& schemes, DType activation) {
  Context context({.threads = 1, .scratch_bytes = size_t{1} << 20});
  RankMemory m;
  if (model.shape.moe.experts > 0) {
    const int64_t each = model.shape.moe.experts / group.size();
    m.first_expert = group.rank() * each;
    m.experts = each;
  }
  ParameterSet parameters(context, model.shape, activation, {m.first_expert, m.experts}, schemes);
  const Transformer transformer(parameters, {.group = &group});
  const PassLimits limits{.rows = a.pass_tokens, .logit_rows = a.pass_tokens};
  m.weights = parameters.bytes();
  m.workspace = ModelRunner::workspace_bytes(parameters, transformer, limits);
  if (group.rank() == 0 && group.size() > 1) {
    m.workspace += GroupLanes::gather_bytes(model.shape, limits, group.size());
  }
  m.scratch = scratch_bytes(a.threads, parameters, limits, group.size());
  m.page = KvMemory::bytes_per_page(context, model.shape, a.kv == "int8" ? DType::kI8 : activation);
  return m;
}

std::vector<RankMemory> measure_ranks(const ServedModel& model, const PlanServeArguments& a,
                                      Scheme scheme) {
  const SchemeOf schemes = scheme_of(model, a, scheme);
  const SchemeInfo& info = scheme_info(scheme);
  const DType activation = info.quantized() ? DType::kBF16 : info.activation;
  std::vector<RankMemory> ranks(static_cast<size_t>(a.ranks));
  run_as_threads(a.ranks, [&](Communicator& group) {
    ranks[static_cast<size_t>(group.rank())] = measure_rank(group, model, a, schemes, activation);
  });
  return ranks;
}

struct PlannedScheme {
  std::string name;
  std::vector<RankMemory> ranks;
};

std::vector<PlannedScheme> plan_schemes(const ServedModel& model, const PlanServeArguments& a) {
  std::vector<std::string> names = a.schemes;
  if (model.held) {
    if (!names.empty() || !a.keep.empty()) {
      throw ConfigError("{}: holds {} codes; --scheme and --keep are for what is not quantized yet",
                        model.name, scheme_info(model.held->scheme).name);
    }
    names = {std::string(scheme_info(model.held->scheme).name)};
  } else if (names.empty()) {
    names = {std::string(scheme_info(training_scheme(model.activation)).name), "w8a8", "w4a8"};
  }
  std::vector<PlannedScheme> out;
  out.reserve(names.size());
  for (const std::string& name : names) {
    out.push_back({name, measure_ranks(model, a, *scheme_named(name))});
  }
  return out;
}

// Nothing with one rank, or when nobody measured how often experts are taken. ConfigError when the
// command line needs it all the same.
std::optional<PlannedPlacement> placement_of(const ServedModel& model,
                                             const PlanServeArguments& a) {
  const std::string wanted = !a.out.empty()           ? "--out " + a.out
                             : !a.frequencies.empty() ? "--frequencies " + a.frequencies
                             : a.placement != "auto"  ? "--placement " + a.placement
                                                      : "";
  if (a.ranks == 1) {
    if (wanted.empty()) return std::nullopt;
    throw ConfigError("{}: one rank holds all experts; give --ranks R to place them", wanted);
  }
  if (model.frequencies) {
    return plan_placement(model.shape, a.ranks, a.placement, *model.frequencies);
  }
  if (wanted.empty()) return std::nullopt;
  throw frequencies_missing(model.name + ", " + wanted);
}

// Beside the prediction for the scheme that the checkpoint holds.
struct Measurement {
  std::vector<RankMemory> predicted;
  MeasuredMemory measured;

  size_t predicted_pass() const {
    size_t sum = 0;
    for (const RankMemory& rank : predicted) {
      sum += rank.workspace + rank.scratch + static_cast<size_t>(measured.pages) * rank.page;
    }
    return sum;
  }
};

std::optional<Measurement> measurement_of(const ServedModel& model, const PlanServeArguments& a,
                                          const std::optional<PlannedPlacement>& placement) {
  if (!a.measure) return std::nullopt;
  if (!std::filesystem::is_directory(a.model)) {
    throw ConfigError("--measure loads weights; {} is a configuration, give a checkpoint", a.model);
  }
  const Scheme held = model.held ? model.held->scheme : training_scheme(model.activation);
  return Measurement{.predicted = measure_ranks(model, a, held),
                     .measured = measure_serving(
                         model.name, a, placement ? placement->placement : ExpertPlacement{})};
}

Json measurement_json(const Measurement& m) {
  Json out = {{"ranks", Json::array()},
              {"pass", {{"predicted", m.predicted_pass()}, {"measured", m.measured.pass}}}};
  for (size_t r = 0; r < m.predicted.size(); ++r) {
    out["ranks"].push_back(
        {{"weights",
          {{"predicted", m.predicted[r].weights}, {"measured", m.measured.weights_P[r]}}}});
  }
  return out;
}

void print_measurement(const Measurement& m) {
  const auto mib = [](size_t bytes) { return static_cast<double>(bytes) / (1024.0 * 1024.0); };
  fmt::print("\nmeasured, all ranks as threads of this process; MiB\n{:<32} {:>10} {:>10}\n", "",
             "predicted", "measured");
  for (size_t r = 0; r < m.predicted.size(); ++r) {
    fmt::print("{:<32} {:>10.2f} {:>10.2f}\n", fmt::format("weights of rank {}", r),
               mib(m.predicted[r].weights), mib(m.measured.weights_P[r]));
  }
  fmt::print("{:<32} {:>10.2f} {:>10.2f}\n", "a full pass on all ranks", mib(m.predicted_pass()),
             mib(m.measured.pass));
}

int64_t pages_of(const ServedModel& model, int64_t contexts) {
  return contexts * kv_pages_for(model.context);
}

// Whole contexts that the rest of `memory` holds; 0 when not even the weights fit.
int64_t contexts_within(const ServedModel& model, const RankMemory& rank, double memory) {
  const double left = memory - static_cast<double>(rank.fixed());
  const double context = static_cast<double>(pages_of(model, 1)) * static_cast<double>(rank.page);
  return std::max<int64_t>(0, static_cast<int64_t>(left / context));
}

Json plan_json(const ServedModel& model, const PlanServeArguments& a,
               const std::vector<PlannedScheme>& schemes,
               const std::optional<PlannedPlacement>& placement) {
  Json out = {{"model", model.name},          {"ranks", a.ranks},
              {"context", model.context},     {"running", a.running},
              {"pass_tokens", a.pass_tokens}, {"kv", a.kv}};
  for (const PlannedScheme& scheme : schemes) {
    Json entry = {{"scheme", scheme.name}, {"ranks", Json::array()}};
    for (size_t r = 0; r < scheme.ranks.size(); ++r) {
      const RankMemory& m = scheme.ranks[r];
      const size_t cache = static_cast<size_t>(pages_of(model, a.running)) * m.page;
      Json rank = {{"layers", {0, model.shape.layers}},
                   {"experts", {m.first_expert, m.first_expert + m.experts}},
                   {"weights", m.weights},
                   {"workspace", m.workspace},
                   {"scratch", m.scratch},
                   {"cache_per_token", static_cast<double>(m.page) / kKvPageKeys},
                   {"cache", cache},
                   {"total", m.fixed() + cache}};
      if (a.memory > 0) rank["contexts_within_memory"] = contexts_within(model, m, a.memory);
      entry["ranks"].push_back(rank);
    }
    out["schemes"].push_back(entry);
  }
  if (placement) out["placement"] = placement_json(*placement);
  return out;
}

void print_plan(const ServedModel& model, const PlanServeArguments& a,
                const std::vector<PlannedScheme>& schemes,
                const std::optional<PlannedPlacement>& placement) {
  const auto mib = [](size_t bytes) { return static_cast<double>(bytes) / (1024.0 * 1024.0); };
  fmt::print("{}: {} contexts of {} tokens, passes of {} tokens, on {} rank{}; MiB\n", model.name,
             a.running, model.context, a.pass_tokens, a.ranks, a.ranks > 1 ? "s" : "");
  fmt::print("{:<8} {:>4} {:>10} {:>12} {:>10} {:>10} {:>10} {:>10} {:>12}{}\n", "scheme", "rank",
             "experts", "weights", "workspace", "scratch", "B/token", "cache", "total",
             a.memory > 0 ? "  contexts that fit" : "");
  for (const PlannedScheme& scheme : schemes) {
    for (size_t r = 0; r < scheme.ranks.size(); ++r) {
      const RankMemory& m = scheme.ranks[r];
      const size_t cache = static_cast<size_t>(pages_of(model, a.running)) * m.page;
      const std::string experts =
          m.experts == 0 ? "-" : fmt::format("{} of {}", m.experts, model.shape.moe.experts);
      fmt::print(
          "{:<8} {:>4} {:>10} {:>12.2f} {:>10.2f} {:>10.2f} {:>10.0f} {:>10.2f} {:>12.2f}{}\n",
          scheme.name, r, experts, mib(m.weights), mib(m.workspace), mib(m.scratch),
          static_cast<double>(m.page) / kKvPageKeys, mib(cache), mib(m.fixed() + cache),
          a.memory > 0 ? fmt::format("  {}", contexts_within(model, m, a.memory)) : "");
    }
  }
  if (a.ranks > 1) {
    fmt::print(
        "every rank holds all layers' attention, norms, routers, embedding and head, its "
        "experts of each MoE layer, and its own sequences' cache\n");
  }
  if (placement) {
    print_placement(*placement);
  } else if (a.ranks > 1) {
    fmt::print(
        "how often each expert is taken is not known; with --frequencies FILE (routes, or a run's "
        "folder) experts are placed on the ranks by it\n");
  }
}

}  // namespace

void add_plan_serve_options(CommandLine& line, PlanServeArguments& a) {
  std::vector<std::string> schemes;
  schemes.reserve(std::size(kSchemes));
  for (const SchemeInfo& info : kSchemes) schemes.emplace_back(info.name);
  line.option("--serve", a.model,
              "instead: the memory that serving this checkpoint or configuration takes");
  line.option("--scheme", a.schemes, "with --serve: schemes of the weights")
      .comma_separated()
      .repeatable()
      .among(schemes);
  line.option("--keep", a.keep, "with --serve: as `degu quantize --keep`").repeatable();
  line.option("--ranks", a.ranks, "with --serve: ranks that share the experts").within(1, 256);
  line.option("--threads", a.threads, "with --serve: threads per rank").positive();
  line.option("--context", a.context, "with --serve: tokens; 0: the training sequence length")
      .non_negative();
  line.option("--running", a.running, "with --serve: contexts in a rank's cache").positive();
  line.option("--pass-tokens", a.pass_tokens, "with --serve: most new tokens in a pass").positive();
  line.option("--kv", a.kv, "with --serve: auto (as activations) or int8").among({"auto", "int8"});
  line.option("--frequencies,--routes", a.frequencies,
              "with --serve: how often experts are taken: a file of `degu generate --routes`, a "
              "run's folder or its metrics.jsonl, a server's /metrics in a file; default: what "
              "the checkpoint knows");
  line.option("--placement", a.placement,
              "with --serve: auto (experts on ranks by frequency), contiguous, or a file of "
              "--out to look at");
  line.flag("--measure", a.measure,
            "with --serve: load the checkpoint as so many ranks, run one full pass, and print "
            "what memory that took beside what was predicted");
}

ExitCode plan_serve(const PlanServeArguments& a) {
  const ServedModel model = read_model(a);
  if (a.ranks > 1 && (model.shape.moe.experts == 0 || model.shape.moe.experts % a.ranks != 0)) {
    throw ConfigError("--ranks {}: {} experts cannot be shared evenly by so many", a.ranks,
                      model.shape.moe.experts);
  }
  const std::vector<PlannedScheme> schemes = plan_schemes(model, a);
  const std::optional<PlannedPlacement> placement = placement_of(model, a);
  if (!a.out.empty()) write_placement(*placement, a.out);
  const std::optional<Measurement> measurement = measurement_of(model, a, placement);
  if (a.json) {
    Json out = plan_json(model, a, schemes, placement);
    if (measurement) out["measured"] = measurement_json(*measurement);
    fmt::print("{}\n", out.dump(2));
    return ExitCode::kDone;
  }
  print_plan(model, a, schemes, placement);
  if (measurement) print_measurement(*measurement);
  return ExitCode::kDone;
}

}  // namespace degu
