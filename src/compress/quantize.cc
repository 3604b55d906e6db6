#include "compress/quantize.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "compress/layerwise.h"
#include "compress/tensors.h"
#include "config/yaml.h"

namespace degu {
namespace {

std::string stored_name(const ParameterSpec& spec) {
  return std::string(kModelPrefix) + spec.name;
}

// Tensor by tensor, shared out over the ranks.
void quantize_tensors(Context& context, Communicator& world, CheckpointReader& reader,
                      CheckpointWriter& writer, const std::vector<ParameterSpec>& specs,
                      const QuantizationInfo& info, const QuantizeOptions& options) {
  const QuantizationMethod& method = quantization_method(info.method);
  for (size_t i = 0; i < specs.size(); ++i) {
    const ParameterSpec& spec = specs[i];
    if (static_cast<int>(i) % world.size() != world.rank()) continue;
    if (options.progress) {
      options.progress(static_cast<int64_t>(i), static_cast<int64_t>(specs.size()), spec.name);
    }
    const Tensor value = read_value(reader, spec, {});
    const auto planned = info.tensors.find(spec.name);
    const Scheme scheme = planned == info.tensors.end() ? Scheme::kFp32 : planned->second;
    add_tensor(context, writer, spec, {}, value, scheme, [&](std::span<const MatrixTask> tasks) {
      method.choose(context, {}, options.method_options, tasks);
    });
  }
}

}  // namespace

int64_t Audit::elements() const {
  int64_t sum = 0;
  for (const TensorAudit& tensor : tensors) sum += tensor.elements;
  return sum;
}

int64_t Audit::bytes() const {
  int64_t sum = 0;
  for (const TensorAudit& tensor : tensors) sum += tensor.bytes;
  return sum;
}

double Audit::mean_quantized_bits() const {
  double elements = 0;
  double bytes = 0;
  for (const TensorAudit& tensor : tensors) {
    if (!scheme_info(tensor.stored).quantized()) continue;
    elements += static_cast<double>(tensor.elements);
    bytes += static_cast<double>(tensor.bytes);
  }
  return elements > 0 ? 8 * bytes / elements : 0;
}

ModelShape checkpoint_shape(const CheckpointReader& reader) {
  const YamlDocument document =
      YamlDocument::from_text(reader.attachment("config.yaml"), reader.folder() + "/config.yaml");
  return read_config<ModelShape>(document.part("model")).resolved();
}

QuantizeReport quantize_checkpoint(Context& context, Communicator& world, CheckpointReader& reader,
                                   const std::string& out, const QuantizeOptions& options) {
  if (const auto before = quantization_of(reader)) {
    throw ConfigError("{}: is quantized already ({}, {}); start from the checkpoint it was made of",
                      reader.folder(), scheme_info(before->scheme).name, before->method);
  }
  const QuantizationMethod& method = options.method.empty() ? default_method(options.policy.scheme)
                                                            : quantization_method(options.method);
  const ModelShape shape = checkpoint_shape(reader);
  const std::vector<ParameterSpec> specs = parameter_specs(shape);
  const QuantizationInfo info{.scheme = options.policy.scheme,
                              .method = std::string(method.name),
                              .tensors = options.policy.plan(specs)};
  nlohmann::json metadata = reader.metadata();
  metadata.update(to_json(info));
  QuantizeReport report{.method = info.method};
  if (method.calibrated) {
    LayerwiseQuantizer layerwise(context, world, reader, shape, info, options, out);
    report = layerwise.run();
    layerwise.assemble(metadata);
    return report;
  }
  CheckpointWriter writer(world, out, metadata);
  quantize_tensors(context, world, reader, writer, specs, info, options);
  for (const std::string& name : reader.attachments()) {
    if (world.rank() == 0) writer.attach(name, reader.attachment(name));
  }
  writer.commit();
  return report;
}

Audit audit_checkpoint(const CheckpointReader& reader, const QuantizationPolicy& policy) {
  const std::vector<ParameterSpec> specs = parameter_specs(checkpoint_shape(reader));
  const std::map<std::string, Scheme> plan = policy.plan(specs);
  const std::optional<QuantizationInfo> info = quantization_of(reader);
  Audit audit;
  for (const ParameterSpec& spec : specs) {
    TensorAudit line{.name = spec.name, .elements = spec.shape.elements()};
    const CheckpointReader::TensorInfo codes = reader.info(stored_name(spec));
    line.bytes = codes.shape.elements() * static_cast<int64_t>(size_of(codes.dtype));
    if (const auto planned = plan.find(spec.name); planned == plan.end()) {
      line.fixed = true;
    } else {
      line.planned = planned->second;
      line.stored = codes.dtype == DType::kBF16 ? Scheme::kBf16 : Scheme::kFp32;
      const std::string scale_name = codes.name + std::string(kScaleSuffix);
      if (info && info->tensors.contains(spec.name) && reader.has(scale_name)) {
        line.stored = info->tensors.at(spec.name);
        const Shape scales = reader.info(scale_name).shape;
        line.bytes += scales.elements() * static_cast<int64_t>(sizeof(bf16));
        if (codes.dtype != scheme_info(line.stored).weight ||
            codes.shape != code_shape(line.stored, spec.shape) ||
            scales != scale_shape(spec.shape)) {
          throw DataError("{}: {} holds {} {} with scales {}: not {}", reader.folder(), spec.name,
                          dtype_name(codes.dtype), codes.shape.str(), scales.str(),
                          scheme_info(line.stored).name);
        }
      }
      if (line.stored != line.planned) {
        throw DataError("{}: {} is held as {}, the policy meant {}; quantize again or say --keep",
                        reader.folder(), spec.name, scheme_info(line.stored).name,
                        scheme_info(line.planned).name);
      }
    }
    audit.tensors.push_back(line);
  }
  for (const auto& entry : std::filesystem::directory_iterator(reader.folder())) {
    if (entry.path().extension() == ".h5") {
      audit.file_bytes += static_cast<int64_t>(entry.file_size());
    }
  }
  return audit;
}

}  // namespace degu
