#include "model/parameters.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/random.h"
#include "kernels/api/elementwise.h"
#include "tensor/device.h"

namespace degu {
namespace {

// Builds the list of specs; knows muP's table.
class SpecList {
 public:
  explicit SpecList(const ModelShape& shape) : s_(shape.resolved()) {
    if (s_.mup_base_width > 0) {
      // The hidden width that a dense block of the base width would have.
      ModelShape base;
      base.width = s_.mup_base_width;
      base.heads = 1;
      base_ffn_ = base.resolved().ffn_width;
    }
  }

  void embedding(const std::string& name, ParameterRole role) {
    specs_.push_back({.name = name,
                      .shape = {s_.vocab, s_.width},
                      .role = role,
                      .init_std = s_.init_std,
                      .decay = role == ParameterRole::kHead});
  }
  void gain(const std::string& name, int64_t width) {
    specs_.push_back({.name = name, .shape = {width}, .role = ParameterRole::kGain});
  }
  void state(const std::string& name, int64_t width) {
    specs_.push_back({.name = name, .shape = {width}, .role = ParameterRole::kState});
  }
  void router(const std::string& name) {
    specs_.push_back({.name = name,
                      .shape = {s_.moe.experts, s_.width},
                      .role = ParameterRole::kRouter,
                      .init_std = s_.init_std,
                      .decay = true});
  }
  // `residual`: the product is added to the residual stream, whose variance would grow with depth.
  void matrix(const std::string& name, int64_t experts, int64_t outputs, int64_t inner,
              int64_t base_inner, bool residual) {
    const double ratio =
        s_.mup_base_width > 0 ? static_cast<double>(base_inner) / static_cast<double>(inner) : 1.0;
    const double depth = residual ? 1.0 / std::sqrt(2.0 * s_.layers) : 1.0;
    specs_.push_back({.name = name,
                      .shape = experts > 0 ? Shape{experts, outputs, inner} : Shape{outputs, inner},
                      .role = experts > 0 ? ParameterRole::kExperts : ParameterRole::kMatrix,
                      .init_std = s_.init_std * std::sqrt(ratio) * depth,
                      .rate_multiplier = ratio,
                      .decay = true});
  }

  void block(int layer) {
    const size_t first = specs_.size();
    add_block(layer);
    for (size_t i = first; i < specs_.size(); ++i) specs_[i].layer = layer;
  }

  std::vector<ParameterSpec> take() { return std::move(specs_); }

 private:
  void add_block(int layer) {
    const std::string name = "blocks." + std::to_string(layer) + ".";
    const int64_t d = s_.width;
    const int64_t queries = int64_t{s_.heads} * s_.head_width;
    const int64_t keys = int64_t{s_.kv_heads} * s_.head_width;
    const int64_t base = s_.mup_base_width;
    gain(name + "attention_norm", d);
    matrix(name + "attention.wq", 0, queries, d, base, false);
    matrix(name + "attention.wk", 0, keys, d, base, false);
    matrix(name + "attention.wv", 0, keys, d, base, false);
    matrix(name + "attention.wo", 0, d, queries, base, true);
    if (s_.qk_norm) {
      gain(name + "attention.q_norm", s_.head_width);
      gain(name + "attention.k_norm", s_.head_width);
    }
    gain(name + "ffn_norm", d);
    if (!s_.is_moe_layer(layer)) {
      swiglu(name + "ffn.", "", 0, s_.ffn_width);
      return;
    }
    if (s_.moe.router != RouterKind::kHash) {
      router(name + "moe.router");
      state(name + "moe.router_bias", s_.moe.experts);
    }
    swiglu(name + "moe.", "", s_.moe.experts, s_.moe.expert_width);
    if (s_.moe.shared_experts > 0) {
      swiglu(name + "moe.", "shared_", 0, int64_t{s_.moe.shared_experts} * s_.moe.expert_width);
    }
  }

  void swiglu(const std::string& folder, const std::string& prefix, int64_t experts,
              int64_t width) {
    matrix(folder + prefix + "gate", experts, width, s_.width, s_.mup_base_width, false);
    matrix(folder + prefix + "up", experts, width, s_.width, s_.mup_base_width, false);
    matrix(folder + prefix + "down", experts, s_.width, width, base_ffn_, true);
  }

  ModelShape s_;
  int64_t base_ffn_ = 0;
  std::vector<ParameterSpec> specs_;
};

RegionKind region_of(const ParameterSpec& spec) {
  switch (spec.role) {
    case ParameterRole::kEmbedding:
      return RegionKind::kEmbedding;
    case ParameterRole::kHead:
      return RegionKind::kHead;
    case ParameterRole::kExperts:
      return RegionKind::kExperts;
    default:
      return RegionKind::kDense;
  }
}

Shape local_shape(const ParameterSpec& spec, ExpertRange experts) {
  if (spec.role != ParameterRole::kExperts) return spec.shape;
  return spec.shape.with_rows(experts.count);
}

// What a checkpoint gave, where the context's kernels read it: on an accelerator a copy in scratch.
AnyView brought(Context& context, AnyView view) {
  if (view.device == context.device()) return view;
  const AnyView here = context.scratch().take(view.dtype, view.shape);
  copy(context, view, here);
  return here;
}

}  // namespace

std::vector<ParameterSpec> parameter_specs(const ModelShape& shape) {
  SpecList list(shape);
  list.embedding("embedding", ParameterRole::kEmbedding);
  for (int layer = 0; layer < shape.layers; ++layer) list.block(layer);
  list.gain("final_norm", shape.width);
  if (!shape.tied_head) list.embedding("head", ParameterRole::kHead);
  return list.take();
}

int block_of(const Parameter& parameter, int layers) {
  switch (region_of(parameter.spec)) {
    case RegionKind::kEmbedding:
    case RegionKind::kHead:
      return kNoBlock;
    default:
      return parameter.spec.layer < 0 ? layers - 1 : parameter.spec.layer;
  }
}

std::vector<ParameterRegion> split_by_block(const ParameterRegion& region, int layers) {
  std::vector<ParameterRegion> parts;
  int open = 0;
  for (size_t i = 0; i < region.members.size(); ++i) {
    const int block = block_of(*region.members[i], layers);
    if (i == 0 || block != open) {
      parts.push_back({.kind = region.kind, .members = {}, .offsets = {0}, .values = {}});
      open = block;
    }
    ParameterRegion& part = parts.back();
    part.members.push_back(region.members[i]);
    part.offsets.push_back(part.offsets.back() + region.offsets[i + 1] - region.offsets[i]);
  }
  int64_t begin = 0;
  for (ParameterRegion& part : parts) {
    part.values = region.values.rows(begin, part.elements());
    begin += part.elements();
  }
  return parts;
}

bool quantizable(ParameterRole role) {
  switch (role) {
    case ParameterRole::kEmbedding:
    case ParameterRole::kMatrix:
    case ParameterRole::kExperts:
    case ParameterRole::kHead:
      return true;
    default:
      return false;
  }
}

ParameterSet::ParameterSet(const Context& context, const ModelShape& shape, DType activation,
                           ExpertRange experts, bool training)
    : shape_(shape), activation_(activation), experts_(experts), training_(training) {
  make_regions(context.device());
  lay_out_packings(context, [&](const ParameterSpec& spec) {
    return spec.role == ParameterRole::kRouter ? Scheme::kFp32 : training_scheme(activation_);
  });
}

ParameterSet::ParameterSet(const Context& context, const ModelShape& shape, DType activation,
                           ExpertRange experts, const SchemeOf& scheme_of,
                           ExpertPlacement placement)
    : shape_(shape),
      activation_(activation),
      experts_(experts),
      placement_(std::move(placement)),
      serving_(true) {
  check_placement(placement_, shape_);
  make_regions(context.device());
  lay_out_packings(context, [&](const ParameterSpec& spec) {
    const Scheme scheme = quantizable(spec.role) ? scheme_of(spec) : Scheme::kFp32;
    const SchemeInfo& info = scheme_info(scheme);
    if (quantizable(spec.role) && !info.integer_activations() && info.activation != activation_) {
      throw ConfigError("{}: scheme {} multiplies {}, the activations are {}", spec.name, info.name,
                        dtype_name(info.activation), dtype_name(activation_));
    }
    return scheme;
  });
}

void ParameterSet::lay_out_packings(const Context& context, const SchemeOf& scheme_of) {
  packings_ = Arena::measuring(context.device());
  make_packings(context, scheme_of);
  packings_ = Arena(packings_.used(), context.device());
  make_packings(context, scheme_of);
}

void ParameterSet::make_packings(const Context& context, const SchemeOf& scheme_of) {
  for (const auto& p : parameters_) {
    const Scheme scheme = scheme_of(p->spec);
    if (p->spec.role == ParameterRole::kEmbedding && !serving_) {
      p->table = packings_.take(activation_, p->spec.shape);
    }
    if (!is_packed(*p)) continue;
    const Shape local = local_shape(p->spec, experts_);
    reserve_packing(context, p->forward, scheme, local, Orientation::kForward);
    if (training_) reserve_packing(context, p->backward, scheme, local, Orientation::kBackward);
  }
}

void ParameterSet::make_regions(DeviceType device) {
  for (const ParameterSpec& spec : parameter_specs(shape_)) {
    parameters_.push_back(std::make_unique<Parameter>());
    parameters_.back()->spec = spec;
  }
  for (RegionKind kind :
       {RegionKind::kDense, RegionKind::kEmbedding, RegionKind::kHead, RegionKind::kExperts}) {
    ParameterRegion region{.kind = kind, .members = {}, .offsets = {0}, .values = {}};
    for (const auto& parameter : parameters_) {
      if (region_of(parameter->spec) != kind || !has_value(*parameter)) continue;
      region.members.push_back(parameter.get());
      region.offsets.push_back(region.offsets.back() +
                               local_shape(parameter->spec, experts_).elements());
    }
    if (region.members.empty()) continue;
    values_.emplace_back(DType::kF32, Shape{region.elements()}, device);
    region.values = values_.back();
    for (size_t i = 0; i < region.members.size(); ++i) {
      Parameter& p = *region.members[i];
      const Shape local = local_shape(p.spec, experts_);
      p.value = region.values.rows(region.offsets[i], local.elements()).reshaped(local);
    }
    regions_.push_back(std::move(region));
  }
}

void ParameterSet::reserve_packing(const Context& context, PackedWeight& packed, Scheme scheme,
                                   const Shape& local, Orientation orientation) {
  const int64_t count = local.rank() == 3 ? local[0] : 1;
  int64_t outputs = local[local.rank() - 2];
  int64_t inner = local[local.rank() - 1];
  if (orientation == Orientation::kBackward) std::swap(outputs, inner);
  const size_t bytes = packed_bytes(context, scheme, count, outputs, inner);
  packed = {.scheme = scheme,
            .orientation = orientation,
            .device = context.device(),
            .isa = context.isa(),
            .experts = count,
            .outputs = outputs,
            .inner = inner,
            .bytes = packings_.take_bytes(bytes)};
}

bool ParameterSet::has_value(const Parameter& parameter) const {
  return !serving_ || !quantizable(parameter.spec.role);
}

bool ParameterSet::is_packed(const Parameter& parameter) const {
  switch (parameter.spec.role) {
    case ParameterRole::kEmbedding:
      return serving_ || shape_.tied_head;
    case ParameterRole::kGain:
    case ParameterRole::kState:
      return false;
    default:
      return true;
  }
}

Parameter* ParameterSet::find(std::string_view name) {
  for (const auto& parameter : parameters_) {
    if (parameter->spec.name == name) return parameter.get();
  }
  return nullptr;
}

Parameter& ParameterSet::get(std::string_view name) {
  Parameter* parameter = find(name);
  if (parameter == nullptr) throw DataError("the model has no tensor named {}", name);
  return *parameter;
}

size_t ParameterSet::bytes() const {
  size_t sum = 0;
  for (const ParameterRegion& region : regions_) sum += region.values.bytes();
  sum += packings_.used();
  return sum;
}

void ParameterSet::initialise(Context& context, uint64_t seed) {
  constexpr int64_t kChunk = 4096;
  for (const auto& p : parameters_) {
    const OnHost host = OnHost::unfilled(context, p->value);
    const View<float> value = host.as<float>();
    const ParameterSpec& spec = p->spec;
    const int64_t first =
        spec.role == ParameterRole::kExperts ? experts_.begin * spec.shape[1] * spec.shape[2] : 0;
    const float constant = spec.role == ParameterRole::kGain ? 1.0f : 0.0f;
    const RandomStream stream(seed, spec.name);
    context.parallel_for((value.elements() + kChunk - 1) / kChunk, [&](int64_t chunk, int) {
      const int64_t end = std::min(value.elements(), (chunk + 1) * kChunk);
      for (int64_t i = chunk * kChunk; i < end; ++i) {
        value[i] = spec.init_std > 0
                       ? static_cast<float>(spec.init_std *
                                            stream.normal(static_cast<uint64_t>(first + i)))
                       : constant;
      }
    });
    host.put_back();
  }
}

void ParameterSet::pack(Context& context) {
  for (const auto& p : parameters_) {
    if (!p->value) continue;
    if (p->table) cast(context, p->value, p->table);
    if (!is_packed(*p)) continue;
    pack_weight(context, p->value, p->forward.scheme, Orientation::kForward, p->forward.bytes);
    if (training_) {
      pack_weight(context, p->value, p->backward.scheme, Orientation::kBackward, p->backward.bytes);
    }
  }
}

void ParameterSet::check_rows(const Parameter& p, int64_t first, const Shape& rows) const {
  const Shape local = local_shape(p.spec, experts_);
  const bool cut = first > 0 && local.rank() == 2 && first % kPackRows != 0;
  if (serving_ && quantizable(p.spec.role) && !cut && first >= 0 && rows.rank() == local.rank() &&
      first + rows[0] <= local[0] && local.with_rows(rows[0]) == rows) {
    return;
  }
  throw ShapeError("{}: {} from row {} on are no rows of {}", p.spec.name, rows.str(), first,
                   local.str());
}

void* ParameterSet::packed_rows(const Context& context, const Parameter& p, int64_t first) const {
  const PackedWeight& w = p.forward;
  const bool experts = p.spec.shape.rank() == 3;
  return static_cast<std::byte*>(w.bytes) +
         packed_bytes(context, w.scheme, experts ? first : 1, experts ? w.outputs : first, w.inner);
}

void ParameterSet::load(Context& context, Parameter& p, int64_t first, AnyView value) {
  check_rows(p, first, value.shape);
  const SchemeInfo& info = scheme_info(p.forward.scheme);
  if (info.quantized()) {
    throw ShapeError("{}: plain values do not load into a tensor held as {}", p.spec.name,
                     info.name);
  }
  const ScratchScope scope(context.scratch());
  pack_weight(context, brought(context, value), p.forward.scheme, Orientation::kForward,
              packed_rows(context, p, first));
}

void ParameterSet::load(Context& context, Parameter& p, int64_t first,
                        const QuantizedWeight& weight) {
  check_rows(p, first, weight.shape);
  if (p.forward.scheme != weight.scheme) {
    throw ShapeError("{}: {} codes do not load into a tensor held as {}", p.spec.name,
                     scheme_info(weight.scheme).name, scheme_info(p.forward.scheme).name);
  }
  const ScratchScope scope(context.scratch());
  QuantizedWeight here = weight;
  here.codes = brought(context, weight.codes);
  here.scales = brought(context, weight.scales);
  pack_weight(context, here, packed_rows(context, p, first));
}

}  // namespace degu
