#include "compress/tensors.h"

#include "kernels/api/elementwise.h"
#include "model/load.h"

namespace degu {
namespace {

std::string stored_name(const ParameterSpec& spec) {
  return std::string(kModelPrefix) + spec.name;
}

bool sliced(const ParameterSpec& spec, ExpertRange experts) {
  return spec.role == ParameterRole::kExperts && experts.count > 0;
}

// Rows of `whole` beyond the first dimension that a rank adds.
void add_part(CheckpointWriter& writer, const std::string& name, Shape whole, bool slice,
              ExpertRange experts, AnyView part) {
  if (slice) {
    writer.add(name, whole, {experts.begin, 0, 0}, part);
  } else {
    writer.add(name, part);
  }
}

// Matrix `n` of a tensor of codes.
QuantizedWeight matrix_of(const QuantizedWeight& all, int64_t n) {
  if (all.shape.rank() == 2) return all;
  const Shape shape{all.shape[1], all.shape[2]};
  return {.scheme = all.scheme,
          .shape = shape,
          .codes = all.codes.rows(n, 1).reshaped(code_shape(all.scheme, shape)),
          .scales = all.scales.rows(n, 1).reshaped(scale_shape(shape))};
}

struct HeldCodes {
  Tensor codes, scales;
  QuantizedWeight weight;
};

}  // namespace

Tensor read_value(CheckpointReader& reader, const ParameterSpec& spec, ExpertRange experts) {
  const CheckpointReader::TensorInfo info = reader.info(stored_name(spec));
  if (info.shape != spec.shape || info.dtype != DType::kF32) {
    throw DataError("{}: {} is {} {}, the configuration makes it fp32 {}", reader.folder(),
                    info.name, dtype_name(info.dtype), info.shape.str(), spec.shape.str());
  }
  if (!sliced(spec, experts)) {
    Tensor value(DType::kF32, spec.shape);
    reader.read(info.name, value);
    return value;
  }
  Tensor value(DType::kF32, {experts.count, spec.shape[1], spec.shape[2]});
  reader.read(info.name, {experts.begin, 0, 0}, value);
  return value;
}

void add_tensor(Context& context, CheckpointWriter& writer, const ParameterSpec& spec,
                ExpertRange experts, AnyView value, Scheme scheme,
                const std::function<void(std::span<const MatrixTask>)>& choose) {
  const TensorToAdd tensor{.spec = &spec, .value = value, .scheme = scheme};
  add_tensors(context, writer, {&tensor, 1}, experts,
              [&](int64_t, std::span<const MatrixTask> tasks) { choose(tasks); });
}

void add_tensors(Context& context, CheckpointWriter& writer, std::span<const TensorToAdd> tensors,
                 ExpertRange experts,
                 const std::function<void(int64_t n, std::span<const MatrixTask>)>& choose) {
  std::vector<HeldCodes> held(tensors.size());
  int64_t matrices = 1;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorToAdd& tensor = tensors[i];
    const SchemeInfo& info = scheme_info(tensor.scheme);
    if (!info.quantized()) continue;
    const Shape shape = tensor.value.shape;
    held[i].codes = Tensor(info.weight, code_shape(tensor.scheme, shape));
    held[i].scales = Tensor(DType::kBF16, scale_shape(shape));
    held[i].weight = {
        .scheme = tensor.scheme, .shape = shape, .codes = held[i].codes, .scales = held[i].scales};
    if (shape.rank() == 3) matrices = shape[0];
  }
  for (int64_t n = 0; n < matrices; ++n) {
    std::vector<MatrixTask> tasks;
    for (size_t i = 0; i < tensors.size(); ++i) {
      const TensorToAdd& tensor = tensors[i];
      if (!held[i].codes) continue;
      const Shape shape = tensor.value.shape;
      std::string name = tensor.spec->name;
      AnyView value = tensor.value;
      if (shape.rank() == 3) {
        name += fmt::format(" of expert {}", experts.begin + n);
        value = value.rows(n, 1).reshaped({shape[1], shape[2]});
      }
      tasks.push_back(
          {.name = std::move(name), .value_FD = value, .out = matrix_of(held[i].weight, n)});
    }
    if (!tasks.empty()) choose(n, tasks);
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    const ParameterSpec& spec = *tensors[i].spec;
    const std::string name = stored_name(spec);
    const bool slice = sliced(spec, experts);
    if (held[i].codes) {
      // Who loads it needs the scales first (model/load.cc).
      add_part(writer, name + std::string(kScaleSuffix), scale_shape(spec.shape), slice, experts,
               held[i].scales);
      add_part(writer, name, code_shape(tensors[i].scheme, spec.shape), slice, experts,
               held[i].codes);
      continue;
    }
    const Tensor stored(scheme_info(tensors[i].scheme).weight, tensors[i].value.shape);
    cast(context, tensors[i].value, stored);
    add_part(writer, name, spec.shape, slice, experts, stored);
  }
}

}  // namespace degu
