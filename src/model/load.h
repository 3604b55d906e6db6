// A checkpoint's weights, ready to be served or evaluated.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "io/checkpoint.h"
#include "model/parameters.h"

namespace degu {

// What a quantized checkpoint's metadata says under "quantization" (docs/formats/checkpoint.md).
struct QuantizationInfo {
  Scheme scheme = Scheme::kBf16;          // what was asked for
  std::string method;                     // how: "rtn"
  std::map<std::string, Scheme> tensors;  // every tensor that may be quantized, and how it is held
};

// Nothing when the checkpoint holds training's fp32 values. DataError when the entry is damaged.
std::optional<QuantizationInfo> quantization_of(const CheckpointReader& reader);
nlohmann::json to_json(const QuantizationInfo& info);

// The suffix of the tensor that holds a quantized tensor's scales: "model/blocks.0.moe.up.scale".
inline constexpr std::string_view kScaleSuffix = ".scale";

// The name of the stored tensor that a parameter's values come from; "": leave it out.
using StoredName = std::function<std::string(const ParameterSpec&)>;

// Fills `parameters`, made for serving with `scheme_of`, and packs them. Tensors held as codes come
// with their scales; others are fp32 or bf16. DataError when types or shapes do not fit.
void load_parameters(Context& context, CheckpointReader& reader, const SchemeOf& scheme_of,
                     const StoredName& stored_name, ParameterSet& parameters);

// Reads the experts that `placement` puts into `experts`. Batch by batch: beside the result some
// tens of megabytes are in memory. Of training's checkpoints values become `activation`;
// quantized ones are packed as they are, and their activations are bf16 whatever the model was
// trained in. DataError when names, shapes or schemes do not fit `shape`.
std::unique_ptr<ParameterSet> load_for_inference(Context& context, CheckpointReader& reader,
                                                 const ModelShape& shape, DType activation,
                                                 ExpertRange experts,
                                                 const ExpertPlacement& placement = {});

}  // namespace degu
