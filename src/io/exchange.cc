#include "io/exchange.h"

#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "io/atomic_file.h"
#include "io/checkpoint.h"
#include "io/safetensors.h"
#include "tensor/tensor.h"

namespace degu {
namespace {

constexpr const char* kConfigName = "config.yaml";
constexpr const char* kTokenizerName = "tokenizer.model";

bool is_weight_type(DType type) {
  return type == DType::kF32 || type == DType::kBF16;
}

Tensor converted(const Tensor& from, DType type) {
  Tensor to(type, from.shape());
  const int64_t n = from.shape().elements();
  if (from.dtype() == DType::kF32) {
    for (int64_t i = 0; i < n; ++i) to.as<bf16>()[i] = bf16(from.as<float>()[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to.as<float>()[i] = static_cast<float>(from.as<bf16>()[i]);
  }
  return to;
}

bool has_attachment(const CheckpointReader& reader, const char* name) {
  for (const std::string& there : reader.attachments()) {
    if (there == name) return true;
  }
  return false;
}

// Every weight of `like` must be in the file with its shape, and nothing else.
void require_match(const SafetensorsReader& file, const std::string& path,
                   const std::string& like) {
  const CheckpointReader reader(like);
  std::map<std::string, Shape> missing;
  for (const CheckpointReader::TensorInfo& info : reader.list()) {
    if (info.name.starts_with(kModelPrefix))
      missing[info.name.substr(kModelPrefix.size())] = info.shape;
  }
  for (const SafetensorsEntry& entry : file.entries()) {
    const auto at = missing.find(entry.name);
    if (at == missing.end())
      throw DataError("{}: tensor '{}' is not in {}", path, entry.name, like);
    if (at->second != entry.shape) {
      throw DataError("{}: tensor '{}' has shape {}, in {} it has {}", path, entry.name,
                      entry.shape.str(), like, at->second.str());
    }
    missing.erase(at);
  }
  if (!missing.empty()) {
    throw DataError("{}: tensor '{}' of {} is missing", path, missing.begin()->first, like);
  }
}

}  // namespace

ExchangeSummary export_safetensors(const std::string& checkpoint, const std::string& path,
                                   const ExportOptions& options) {
  CheckpointReader reader(checkpoint);
  auto exported_type = [&](DType stored) {
    return options.convert && is_weight_type(stored) ? options.dtype : stored;
  };
  std::vector<SafetensorsEntry> entries;
  std::vector<CheckpointReader::TensorInfo> sources;
  ExchangeSummary summary;
  for (const CheckpointReader::TensorInfo& info : reader.list()) {
    const bool weight = info.name.starts_with(kModelPrefix);
    if (!weight && !options.everything) continue;
    const std::string name = options.everything ? info.name : info.name.substr(kModelPrefix.size());
    const DType type = weight ? exported_type(info.dtype) : info.dtype;
    entries.push_back({name, type, info.shape});
    sources.push_back(info);
    ++summary.tensors;
    summary.elements += info.shape.elements();
    summary.bytes += info.shape.elements() * static_cast<int64_t>(size_of(type));
  }
  if (entries.empty()) throw ConfigError("{}: holds no weights ('{}…')", checkpoint, kModelPrefix);
  std::map<std::string, std::string> metadata = {{"format", "degu"}};
  if (has_attachment(reader, kConfigName)) metadata[kConfigName] = reader.attachment(kConfigName);
  SafetensorsWriter writer(path, entries, metadata);
  for (size_t i = 0; i < sources.size(); ++i) {
    Tensor stored(sources[i].dtype, sources[i].shape);
    reader.read(sources[i].name, stored);
    if (entries[i].dtype != stored.dtype()) stored = converted(stored, entries[i].dtype);
    writer.write(stored);
  }
  writer.finish();
  return summary;
}

ExchangeSummary import_safetensors(const std::string& path, const std::string& checkpoint,
                                   const ImportOptions& options) {
  SafetensorsReader file(path);
  if (!options.like.empty()) require_match(file, path, options.like);
  for (const SafetensorsEntry& entry : file.entries()) {
    if (!is_weight_type(entry.dtype)) {
      throw DataError("{}: tensor '{}' is {}; weights are fp32 or bf16", path, entry.name,
                      dtype_name(entry.dtype));
    }
  }
  const auto self = make_self_communicator();
  CheckpointWriter writer(*self, checkpoint, {{"imported_from", path}});
  ExchangeSummary summary;
  for (const SafetensorsEntry& entry : file.entries()) {
    Tensor stored(entry.dtype, entry.shape);
    file.read(entry.name, stored);
    const Tensor value =
        entry.dtype == DType::kF32 ? std::move(stored) : converted(stored, DType::kF32);
    writer.add(std::string(kModelPrefix) + entry.name, value);
    ++summary.tensors;
    summary.elements += entry.shape.elements();
    summary.bytes += entry.shape.elements() * static_cast<int64_t>(size_of(entry.dtype));
  }
  const auto config = file.metadata().find(kConfigName);
  if (!options.config.empty()) {
    writer.attach(kConfigName, read_file(options.config));
  } else if (config != file.metadata().end()) {
    writer.attach(kConfigName, config->second);
  } else if (!options.like.empty()) {
    writer.attach(kConfigName, CheckpointReader(options.like).attachment(kConfigName));
  }
  if (!options.tokenizer.empty()) {
    writer.attach(kTokenizerName, read_file(options.tokenizer));
  } else if (!options.like.empty() &&
             has_attachment(CheckpointReader(options.like), kTokenizerName)) {
    writer.attach(kTokenizerName, CheckpointReader(options.like).attachment(kTokenizerName));
  }
  writer.commit();
  return summary;
}

}  // namespace degu
