// All trained tensors of a model on one rank.
//
// Values live in a few flat fp32 regions, so that gradients, optimizer state and exchanges between
// ranks are a handful of long vectors. Products read packings of the values; `pack` refreshes them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "moe/expert_placement.h"
#include "nn/parameter.h"
#include "shape/model_shape.h"
#include "tensor/tensor.h"

namespace degu {

// Every tensor of the model in a fixed order, with its initialisation and its place in muP
// (Yang et al. 2022, arXiv 2203.03466). `shape` is resolved.
std::vector<ParameterSpec> parameter_specs(const ModelShape& shape);

// Which experts a rank of the expert-parallel group holds: those in slots [begin, begin + count).
// Without a placement expert e lies in slot e.
struct ExpertRange {
  int64_t begin = 0;
  int64_t count = 0;
};

// Parameters whose values, gradients and optimizer state travel together.
enum class RegionKind { kDense, kEmbedding, kHead, kExperts };

struct ParameterRegion {
  RegionKind kind;
  std::vector<Parameter*> members;
  std::vector<int64_t> offsets;  // of each member, in elements; the region's size last
  AnyView values;                // fp32, of the ParameterSet

  int64_t elements() const { return offsets.back(); }
};

// The block in whose backward pass a gradient is written: the parameter's own. final_norm counts to
// the last one, the embedding's look-up and the head to none.
constexpr int kNoBlock = -1;
int block_of(const Parameter& parameter, int layers);
// The region cut into runs of members of one block each, in order.
std::vector<ParameterRegion> split_by_block(const ParameterRegion& region, int layers);

// Which scheme a tensor is served in.
using SchemeOf = std::function<Scheme(const ParameterSpec&)>;

// Whether a tensor of this role may be quantized: all that a large product or a look-up reads. The
// router is multiplied in fp32, and norms and state are vectors.
bool quantizable(ParameterRole role);

class ParameterSet {
 public:
  // `training`: keep the packings that the backward pass reads.
  ParameterSet(const Context& context, const ModelShape& shape, DType activation,
               ExpertRange experts, bool training);
  // For serving: what products read is held as packings alone, each tensor in the scheme that
  // `scheme_of` names (unquantized ones in that of the activation, or fp32); `load` fills them one
  // by one. Values exist for gains, routers and state. ConfigError when a scheme does not multiply
  // the activation. `placement` (of all layers, not this rank's part) says which experts are meant;
  // a Transformer over these parameters sends rows accordingly.
  ParameterSet(const Context& context, const ModelShape& shape, DType activation,
               ExpertRange experts, const SchemeOf& scheme_of, ExpertPlacement placement = {});
  ParameterSet(const ParameterSet&) = delete;
  ParameterSet& operator=(const ParameterSet&) = delete;

  const ModelShape& shape() const { return shape_; }
  DType activation() const { return activation_; }
  DeviceType device() const { return packings_.device(); }
  ExpertRange experts() const { return experts_; }
  const ExpertPlacement& placement() const { return placement_; }
  std::vector<std::unique_ptr<Parameter>>& all() { return parameters_; }
  const std::vector<std::unique_ptr<Parameter>>& all() const { return parameters_; }
  std::vector<ParameterRegion>& regions() { return regions_; }
  Parameter* find(std::string_view name);  // null when the model has none of that name
  Parameter& get(std::string_view name);   // DataError instead of null
  Parameter& head() { return get(shape_.tied_head ? "embedding" : "head"); }

  size_t bytes() const;  // of values, tables and packings on this rank

  // Normal numbers from (seed, tensor name, element of the whole tensor): the same on every layout.
  void initialise(Context& context, uint64_t seed);
  // Values → packings and tables.
  void pack(Context& context);
  // Rows of this rank's part of a tensor → its packing, for serving: experts from `first`
  // on, or outputs of a matrix from a multiple of kPackRows on. `parameter` holds no copy of what
  // it is given. The scheme must be the one it was made for.
  void load(Context& context, Parameter& parameter, int64_t first, AnyView value);
  void load(Context& context, Parameter& parameter, int64_t first, const QuantizedWeight& weight);

 private:
  bool is_packed(const Parameter& parameter) const;
  bool has_value(const Parameter& parameter) const;
  void make_regions(DeviceType device);
  // Takes tables and packings from `packings_`: run once to measure, then to lay them out in one
  // block, so that small tensors do not round up to a huge page each.
  void lay_out_packings(const Context& context, const SchemeOf& scheme_of);
  void make_packings(const Context& context, const SchemeOf& scheme_of);
  // ShapeError unless rows of that shape lie in this rank's part from `first` on and can be packed.
  void check_rows(const Parameter& parameter, int64_t first, const Shape& rows) const;
  void* packed_rows(const Context& context, const Parameter& parameter, int64_t first) const;
  void reserve_packing(const Context& context, PackedWeight& packed, Scheme scheme,
                       const Shape& local, Orientation orientation);

  ModelShape shape_;
  DType activation_;
  ExpertRange experts_;
  ExpertPlacement placement_;
  bool training_ = false;
  bool serving_ = false;  // no values where packings serve
  std::vector<std::unique_ptr<Parameter>> parameters_;
  std::vector<Tensor> values_;  // by region
  std::vector<ParameterRegion> regions_;
  Arena packings_;  // tables and packings
};

}  // namespace degu
