#include "compress/method.h"

namespace degu {
namespace {

constexpr QuantizationMethod kMethods[] = {
    {"rtn", "round to nearest; needs no data", false, &choose_rtn, nullptr},
    {"mse", "round to nearest with scales of least squared error; needs no data", false,
     &choose_mse, nullptr},
    {"awq", "channels that see large inputs are scaled up, by search on calibration tokens", true,
     &choose_awq, &prepare_awq},
    {"gptq", "later columns make up for the rounding of earlier ones, by calibration's Hessian",
     true, &choose_gptq, nullptr},
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

const QuantizationMethod& default_method(Scheme scheme) {
  return quantization_method(scheme_info(scheme).codes == Codes::kInt4 ? "awq" : "rtn");
}

}  // namespace degu
