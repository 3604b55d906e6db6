// The trainer's state in checkpoints: values as whole tensors, moments as ranges of the same
// tensors.
#include <algorithm>
#include <iterator>

#include "base/log.h"
#include "kernels/api/elementwise.h"
#include "model/load.h"
#include "tensor/device.h"
#include "train/trainer.h"

namespace degu {
namespace {

constexpr const char* kMoments[] = {"adam_m/", "adam_v/"};

std::string model_name(const Parameter& p) {
  return std::string(kModelPrefix) + p.spec.name;
}

void read_range(Context& context, CheckpointReader& reader, const std::string& name, int64_t begin,
                AnyView out) {
  const OnHost values = OnHost::unfilled(context, out);
  reader.read_range(name, begin, values);
  values.put_back();
}

}  // namespace

void load_values(Context& context, CheckpointReader& reader, ParameterSet& parameters) {
  if (const auto quantization = quantization_of(reader)) {
    throw DataError(
        "{}: is quantized ({}) and cannot be trained; use the checkpoint it was made of",
        reader.folder(), scheme_info(quantization->scheme).name);
  }
  for (const auto& p : parameters.all()) {
    const std::string name = model_name(*p);
    const CheckpointReader::TensorInfo info = reader.info(name);
    if (info.shape != p->spec.shape) {
      throw DataError(
          "{}: {} is {} but the configuration makes it {}; use the configuration that the "
          "checkpoint was trained with",
          reader.folder(), name, info.shape.str(), p->spec.shape.str());
    }
    const OnHost value = OnHost::unfilled(context, p->value);
    if (p->spec.role == ParameterRole::kExperts) {
      reader.read(name, {parameters.experts().begin, 0, 0}, value);
    } else {
      reader.read(name, value);
    }
    value.put_back();
  }
}

template <class Visit>
void Trainer::each_moment_run(const Visit& visit) {
  for (const TrainedRegion& state : regions_.all()) {
    const FlatRange mine = state.adamw->range();
    for (size_t i = 0; i < state.region->members.size(); ++i) {
      const Parameter& p = *state.region->members[i];
      if (p.spec.role == ParameterRole::kState) continue;
      const int64_t first = std::max(state.region->offsets[i], mine.begin);
      const int64_t last = std::min(state.region->offsets[i + 1], mine.end);
      if (first >= last) continue;
      const int64_t experts_before =
          p.spec.role == ParameterRole::kExperts
              ? parameters_.experts().begin * p.spec.shape[1] * p.spec.shape[2]
              : 0;
      const int64_t begin = experts_before + first - state.region->offsets[i];
      const AnyView moments[] = {state.adamw->m(), state.adamw->v()};
      for (size_t k = 0; k < std::size(moments); ++k) {
        visit(std::string(kOptimizerPrefix) + kMoments[k] + p.spec.name, p.spec.shape, begin,
              moments[k].rows(first - mine.begin, last - first));
      }
    }
  }
}

std::vector<CheckpointPart> Trainer::checkpoint_parts() {
  std::vector<CheckpointPart> parts;
  int turn[] = {0, 0};  // of all ranks, and of those that hold the same experts
  for (const TrainedRegion& state : regions_.all()) {
    const bool experts = state.region->kind == RegionKind::kExperts;
    for (const Parameter* member : state.region->members) {
      const Parameter& p = *member;
      // Whole values are written by one of the ranks that hold them, in turn.
      if (turn[experts]++ % state.group->size() != state.group->rank()) continue;
      const Region region =
          experts ? Region::box(p.spec.shape, {parameters_.experts().begin, 0, 0}, p.value.shape)
                  : Region::all(p.spec.shape);
      parts.push_back({model_name(p), region, p.value});
    }
  }
  each_moment_run([&](const std::string& name, Shape whole, int64_t begin, AnyView part) {
    parts.push_back({name, Region::range(whole, begin, part.elements()), part});
  });
  return parts;
}

void Trainer::load(CheckpointReader& reader, const Counters& counters) {
  load_values(context_, reader, parameters_);
  bool said = world_.rank() != 0;
  each_moment_run([&](const std::string& name, Shape, int64_t begin, AnyView part) {
    const DType stored = reader.info(name).dtype;
    if (stored == part.dtype) return read_range(context_, reader, name, begin, part);
    if (!said) {
      log_info("{}: moments are {}, of this run {}: {}", reader.folder(), dtype_name(stored),
               dtype_name(part.dtype),
               stored == DType::kF32 ? "each becomes the nearest" : "converted exactly");
    }
    said = true;
    const Tensor other(stored, part.shape, part.device);
    read_range(context_, reader, name, begin, other);
    cast(context_, other, part);
  });
  next_step_ = finished_steps_ = counters.next_step;
  bad_steps_ = counters.bad_steps;
  parameters_.pack(context_);
}

void Trainer::load_weights(CheckpointReader& reader) {
  load_values(context_, reader, parameters_);
  parameters_.pack(context_);
}

}  // namespace degu
