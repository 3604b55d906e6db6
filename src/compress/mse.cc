// Round to nearest, with the scale of each group chosen for the least squared error: a few outliers
// are cut off where that makes the steps of all others finer.
#include <atomic>
#include <cmath>

#include "compress/method.h"

namespace degu {
namespace {

// Scales tried: the full range, then down to this share of it in equal steps.
constexpr float kLeastShare = 0.6f;
constexpr int kSteps = 40;

double group_error(Codes codes, const float* w, int64_t count, float scale) {
  double error = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double difference = w[i] - code_value(codes, code_of(codes, w[i], scale)) * scale;
    error += difference * difference;
  }
  return error;
}

float best_scale(Codes codes, const float* w, int64_t count) {
  float most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, std::fabs(w[i]));
  float best = weight_scale(codes, most);
  double least = group_error(codes, w, count, best);
  for (int step = 1; step <= kSteps; ++step) {
    const float share = 1 - (1 - kLeastShare) * static_cast<float>(step) / kSteps;
    const float scale = weight_scale(codes, most * share);
    const double error = group_error(codes, w, count, scale);
    if (error < least) {
      least = error;
      best = scale;
    }
  }
  return best;
}

}  // namespace

void quantize_mse(Context& context, const ParameterSpec& spec, AnyView value,
                  const QuantizedWeight& out) {
  check_quantized("quantize_mse", out);
  const Codes codes = scheme_info(out.scheme).codes;
  const int64_t inner = out.inner();
  const int64_t groups = scale_groups(inner);
  const auto* values = static_cast<const float*>(value.data);
  auto* stored = static_cast<uint8_t*>(out.codes.data);
  auto* scales = static_cast<bf16*>(out.scales.data);
  std::atomic<bool> finite = true;
  context.parallel_for(out.rows(), [&](int64_t row, int) {
    const float* w = values + row * inner;
    uint8_t* to = stored + row * code_bytes(codes, inner);
    for (int64_t i = 0; i < inner; ++i) {
      if (!std::isfinite(w[i])) finite = false;
    }
    if (!finite) return;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = g * kScaleGroup;
      const int64_t end = std::min(inner, begin + kScaleGroup);
      const float scale = best_scale(codes, w + begin, end - begin);
      scales[row * groups + g] = bf16(scale);
      for (int64_t i = begin; i < end; ++i) store_code(codes, to, i, code_of(codes, w[i], scale));
    }
  });
  if (!finite) {
    throw DataError("{} holds an infinity or NaN; it cannot be quantized", spec.name);
  }
}

}  // namespace degu
