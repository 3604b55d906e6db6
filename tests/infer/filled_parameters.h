// Parameters that serve, with random weights.
#pragma once

#include "kernels/api/quantize.h"
#include "model/parameters.h"
#include "tensor/device.h"
#include "tensor/tensor.h"

namespace degu::testing {

// Random values in `scheme` where a tensor may be quantized, rounded to nearest; packed.
inline void fill_parameters(Context& context, ParameterSet& parameters, Scheme scheme) {
  ParameterSet values(context, parameters.shape(), parameters.activation(), parameters.experts(),
                      false);
  values.initialise(context, 3);
  for (const auto& source : values.all()) {
    Parameter& p = parameters.get(source->spec.name);
    if (p.value) {
      copy(context, source->value, p.value);
    } else if (!scheme_info(scheme).quantized()) {
      parameters.load(context, p, 0, source->value);
    } else {
      const Shape& shape = p.spec.shape;
      const Tensor codes(scheme_info(scheme).weight, code_shape(scheme, shape), context.device());
      const Tensor scales(DType::kBF16, scale_shape(shape), context.device());
      const QuantizedWeight weight{
          .scheme = scheme, .shape = shape, .codes = codes, .scales = scales};
      quantize_weight(context, source->value, weight);
      parameters.load(context, p, 0, weight);
    }
  }
  parameters.pack(context);
}

}  // namespace degu::testing
