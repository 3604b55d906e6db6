#include "compress/layerwise.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "comm/agree.h"
#include "comm/mesh.h"
#include "compress/tensors.h"
#include "io/atomic_file.h"
#include "io/sha256.h"

namespace degu {
namespace {

using Json = nlohmann::json;

std::string layer_part(int layer) {
  return fmt::format("layer-{:05}", layer);
}

constexpr const char* kEmbeddingPart = "embedding";
constexpr const char* kEndPart = "end";

ExpertRange experts_here(Communicator& world, const ModelShape& shape) {
  const int experts = shape.moe.experts;
  if (experts == 0) return {};
  if (experts % world.size() != 0) {
    throw ConfigError(
        "{} ranks do not divide the {} experts; start as many ranks as a divisor of it",
        world.size(), experts);
  }
  const Range range = Layout(world.rank(), world.size(), world.size()).experts(experts);
  return {range.begin, range.size()};
}

Json coverage_json(const ExpertCoverage& c) {
  return {{"layer", c.layer},
          {"minimum", c.minimum},
          {"tokens", c.tokens_E},
          {"fell_back", std::vector<int>(c.fell_back_E.begin(), c.fell_back_E.end())}};
}

ExpertCoverage coverage_of(const Json& json) {
  ExpertCoverage c{.layer = json.at("layer"), .minimum = json.at("minimum")};
  c.tokens_E = json.at("tokens").get<std::vector<int64_t>>();
  const auto flags = json.at("fell_back").get<std::vector<int>>();
  c.fell_back_E.assign(flags.begin(), flags.end());
  return c;
}

void copy_tensor(CheckpointReader& from, const std::string& name, CheckpointWriter& to) {
  const CheckpointReader::TensorInfo info = from.info(name);
  const Tensor tensor(info.dtype, info.shape);
  from.read(name, tensor);
  to.add(name, tensor);
}

}  // namespace

LayerwiseQuantizer::LayerwiseQuantizer(Context& context, Communicator& world,
                                       CheckpointReader& reader, const ModelShape& shape,
                                       const QuantizationInfo& info, const QuantizeOptions& options,
                                       const std::string& out)
    : context_(context),
      world_(world),
      reader_(reader),
      shape_(shape),
      info_(info),
      options_(options),
      method_(quantization_method(info.method)),
      experts_(experts_here(world, shape)),
      specs_(parameter_specs(shape)),
      out_(out),
      parts_(out + ".layers"),
      calibration_(world, options.calibration, shape, experts_) {
  // What parts must have been made from to be taken.
  const MethodOptions& m = options.method_options;
  job_ = Json({{"checkpoint", sha256_of(read_file(reader.folder() + "/manifest.json"))},
               {"plan", to_json(info)},
               {"calibration", calibration_.fingerprint()},
               {"damping", m.damping},
               {"activation_order", m.activation_order},
               {"isa", std::string(isa_name(context.isa()))}})
             .dump();
  total_ = shape.layers * (2 * calibration_.passes() + 1);
}

void LayerwiseQuantizer::tick(const std::string& note) {
  if (options_.progress) options_.progress(++done_, total_, note);
}

// Rank 0 looks; all agree.
bool LayerwiseQuantizer::part_stands(const std::string& name) {
  std::string verdict = "no";
  if (world_.rank() == 0 && std::filesystem::exists(part_folder(name) + "/manifest.json")) {
    try {
      CheckpointReader part(part_folder(name));
      part.verify();
      if (part.metadata().at("job") == job_) {
        verdict = "yes";
      } else {
        log_warn("{}: partial results of other arguments; they are made anew", part_folder(name));
      }
    } catch (const DataError& error) {
      log_warn("{}; it is made anew", error.what());
    }
  }
  return world_.broadcast_text(verdict, 0) == "yes";
}

Scheme LayerwiseQuantizer::scheme_of(const std::string& name) const {
  const auto found = info_.tensors.find(name);
  return found == info_.tensors.end() ? Scheme::kFp32 : found->second;
}

std::vector<ParameterSpec> LayerwiseQuantizer::specs_with(const std::string& prefix) const {
  std::vector<ParameterSpec> found;
  for (const ParameterSpec& spec : specs_) {
    const bool in_block = spec.name.starts_with("blocks.");
    const bool is_input = spec.name == "embedding" && !shape_.tied_head;
    if (prefix.empty() ? !in_block && !is_input : spec.name.starts_with(prefix)) {
      found.push_back(spec);
    }
  }
  return found;
}

void LayerwiseQuantizer::read_problem(BlockProblem& problem, const std::string& prefix) {
  for (const ParameterSpec& spec : specs_with(prefix)) {
    const std::string name = spec.name.substr(prefix.size());
    problem.values[name] = read_value(reader_, spec, experts_);
    problem.schemes[name] = scheme_of(spec.name);
  }
}

void LayerwiseQuantizer::choose(const SiteStatistics* statistics, int64_t n,
                                std::span<const MatrixTask> tasks) {
  if (statistics == nullptr) {  // a table that is looked up: no product, no inputs
    choose_mse(context_, {}, options_.method_options, tasks);
  } else if (statistics->usable[static_cast<size_t>(n)] == 0) {
    choose_rtn(context_, {}, options_.method_options, tasks);
  } else {
    method_.choose(context_, statistics->of(n), options_.method_options, tasks);
  }
}

void LayerwiseQuantizer::write_problem(BlockProblem& problem, const std::string& prefix,
                                       const std::string& part,
                                       const std::optional<ExpertCoverage>& coverage) {
  Json metadata = {{"job", job_}};
  if (coverage && !coverage->tokens_E.empty()) metadata["coverage"] = coverage_json(*coverage);
  CheckpointWriter writer(world_, part_folder(part), metadata);
  const std::vector<ParameterSpec> specs = specs_with(prefix);
  std::map<std::string, const ParameterSpec*> waiting;
  for (const ParameterSpec& spec : specs) waiting[spec.name.substr(prefix.size())] = &spec;
  const std::vector<Site> sites = block_sites(shape_, problem.layer);
  for (size_t s = 0; s < sites.size(); ++s) {
    const Site& site = sites[s];
    std::vector<TensorToAdd> tensors;
    for (const std::string& name : site.matrices) {
      if (!waiting.contains(name)) continue;
      tensors.push_back({waiting.at(name), problem.value(name), problem.scheme(name)});
      waiting.erase(name);
    }
    const bool mine = site.per_expert || static_cast<int>(s) % world_.size() == world_.rank();
    if (!mine || tensors.empty()) continue;
    add_tensors(context_, writer, tensors, site.per_expert ? experts_ : ExpertRange{},
                [&](int64_t n, std::span<const MatrixTask> tasks) {
                  choose(&problem.statistics.at(site.name), n, tasks);
                });
  }
  for (const auto& [name, spec] : waiting) {  // norms, routers, a tied embedding
    if (world_.rank() != 0) continue;
    const auto found = problem.statistics.find(name);
    const SiteStatistics* statistics = found == problem.statistics.end() ? nullptr : &found->second;
    add_tensor(context_, writer, *spec, {}, problem.value(name), problem.scheme(name),
               [&](std::span<const MatrixTask> tasks) { choose(statistics, 0, tasks); });
  }
  writer.commit();
}

void LayerwiseQuantizer::quantize_embedding() {
  if (part_stands(kEmbeddingPart)) return;
  const ParameterSpec& spec = specs_.front();
  CheckpointWriter writer(world_, part_folder(kEmbeddingPart), {{"job", job_}});
  if (world_.rank() == 0) {
    add_tensor(context_, writer, spec, {}, read_value(reader_, spec, {}), scheme_of(spec.name),
               [&](std::span<const MatrixTask> tasks) { choose(nullptr, 0, tasks); });
  }
  writer.commit();
}

void LayerwiseQuantizer::quantize_block(int layer) {
  const std::string prefix = block_prefix(layer);
  BlockProblem problem{.world = world_, .shape = shape_, .layer = layer, .experts = experts_};
  ExpertCoverage coverage;
  {
    BlockModel block(
        context_, reader_, shape_, layer, experts_, world_.size() > 1 ? &world_ : nullptr,
        [](const ParameterSpec&) { return Scheme::kBf16; }, calibration_.most_tokens());
    coverage = calibration_.measure(context_, block, problem,
                                    [&] { tick(fmt::format("layer {}, measuring", layer)); });
  }
  for (size_t e = 0; e < coverage.tokens_E.size(); ++e) {
    if (coverage.fell_back_E[e] == 0) continue;
    log_warn("layer {} expert {}: {} calibration tokens reached it, fewer than {}; {}", layer, e,
             coverage.tokens_E[e], coverage.minimum,
             options_.calibration.fallback_all_tokens
                 ? "all calibration tokens were sent through it instead"
                 : "it is rounded to nearest");
  }
  read_problem(problem, prefix);
  if (method_.prepare != nullptr) method_.prepare(context_, problem);
  write_problem(problem, prefix, layer_part(layer), coverage);
}

void LayerwiseQuantizer::advance(int layer) {
  CheckpointReader part(part_folder(layer_part(layer)));
  if (part.metadata().contains("coverage")) {
    report_.coverage.push_back(coverage_of(part.metadata().at("coverage")));
  }
  BlockModel block(
      context_, part, shape_, layer, experts_, world_.size() > 1 ? &world_ : nullptr,
      [&](const ParameterSpec& spec) { return scheme_of(spec.name); }, calibration_.most_tokens());
  calibration_.advance(context_, block, [&] { tick(fmt::format("layer {}, running", layer)); });
}

// The last norm and what reads it. A tied embedding takes the head's statistics.
void LayerwiseQuantizer::quantize_end() {
  BlockProblem problem{.world = world_, .shape = shape_, .layer = -1, .experts = experts_};
  read_problem(problem, "");
  const std::string head = shape_.tied_head ? "embedding" : "head";
  if (scheme_info(problem.scheme(head)).quantized()) {
    problem.statistics[head] =
        calibration_.measure_head(context_, problem.value("final_norm"), shape_.norm_eps);
    if (!shape_.tied_head && method_.prepare != nullptr) method_.prepare(context_, problem);
  }
  write_problem(problem, "", kEndPart, std::nullopt);
}

QuantizeReport LayerwiseQuantizer::run() {
  report_.method = info_.method;
  report_.calibration_tokens = calibration_.tokens();
  {
    const ParameterSpec& spec = specs_.front();
    if (!shape_.tied_head) quantize_embedding();
    // A tied embedding is quantized last, with the inputs of the head; until then it is bf16.
    CheckpointReader part(shape_.tied_head ? reader_.folder() : part_folder(kEmbeddingPart));
    const Scheme scheme = shape_.tied_head ? Scheme::kBf16 : scheme_of(spec.name);
    ModelShape table = shape_;
    table.layers = 1;  // untouched, and so without memory
    table.moe = {};
    table.tied_head = false;
    ParameterSet parameters(context_, table, DType::kBF16, {}, [&](const ParameterSpec& each) {
      return each.name == spec.name ? scheme : Scheme::kBf16;
    });
    load_parameters(
        context_, part, [&](const ParameterSpec&) { return scheme; },
        [&](const ParameterSpec& each) {
          return each.name == spec.name ? std::string(kModelPrefix) + each.name : std::string();
        },
        parameters);
    calibration_.embed(context_, parameters.get(spec.name));
  }
  for (int layer = 0; layer < shape_.layers; ++layer) {
    if (part_stands(layer_part(layer))) {
      ++report_.layers_resumed;
      done_ += calibration_.passes() + 1;
    } else {
      quantize_block(layer);
      tick(fmt::format("layer {}, chosen", layer));
    }
    advance(layer);
  }
  if (!part_stands(kEndPart)) quantize_end();
  return report_;
}

// Rank 0 copies, so that the files too are the same on any number of ranks.
void LayerwiseQuantizer::assemble(const Json& metadata) {
  run_together(world_, [&] {
    if (world_.rank() != 0) return;
    Json whole = metadata;
    Json& calibration = whole["quantization"]["calibration"];
    calibration["tokens"] = report_.calibration_tokens;
    for (const ExpertCoverage& each : report_.coverage) {
      calibration["experts"].push_back(coverage_json(each));
    }
    const std::unique_ptr<Communicator> self = make_self_communicator();
    CheckpointWriter writer(*self, out_, whole);
    std::vector<std::string> parts = {kEmbeddingPart, kEndPart};
    if (shape_.tied_head) parts.erase(parts.begin());
    for (int layer = 0; layer < shape_.layers; ++layer) parts.push_back(layer_part(layer));
    for (const std::string& name : parts) {
      CheckpointReader part(part_folder(name));
      for (const CheckpointReader::TensorInfo& info : part.list()) {
        copy_tensor(part, info.name, writer);
      }
    }
    for (const std::string& name : reader_.attachments()) {
      writer.attach(name, reader_.attachment(name));
    }
    writer.commit();
    std::filesystem::remove_all(parts_);
  });
}

}  // namespace degu
