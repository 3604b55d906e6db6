#include "cli/plan_serve.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/loaded_model.h"
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
  } else {
    config = load_config<RunConfig>(a.model, a.overrides);
    if (config.model.vocab == 0) {
      throw ConfigError("{}: model.vocab is 0 until the data are read; give --set model.vocab=V",
                        a.model);
    }
  }
  m.shape = config.model.resolved();
  require_servable(m.shape);
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
  const Transformer transformer(parameters, group.size() > 1 ? &group : nullptr, false);
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

// Rows of each expert, over all layers, in recorded routes.
std::vector<int64_t> expert_rows(const std::string& path, int64_t experts) {
  std::ifstream file(path);
  if (!file) throw IoError("{}: cannot be read; --routes takes a file of degu generate", path);
  std::vector<int64_t> rows(static_cast<size_t>(experts), 0);
  int64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    try {
      const Json parsed = Json::parse(line);
      for (const Json& layer : parsed.at("experts")) {
        for (const Json& expert : layer) ++rows.at(expert.get<size_t>());
      }
    } catch (const std::exception& error) {
      throw DataError("{}:{}: not a line of routes of a model with {} experts: {}", path, number,
                      experts, error.what());
    }
  }
  return rows;
}

// Share of all routed rows that each rank's experts take.
std::vector<double> rank_shares(const std::vector<RankMemory>& ranks,
                                const std::vector<int64_t>& rows) {
  int64_t all = 0;
  for (int64_t r : rows) all += r;
  std::vector<double> shares;
  for (const RankMemory& rank : ranks) {
    int64_t own = 0;
    for (int64_t e = 0; e < rank.experts; ++e) {
      own += rows[static_cast<size_t>(rank.first_expert + e)];
    }
    shares.push_back(all > 0 ? static_cast<double>(own) / static_cast<double>(all) : 0);
  }
  return shares;
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
               const std::vector<PlannedScheme>& schemes, const std::vector<double>& shares) {
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
      if (!shares.empty()) rank["share_of_rows"] = shares[r];
      if (a.memory > 0) rank["contexts_within_memory"] = contexts_within(model, m, a.memory);
      entry["ranks"].push_back(rank);
    }
    out["schemes"].push_back(entry);
  }
  return out;
}

void print_plan(const ServedModel& model, const PlanServeArguments& a,
                const std::vector<PlannedScheme>& schemes, const std::vector<double>& shares) {
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
          m.experts == 0 ? "-"
                         : fmt::format("{}..{}", m.first_expert, m.first_expert + m.experts - 1);
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
  for (size_t r = 0; r < shares.size(); ++r) {
    fmt::print("rank {}: {:.1f} % of the recorded rows ({:.2f} of an even share)\n", r,
               100 * shares[r], shares[r] * a.ranks);
  }
}

}  // namespace

void add_plan_serve_options(CLI::App& app, PlanServeArguments& a) {
  std::vector<std::string> schemes;
  schemes.reserve(std::size(kSchemes));
  for (const SchemeInfo& info : kSchemes) schemes.emplace_back(info.name);
  app.add_option("--serve", a.model,
                 "instead: the memory that serving this checkpoint or configuration takes");
  app.add_option("--scheme", a.schemes, "with --serve: schemes of the weights")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::IsMember(schemes));
  app.add_option("--keep", a.keep, "with --serve: as `degu quantize --keep`")
      ->allow_extra_args(false);
  app.add_option("--ranks", a.ranks, "with --serve: ranks that share the experts")
      ->check(CLI::Range(1, 256));
  app.add_option("--threads", a.threads, "with --serve: threads per rank")
      ->check(CLI::PositiveNumber);
  app.add_option("--context", a.context, "with --serve: tokens; 0: the training sequence length")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--running", a.running, "with --serve: contexts in a rank's cache")
      ->check(CLI::PositiveNumber);
  app.add_option("--pass-tokens", a.pass_tokens, "with --serve: most new tokens in a pass")
      ->check(CLI::PositiveNumber);
  app.add_option("--kv", a.kv, "with --serve: auto (as activations) or int8")
      ->check(CLI::IsMember({"auto", "int8"}));
  app.add_option("--routes", a.routes,
                 "with --serve: routes of `degu generate --routes`, for each rank's share of work");
}

ExitCode plan_serve(const PlanServeArguments& a) {
  const ServedModel model = read_model(a);
  if (a.ranks > 1 && (model.shape.moe.experts == 0 || model.shape.moe.experts % a.ranks != 0)) {
    throw ConfigError("--ranks {}: {} experts cannot be shared evenly by so many", a.ranks,
                      model.shape.moe.experts);
  }
  const std::vector<PlannedScheme> schemes = plan_schemes(model, a);
  std::vector<double> shares;
  if (!a.routes.empty()) {
    shares = rank_shares(schemes.front().ranks, expert_rows(a.routes, model.shape.moe.experts));
  }
  if (a.json) {
    fmt::print("{}\n", plan_json(model, a, schemes, shares).dump(2));
  } else {
    print_plan(model, a, schemes, shares);
  }
  return ExitCode::kDone;
}

}  // namespace degu
