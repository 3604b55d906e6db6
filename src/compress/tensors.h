// Reading values and writing codes, tensor by tensor.
#pragma once

#include <functional>

#include "compress/method.h"
#include "io/checkpoint.h"
#include "model/parameters.h"
#include "tensor/tensor.h"

namespace degu {

// The fp32 value of a tensor; of experts the range `experts` (all of them when its count is 0).
// DataError when the checkpoint holds another type or shape.
Tensor read_value(CheckpointReader& reader, const ParameterSpec& spec, ExpertRange experts);

// Adds a tensor, or its `experts`, held in `scheme`. Codes are chosen by `choose`, which gets one
// task per matrix of `value`, in order.
void add_tensor(Context& context, CheckpointWriter& writer, const ParameterSpec& spec,
                ExpertRange experts, AnyView value, Scheme scheme,
                const std::function<void(std::span<const MatrixTask>)>& choose);

// Several tensors whose matrices share inputs, matrix by matrix: choose(n, tasks) gets the n-th
// matrix of each quantized one.
struct TensorToAdd {
  const ParameterSpec* spec;
  AnyView value;
  Scheme scheme;
};
void add_tensors(Context& context, CheckpointWriter& writer, std::span<const TensorToAdd> tensors,
                 ExpertRange experts,
                 const std::function<void(int64_t n, std::span<const MatrixTask>)>& choose);

}  // namespace degu
