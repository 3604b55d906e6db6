// How a tensor's codes are chosen. One source per method; the table is in registry.cc.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "model/parameters.h"

namespace degu {

struct QuantizationMethod {
  std::string_view name;
  std::string_view summary;
  // Fills `out` from the fp32 value of one whole tensor.
  void (*quantize)(Context& context, const ParameterSpec& spec, AnyView value,
                   const QuantizedWeight& out);
};

std::span<const QuantizationMethod> quantization_methods();
// ConfigError naming the methods there are.
const QuantizationMethod& quantization_method(std::string_view name);

// Round to nearest (rtn.cc).
void quantize_rtn(Context& context, const ParameterSpec& spec, AnyView value,
                  const QuantizedWeight& out);

// Round to nearest with the scale of least squared error in each group (mse.cc).
void quantize_mse(Context& context, const ParameterSpec& spec, AnyView value,
                  const QuantizedWeight& out);

}  // namespace degu
