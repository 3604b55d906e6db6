#include "scaling/plan/shapes.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace degu::scaling {
namespace {

// Finer steps than these change the loss by less than its noise.
constexpr double kWidthStep = 1.06;
constexpr double kDepthStep = 1.06;

struct Ratios {
  double least, most;  // width per layer
};

// Width per layer of the nearest widths seen.
double usual_ratio(const std::vector<SizeSeen>& seen, double width) {
  double sum = 0, weight = 0;
  for (const SizeSeen& s : seen) {
    const double distance = std::log(width / static_cast<double>(s.width));
    const double w = std::exp(-2 * distance * distance);
    sum += w * std::log(static_cast<double>(s.width) / static_cast<double>(s.layers));
    weight += w;
  }
  if (weight > 1e-6) return std::exp(sum / weight);
  const SizeSeen& last =
      *std::max_element(seen.begin(), seen.end(),
                        [](const SizeSeen& a, const SizeSeen& b) { return a.width < b.width; });
  return static_cast<double>(last.width) / static_cast<double>(last.layers);
}

// False when the experts of this granularity have no even width.
bool set_experts(ModelShape& shape, const ExpertGroup& group) {
  if (group.dense()) {
    shape.moe.experts = 0;
    return true;
  }
  const ModelShape dense = shape.resolved();
  const int width = static_cast<int>(std::lround(dense.ffn_width / group.granularity / 8)) * 8;
  if (width < 8 || std::abs(dense.ffn_width / (group.granularity * width) - 1) > .02) return false;
  shape.ffn_width = dense.ffn_width;
  shape.moe.experts = static_cast<int>(group.experts);
  shape.moe.top_k = static_cast<int>(group.top_k);
  shape.moe.expert_width = width;
  shape.moe.shared_experts = static_cast<int>(group.shared);
  return shape.moe.first_dense_layers < shape.layers;
}

}  // namespace

std::vector<ShapeOption> enumerate_shapes(const ShapeSpace& space, const ExpertGroup& group,
                                          int group_index, ParameterCount definition) {
  ModelShape plain = space.base;
  plain.moe.experts = 0;
  const ModelShape base = plain.resolved();
  std::vector<SizeSeen> seen = space.seen;
  if (seen.empty()) seen.push_back({base.width, base.layers});
  const auto [narrow, wide] =
      std::minmax_element(seen.begin(), seen.end(),
                          [](const SizeSeen& a, const SizeSeen& b) { return a.width < b.width; });
  Ratios ratios{std::numeric_limits<double>::infinity(), 0};
  for (const SizeSeen& s : seen) {
    const double ratio = static_cast<double>(s.width) / static_cast<double>(s.layers);
    ratios.least = std::min(ratios.least, ratio / 1.33);
    ratios.most = std::max(ratios.most, ratio * 1.33);
  }
  const int step = base.head_width;
  const double largest = static_cast<double>(wide->width) * space.grow;
  std::vector<ShapeOption> out;
  int last = 0;
  for (int width = std::max<int>(step, static_cast<int>(narrow->width / 2 / step * step));
       width <= largest; width += step) {
    if (last > 0 && width < last * kWidthStep && width + step < largest) continue;
    last = width;
    int last_layers = 0;
    for (int layers = 1; width >= ratios.least * layers; ++layers) {
      if (width > ratios.most * layers || layers < last_layers * kDepthStep) continue;
      last_layers = layers;
      ShapeOption option;
      ModelShape& s = option.shape;
      s = space.base;
      s.width = width;
      s.layers = layers;
      s.head_width = base.head_width;
      s.heads = width / base.head_width;
      s.kv_heads = std::max(1, s.heads * base.kv_heads / base.heads);
      while (s.heads % s.kv_heads != 0) --s.kv_heads;
      if (space.base.ffn_width > 0)  // keeps its share of the width, in steps of 16
        s.ffn_width = std::max(1, static_cast<int>(std::lround(double(space.base.ffn_width) /
                                                               base.width * width / 16))) *
                      16;
      s.moe = space.base.moe;
      s.moe.experts = 0;
      s.moe.expert_width = 0;
      if (!set_experts(s, group)) continue;
      s = s.resolved();
      const Flops flops = count_flops(s, space.sequence);
      const Memory memory = count_memory(s);
      option.group = group;
      option.group_index = group_index;
      option.n = static_cast<double>(parameter_count(s, definition));
      option.total = static_cast<double>(parameter_count(s, ParameterCount::kTotal));
      option.active = static_cast<double>(parameter_count(s, ParameterCount::kActive));
      option.train_flops = static_cast<double>(flops.training());
      option.inference_flops = static_cast<double>(flops.forward());
      option.train_bytes = memory.training();
      option.serve_bytes =
          memory.serving() + memory.kv_cache_per_token * static_cast<double>(space.sequence);
      option.aspect =
          std::abs(std::log(static_cast<double>(width) / layers / usual_ratio(seen, width)));
      out.push_back(option);
    }
  }
  return out;
}

}  // namespace degu::scaling
