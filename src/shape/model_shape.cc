#include "shape/model_shape.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace degu {
namespace {

// Far above any model that fits a machine, and low enough that no product of them leaves int64.
constexpr int kMaxVocab = 1 << 24;
constexpr int kMaxWidth = 1 << 20;
constexpr int kMaxLayers = 1 << 14;
constexpr int kMaxExperts = 1 << 16;
constexpr double kMaxParameters = 0x1p60;

void in_range(const char* name, int value, int least, int most) {
  if (value < least || value > most) {
    throw ConfigError("{} is {}, must be from {} to {}", name, value, least, most);
  }
}

void positive(const char* name, double value) {
  if (!(value > 0) || !std::isfinite(value))
    throw ConfigError("{} is {}, must be above 0", name, value);
}

void check_moe(const ModelShape& s) {
  const MoeShape& moe = s.moe;
  in_range("moe.experts", moe.experts, 1, kMaxExperts);
  if (moe.top_k < 1 || moe.top_k > moe.experts) {
    throw ConfigError("moe.top_k is {}, must be from 1 to moe.experts, which is {}", moe.top_k,
                      moe.experts);
  }
  if (moe.expert_width == 0 && s.ffn_width % moe.top_k != 0) {
    throw ConfigError(
        "moe.expert_width is 0 and ffn_width {} is no multiple of moe.top_k {}; give the width of "
        "an expert",
        s.ffn_width, moe.top_k);
  }
  in_range("moe.expert_width", moe.expert_width, 0, kMaxWidth);
  in_range("moe.shared_experts", moe.shared_experts, 0, kMaxExperts);
  if (moe.first_dense_layers < 0 || moe.first_dense_layers >= s.layers) {
    throw ConfigError(
        "moe.first_dense_layers is {}, must be from 0 to {} so that a block of {} has experts",
        moe.first_dense_layers, s.layers - 1, s.layers);
  }
  positive("moe.gate_scale", moe.gate_scale);
  if (!(moe.capacity_factor >= 0) || !std::isfinite(moe.capacity_factor)) {
    throw ConfigError("moe.capacity_factor is {}, must be 0 (dropless) or above",
                      moe.capacity_factor);
  }
}

}  // namespace

ModelShape ModelShape::resolved() const {
  check();
  ModelShape s = *this;
  if (s.kv_heads == 0) s.kv_heads = s.heads;
  if (s.head_width == 0) s.head_width = s.width / s.heads;
  if (s.ffn_width == 0) s.ffn_width = (8 * s.width + 47) / 48 * 16;  // ceil(8/3 width / 16) * 16
  // About half of 1 / sqrt(fan-in). The customary .02 is that of widths near 600; at a base width
  // of 64 it costs half a nat after 180 steps.
  if (s.init_std == 0) {
    s.init_std = s.mup_base_width > 0 ? .48 / std::sqrt(double(s.mup_base_width)) : .02;
  }
  if (s.moe.experts > 0 && s.moe.expert_width == 0) {
    s.moe.expert_width = s.ffn_width / s.moe.top_k;
  }
  return s;
}

void ModelShape::check() const {
  in_range("vocab", vocab, 2, kMaxVocab);
  in_range("width", width, 1, kMaxWidth);
  in_range("layers", layers, 1, kMaxLayers);
  in_range("heads", heads, 1, kMaxWidth);
  in_range("kv_heads", kv_heads, 0, heads);
  if (kv_heads > 0 && heads % kv_heads != 0) {
    throw ConfigError("kv_heads is {}, must divide heads, which is {}", kv_heads, heads);
  }
  if (head_width == 0 && width % heads != 0) {
    throw ConfigError("heads is {}, must divide width, which is {}; or give head_width", heads,
                      width);
  }
  const int head = head_width == 0 ? width / heads : head_width;
  if (head < 2 || head % 2 != 0 || head > kMaxWidth) {
    throw ConfigError(
        "head_width is {}{}, must be even and at least 2: rotary positions turn pairs", head,
        head_width == 0 ? " (width / heads)" : "");
  }
  in_range("ffn_width", ffn_width, 0, kMaxWidth * 4);
  positive("rope_theta", rope_theta);
  positive("norm_eps", norm_eps);
  if (!(init_std >= 0) || !std::isfinite(init_std)) {
    throw ConfigError("init_std is {}, must be above 0, or 0 for the default", init_std);
  }
  in_range("mup_base_width", mup_base_width, 0, kMaxWidth);
  if (moe.experts != 0) {
    ModelShape s = *this;
    if (s.ffn_width == 0) s.ffn_width = (8 * width + 47) / 48 * 16;
    check_moe(s);
  }
  const double wide = std::max({ffn_width, 3 * width, moe.expert_width});
  const double block =
      4.0 * width * heads * head + 3.0 * width * wide * (1.0 + moe.experts + moe.shared_experts);
  if (block * layers > kMaxParameters) {
    throw ConfigError(
        "width is {}: with these layers and experts the model has over {:.1e} parameters", width,
        kMaxParameters);
  }
}

}  // namespace degu
