// `degu info`: what a model costs before it is trained, or what this binary and machine are.
#include <nlohmann/json.hpp>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>

#include "base/cpu_info.h"
#include "cli/command.h"
#include "cli/dependencies.h"
#include "comm/mpi_comm.h"
#include "config/yaml.h"
#include "shape/accounting.h"
#include "train/train_config.h"

namespace degu {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string path;
  std::vector<std::string> overrides;
  int64_t sequence = 0;  // 0: the file's data.sequence_length, else 128
  MemoryOptions memory;
  bool fp32 = false;
  bool json = false;
};

// "12 345 678" reads better than "12345678" in a column.
std::string grouped(int64_t value) {
  std::string digits = std::to_string(value);
  for (auto i = static_cast<std::ptrdiff_t>(digits.size()) - 3; i > (value < 0 ? 1 : 0); i -= 3) {
    digits.insert(static_cast<size_t>(i), 1, ' ');
  }
  return digits;
}

std::string grouped_bytes(double bytes) {
  return grouped(std::llround(bytes));
}

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

Json machine_json() {
  Json isas = Json::array();
  for (Isa isa : kAllIsas) {
    if (isa_supported(isa)) isas.push_back(isa_name(isa));
  }
  Json out;
  out["degu"] = DEGU_VERSION;
  out["build"] = DEGU_BUILD_TYPE;
  out["compiler"] = DEGU_COMPILER;
  out["cuda"] = DEGU_CUDA_STATE;
  out["processor"] = processor_name();
  out["cores"] = physical_cores();
  out["isa"] = isa_name(default_isa());
  out["isa_supported"] = isas;
  for (const Dependency& row : dependencies()) {
    const std::string version = row.name == "MPI" ? mpi_library() : std::string(row.version);
    out["dependencies"][std::string(row.name)] = {
        {"state", row.state}, {"version", version}, {"licence", row.licence}, {"note", row.note}};
  }
  return out;
}

void print_machine(const Json& info) {
  for (const auto& [key, value] : info.items()) {
    if (key == "dependencies") continue;
    std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    if (value.is_array()) {
      text.clear();
      for (const Json& item : value) text += (text.empty() ? "" : ", ") + item.get<std::string>();
    }
    fmt::print("{:<15} {}\n", key, text);
  }
  for (const auto& [name, row] : info["dependencies"].items()) {
    const auto version = row["version"].get<std::string>();
    const auto note = row["note"].get<std::string>();
    fmt::print("  {:<15}{:<17}{}{}{}\n", name,
               version.empty() ? row["state"].get<std::string>() : version,
               row["licence"].get<std::string>(), note.empty() ? "" : "; ", note);
  }
}

// A YAML file as it is; of a checkpoint's or a run's folder the configuration it was made with.
std::string config_file(const std::string& path) {
  namespace fs = std::filesystem;
  if (!fs::is_directory(path)) return path;
  for (const char* name : {"attachments/config.yaml", "config.yaml"}) {
    const fs::path file = fs::path(path) / name;
    if (fs::exists(file)) return file.string();
  }
  throw DataError("{}: neither a checkpoint nor a run's folder: it holds no config.yaml", path);
}

ModelShape read_model(Options& options) {
  YamlDocument document = YamlDocument::from_file(config_file(options.path));
  for (const std::string& assignment : options.overrides) document.set(assignment);
  if (options.sequence == 0) {
    struct SequencePart {
      int64_t sequence_length = 128;
      void fields(Fields& f) { f("sequence_length", sequence_length, ""); }
    };
    const std::optional<std::string> given = document.value("data.sequence_length");
    YamlDocument part = YamlDocument::from_text("", options.path);
    if (given) part.set("sequence_length=" + *given);
    options.sequence = read_config<SequencePart>(part).sequence_length;
  }
  if (const std::optional<std::string> given = document.value("train.optimizer.moments")) {
    YamlDocument part = YamlDocument::from_text("", options.path);
    part.set("moments=" + *given);
    struct MomentsPart {
      Precision moments = Precision::kFp32;
      void fields(Fields& f) { f("moments", moments, ""); }
    };
    const DType type = moment_type(read_config<MomentsPart>(part).moments);
    options.memory.bytes_per_moment = static_cast<int>(size_of(type));
  }
  return read_config<ModelShape>(document.part("model")).resolved();
}

Json model_json(const ModelShape& shape, const Options& options) {
  const Parameters p = count_parameters(shape);
  const Flops f = count_flops(shape, options.sequence);
  const Memory m = count_memory(shape, options.memory);
  Json out;
  for (ParameterCount count : kParameterCounts) {
    out["n"][std::string(enum_name(count))] = parameter_count(shape, count);
  }
  out["parameters"] = {{"embedding", p.embedding},
                       {"head", p.head},
                       {"attention", p.attention},
                       {"norms", p.norms},
                       {"dense_ffn", p.dense_ffn},
                       {"router", p.router},
                       {"experts", p.experts},
                       {"experts_active", p.experts_active},
                       {"shared_experts", p.shared_experts}};
  out["sequence"] = options.sequence;
  for (const auto& [name, value] : flops_by_operator(f))
    out["flops_per_token"][std::string(name)] = value;
  out["flops_per_token"]["forward"] = f.forward();
  out["flops_per_token"]["training"] = f.training();
  out["bytes"] = {{"weights", m.weights},
                  {"backward_weights", m.backward_weights},
                  {"gradients", m.gradients},
                  {"master", m.master},
                  {"moments", m.moments},
                  {"router_bias", m.router_bias},
                  {"training", m.training()},
                  {"serving", m.serving()},
                  {"activations_per_token", m.activations_per_token},
                  {"kv_cache_per_token", m.kv_cache_per_token}};
  out["config"] = to_yaml(shape);
  return out;
}

void print_section(const char* title, const Json& rows) {
  fmt::print("\n{}\n", title);
  for (const auto& [name, value] : rows.items()) {
    fmt::print("  {:<24}{:>20}\n", name,
               value.is_number_float() ? grouped_bytes(value.get<double>())
                                       : grouped(value.get<int64_t>()));
  }
}

void print_model(const Json& info, const Options& options) {
  fmt::print("{}", info["config"].get<std::string>());
  fmt::print("\nparameters by definition of N\n");
  for (ParameterCount count : kParameterCounts) {
    const std::string name(enum_name(count));
    fmt::print("  {:<24}{:>20}  {}\n", name, grouped(info["n"][name].get<int64_t>()),
               parameter_count_text(count));
  }
  print_section("parameters by part", info["parameters"]);
  print_section(
      fmt::format("FLOPs per token, sequences of {} (causal half of attention, multiply-add = 2)",
                  options.sequence)
          .c_str(),
      info["flops_per_token"]);
  print_section(fmt::format("bytes per rank ({}, {} rank{}, expert-parallel {})",
                            options.fp32 ? "fp32" : "bf16", options.memory.ranks,
                            options.memory.ranks == 1 ? "" : "s", options.memory.expert_parallel)
                    .c_str(),
                info["bytes"]);
}

ExitCode run_info(Options options) {
  const bool machine = options.path.empty();
  options.memory.bytes_per_value = options.fp32 ? 4 : 2;
  Json info;
  if (machine) {
    info = machine_json();
  } else {
    const ModelShape shape = read_model(options);
    info = model_json(shape, options);
  }
  if (options.json) {
    fmt::print("{}\n", info.dump());
  } else if (machine) {
    print_machine(info);
  } else {
    print_model(info, options);
  }
  return ExitCode::kDone;
}

}  // namespace

Action attach_info(CommandLine& line) {
  auto options = std::make_shared<Options>();
  line.option("CONFIG", options->path, "YAML with a `model:` part, or a checkpoint's folder");
  line.option("--set", options->overrides, "KEY=VALUE, wins over the file; may be repeated")
      .repeatable();
  line.option("--sequence", options->sequence,
              "tokens of a sequence, for attention's FLOPs; 0: the file's, else 128");
  line.option("--ranks", options->memory.ranks, "ranks that share the optimizer state");
  line.option("--expert-parallel", options->memory.expert_parallel, "ranks that share the experts");
  line.flag("--fp32", options->fp32, "weights and activations in fp32 instead of bf16");
  line.flag("--json", options->json, "one JSON object on standard output");
  return [options] { return run_info(*options); };
}

}  // namespace degu
