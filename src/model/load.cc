#include "model/load.h"

#include <malloc.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <future>
#include <nlohmann/json.hpp>

#include "tensor/device.h"

namespace degu {
namespace {

using Json = nlohmann::json;

constexpr const char* kKey = "quantization";

Scheme scheme_or_throw(const std::string& folder, const std::string& name) {
  if (const std::optional<Scheme> scheme = scheme_named(name)) return *scheme;
  throw DataError("{}: scheme '{}' is unknown to this program", folder, name);
}

// A tensor as the checkpoint holds it: values, or codes and their scales.
struct StoredTensor {
  Scheme scheme = Scheme::kFp32;
  AnyView values;
  AnyView scales;
};

// Reads this rank's part of one tensor after another, into two pieces of memory in turn, so that
// one can be packed while the next is read; fresh pages for each tensor would cost as much as
// reading it.
class TensorLoader {
 public:
  TensorLoader(CheckpointReader& reader, const ParameterSet& parameters)
      : reader_(reader),
        parameters_(parameters),
        memory_{Arena(most_bytes()), Arena(most_bytes())} {}

  // The views live until the call after the next.
  StoredTensor read(const std::string& name, const ParameterSpec& spec, Scheme scheme) {
    turn_ = 1 - turn_;
    memory_[turn_].release(0);
    const SchemeInfo& info = scheme_info(scheme);
    if (!info.quantized()) {
      // A trained tensor that may be quantized is stored in any unquantized type.
      const DType type = quantizable(spec.role) ? reader_.info(name).dtype : DType::kF32;
      return {scheme, read_part(name, spec, type, spec.shape), {}};
    }
    const AnyView codes = read_part(name, spec, info.weight, code_shape(scheme, spec.shape));
    return {
        scheme, codes,
        read_part(name + std::string(kScaleSuffix), spec, DType::kBF16, scale_shape(spec.shape))};
  }

 private:
  AnyView read_part(const std::string& name, const ParameterSpec& spec, DType type, Shape whole) {
    const CheckpointReader::TensorInfo info = reader_.info(name);
    if (info.shape != whole || info.dtype != type) {
      throw DataError("{}: {} is {} {}, the configuration and scheme make it {} {}",
                      reader_.folder(), name, dtype_name(info.dtype), info.shape.str(),
                      dtype_name(type), whole.str());
    }
    if (spec.role != ParameterRole::kExperts) {
      const AnyView out = memory_[turn_].take(type, whole);
      reader_.read(name, out);
      return out;
    }
    const ExpertRange experts = parameters_.experts();
    const AnyView out = memory_[turn_].take(type, {experts.count, whole[1], whole[2]});
    // In the order of the file, so that none of its parts is read twice; experts that follow each
    // other there and here in one piece.
    const std::vector<ExpertRun> runs = runs_of(spec.layer, whole[0]);
    for (const ExpertRun& run : runs) {
      reader_.read(name, {run.expert, 0, 0}, out.rows(run.slot - experts.begin, run.count));
    }
    return out;
  }

  struct ExpertRun {
    int64_t expert, slot, count;
  };
  // This rank's experts, ascending.
  std::vector<ExpertRun> runs_of(int layer, int64_t experts) const {
    const auto [begin, count] = parameters_.experts();
    const std::span<const int32_t> slot_E = parameters_.placement().slots(layer);
    if (slot_E.empty()) return {{begin, begin, count}};
    std::vector<ExpertRun> runs;
    for (int64_t e = 0; e < experts; ++e) {
      const int64_t slot = slot_E[static_cast<size_t>(e)];
      if (slot < begin || slot >= begin + count) continue;
      if (!runs.empty() && runs.back().expert + runs.back().count == e &&
          runs.back().slot + runs.back().count == slot) {
        ++runs.back().count;
      } else {
        runs.push_back({e, slot, 1});
      }
    }
    return runs;
  }

  // Of the largest tensor and its scales, which are never larger. Address space: what no tensor
  // fills is not backed by memory.
  size_t most_bytes() const {
    size_t most = 0;
    for (const CheckpointReader::TensorInfo& info : reader_.list()) {
      if (!info.name.starts_with(kModelPrefix)) continue;
      most = std::max(most, static_cast<size_t>(info.shape.elements()) * size_of(info.dtype));
    }
    return 2 * most + 4096;
  }

  CheckpointReader& reader_;
  const ParameterSet& parameters_;
  std::array<Arena, 2> memory_;
  size_t turn_ = 0;
};

void store(Context& context, ParameterSet& parameters, Parameter& p, const StoredTensor& tensor) {
  if (p.value) {
    copy(context, tensor.values, p.value);
  } else if (!scheme_info(tensor.scheme).quantized()) {
    parameters.load(context, p, tensor.values);
  } else {
    Shape local = p.spec.shape;
    if (p.spec.role == ParameterRole::kExperts) {
      local = {parameters.experts().count, local[1], local[2]};
    }
    parameters.load(context, p,
                    QuantizedWeight{.scheme = tensor.scheme,
                                    .shape = local,
                                    .codes = tensor.values,
                                    .scales = tensor.scales});
  }
}

// How far reading from the disk may run ahead of packing: some tensors of a large model.
constexpr int64_t kReadAhead = int64_t{256} << 20;

}  // namespace

std::optional<QuantizationInfo> quantization_of(const CheckpointReader& reader) {
  const Json& metadata = reader.metadata();
  if (!metadata.contains(kKey)) return std::nullopt;
  QuantizationInfo info;
  try {
    const Json& entry = metadata.at(kKey);
    info.scheme = scheme_or_throw(reader.folder(), entry.at("scheme").get<std::string>());
    info.method = entry.at("method").get<std::string>();
    if (const auto group = entry.at("group").get<int64_t>(); group != kScaleGroup) {
      throw DataError("{}: groups of {} codes; this program reads groups of {}", reader.folder(),
                      group, kScaleGroup);
    }
    for (const auto& [name, scheme] : entry.at("tensors").items()) {
      info.tensors[name] = scheme_or_throw(reader.folder(), scheme.get<std::string>());
    }
  } catch (const Json::exception& error) {
    throw DataError("{}: the entry '{}' of the manifest is damaged: {}", reader.folder(), kKey,
                    error.what());
  }
  return info;
}

nlohmann::json to_json(const QuantizationInfo& info) {
  Json tensors = Json::object();
  for (const auto& [name, scheme] : info.tensors) tensors[name] = scheme_info(scheme).name;
  return {{kKey,
           {{"scheme", scheme_info(info.scheme).name},
            {"method", info.method},
            {"group", kScaleGroup},
            {"tensors", std::move(tensors)}}}};
}

void load_parameters(Context& context, CheckpointReader& reader, const SchemeOf& scheme_of,
                     const StoredName& stored_name, ParameterSet& parameters) {
  reader.read_ahead(kReadAhead);
  TensorLoader loader(reader, parameters);
  std::vector<std::pair<Parameter*, std::string>> wanted;
  for (const auto& p : parameters.all()) {
    if (std::string name = stored_name(p->spec); !name.empty()) {
      wanted.emplace_back(p.get(), std::move(name));
    }
  }
  const auto read = [&](size_t i) {
    const auto& [p, name] = wanted[i];
    return loader.read(name, p->spec, p->value ? Scheme::kFp32 : scheme_of(p->spec));
  };
  StoredTensor present;
  if (!wanted.empty()) present = read(0);
  for (size_t i = 0; i < wanted.size(); ++i) {
    std::future<StoredTensor> next;  // nobody else touches the reader meanwhile
    if (i + 1 < wanted.size()) next = std::async(std::launch::async, read, i + 1);
    store(context, parameters, *wanted[i].first, present);
    if (next.valid()) present = next.get();
  }
  reader.read_ahead(0);
  ::malloc_trim(0);  // parts that slices were cut from were freed, but to the heap alone
  parameters.pack(context);
}

std::unique_ptr<ParameterSet> load_for_inference(Context& context, CheckpointReader& reader,
                                                 const ModelShape& shape, DType activation,
                                                 ExpertRange experts,
                                                 const ExpertPlacement& placement) {
  const std::optional<QuantizationInfo> quantization = quantization_of(reader);
  if (quantization) activation = DType::kBF16;
  const auto scheme_of = [&](const ParameterSpec& spec) {
    if (!quantization) return training_scheme(activation);
    const auto found = quantization->tensors.find(spec.name);
    if (found == quantization->tensors.end()) {
      throw DataError("{}: the manifest does not say how {} is quantized", reader.folder(),
                      spec.name);
    }
    return found->second;
  };
  auto parameters = std::make_unique<ParameterSet>(context, shape, activation, experts,
                                                   SchemeOf(scheme_of), placement);
  load_parameters(
      context, reader, SchemeOf(scheme_of),
      [](const ParameterSpec& spec) { return std::string(kModelPrefix) + spec.name; }, *parameters);
  return parameters;
}

}  // namespace degu
