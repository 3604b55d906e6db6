#include "model/load.h"

#include <cstring>
#include <nlohmann/json.hpp>

namespace degu {
namespace {

using Json = nlohmann::json;

constexpr const char* kKey = "quantization";

Scheme scheme_or_throw(const std::string& folder, const std::string& name) {
  if (const std::optional<Scheme> scheme = scheme_named(name)) return *scheme;
  throw DataError("{}: scheme '{}' is unknown to this program", folder, name);
}

// Reads this rank's part of one tensor after another.
class TensorLoader {
 public:
  TensorLoader(CheckpointReader& reader, ExpertRange experts)
      : reader_(reader), experts_(experts) {}

  Tensor read(const std::string& name, const ParameterSpec& spec, DType type, Shape whole) {
    const CheckpointReader::TensorInfo info = reader_.info(name);
    if (info.shape != whole || info.dtype != type) {
      throw DataError("{}: {} is {} {}, the configuration and scheme make it {} {}",
                      reader_.folder(), name, dtype_name(info.dtype), info.shape.str(),
                      dtype_name(type), whole.str());
    }
    if (spec.role != ParameterRole::kExperts) {
      Tensor out(type, whole);
      reader_.read(name, out);
      return out;
    }
    Tensor out(type, {experts_.count, whole[1], whole[2]});
    reader_.read(name, {experts_.begin, 0, 0}, out);
    return out;
  }
  DType type_of(const std::string& name) { return reader_.info(name).dtype; }

 private:
  CheckpointReader& reader_;
  ExpertRange experts_;
};

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

std::unique_ptr<ParameterSet> load_for_inference(Context& context, CheckpointReader& reader,
                                                 const ModelShape& shape, DType activation,
                                                 ExpertRange experts) {
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
  auto parameters =
      std::make_unique<ParameterSet>(context, shape, activation, experts, SchemeOf(scheme_of));
  TensorLoader loader(reader, experts);
  for (const auto& p : parameters->all()) {
    const std::string name = std::string(kModelPrefix) + p->spec.name;
    const Shape& whole = p->spec.shape;
    if (p->value) {
      const Tensor value = loader.read(name, p->spec, DType::kF32, whole);
      std::memcpy(p->value.data, value.view().data, value.bytes());
      continue;
    }
    const Scheme scheme = scheme_of(p->spec);
    if (!scheme_info(scheme).quantized()) {
      parameters->load(context, *p, loader.read(name, p->spec, loader.type_of(name), whole));
      continue;
    }
    const Tensor codes =
        loader.read(name, p->spec, scheme_info(scheme).weight, code_shape(scheme, whole));
    const Tensor scales =
        loader.read(name + std::string(kScaleSuffix), p->spec, DType::kBF16, scale_shape(whole));
    Shape local = whole;
    if (p->spec.role == ParameterRole::kExperts) local = {experts.count, whole[1], whole[2]};
    parameters->load(
        context, *p,
        QuantizedWeight{.scheme = scheme, .shape = local, .codes = codes, .scales = scales});
  }
  parameters->pack(context);
  return parameters;
}

}  // namespace degu
