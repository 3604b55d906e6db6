#include "compress/method.h"

namespace degu {
namespace {

constexpr QuantizationMethod kMethods[] = {
    {"rtn", "round to nearest; needs no data", &quantize_rtn},
    {"mse", "round to nearest with scales of least squared error; needs no data", &quantize_mse},
};

}  // namespace

std::span<const QuantizationMethod> quantization_methods() {
  return kMethods;
}

const QuantizationMethod& quantization_method(std::string_view name) {
  std::string known;
  for (const QuantizationMethod& method : kMethods) {
    if (method.name == name) return method;
    known += known.empty() ? "" : ", ";
    known += method.name;
  }
  throw ConfigError("there is no quantization method '{}'; choose one of: {}", name, known);
}

}  // namespace degu
