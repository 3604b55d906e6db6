#include "cli/layer_bench.h"

#include "model/parameters.h"
#include "moe/layer.h"

namespace degu {
namespace {

// One block whose other parts are never run, so they are as small as they may be.
ModelShape one_block(const LayerSize& size) {
  const ModelShape shape{
      .vocab = 16,
      .width = size.width,
      .layers = 1,
      .heads = 1,
      .head_width = 2,
      .ffn_width = 16,
      .moe = {.experts = size.experts, .top_k = size.top_k, .expert_width = size.expert_width}};
  return shape.resolved();
}

MoeParameters moe_parameters(ParameterSet& all) {
  const std::string prefix = "blocks.0.moe.";
  return {
      .router = {.weight = all.find(prefix + "router"), .bias = all.find(prefix + "router_bias")},
      .gate = &all.get(prefix + "gate"),
      .up = &all.get(prefix + "up"),
      .down = &all.get(prefix + "down"),
      .shared = {}};
}

class LayerData {
 public:
  LayerData(Context& context, const LayerSize& size)
      : tokens_(size.tokens),
        parameters_(context, one_block(size), DType::kBF16, {0, size.experts}, /*training=*/true),
        layer_(parameters_.shape(), moe_parameters(parameters_), ExpertSpread{}),
        token_T_(static_cast<size_t>(size.tokens)),
        offsets_{0, size.tokens} {
    const DeviceType device = context.device();
    parameters_.initialise(context, 1);
    parameters_.pack(context);
    for (const auto& p : parameters_.all()) {
      if (p->spec.name.find(".moe.") == std::string::npos) continue;
      p->gradient = gradients_.emplace_back(DType::kF32, p->value.shape, device);
    }
    for (Tensor* each : {&h_, &y_, &dy_, &dh_}) {
      *each = Tensor(DType::kBF16, {size.tokens, size.width}, device);
    }
    fill_random(context, h_, 1);
    fill_random(context, dy_, 2);
    Arena count = Arena::measuring(device);
    layer_.take(count, DType::kBF16, tokens_);
    arena_ = Arena(count.used(), device);
    saved_ = layer_.take(arena_, DType::kBF16, tokens_);
  }

  void forward(Context& context) {
    layer_.forward(context, h_, AnyView{}, batch(), groups(), {}, saved_, y_);
  }
  void backward(Context& context) {
    for (const auto& p : parameters_.all()) p->write = Write::kOverwrite;
    layer_.backward(context, dy_, h_, groups(), {}, saved_, dh_);
  }

 private:
  Batch batch() const { return {.tokens_T = token_T_}; }
  // All tokens are one unit, whose sums have a single slot.
  TokenGroups groups() const {
    return {.units = {.offsets = offsets_, .groups = 1, .slots = 1, .units = 1},
            .balance_offsets = offsets_,
            .capacity_offsets = offsets_};
  }

  int64_t tokens_;
  ParameterSet parameters_;
  MoeLayer layer_;
  std::vector<int32_t> token_T_;
  std::vector<int64_t> offsets_;
  std::vector<Tensor> gradients_;
  Tensor h_, y_, dy_, dh_;
  Arena arena_;
  MoeActivations saved_;
};

}  // namespace

std::vector<KernelCase> layer_cases(Context& context, const LayerSize& size) {
  if (size.tokens < 1) throw ConfigError("a layer of {} tokens; give 1 or more", size.tokens);
  const auto data = std::make_shared<LayerData>(context, size);
  const double products = 6.0 * size.top_k * size.expert_width + 2.0 * size.experts;
  KernelCase forward;
  forward.name = "forward";
  forward.shape = fmt::format("T={} D={} E={} K={} F={} bf16", size.tokens, size.width,
                              size.experts, size.top_k, size.expert_width);
  forward.bound = Bound::kBf16;
  forward.work = static_cast<double>(size.tokens) * size.width * products;
  forward.data = data;
  forward.run = [d = data.get()](Context& c) { d->forward(c); };
  KernelCase both = forward;
  both.name = "forward + backward";
  both.work = 3 * forward.work;
  both.run = [d = data.get()](Context& c) {
    d->forward(c);
    d->backward(c);
  };
  return {std::move(forward), std::move(both)};
}

}  // namespace degu
