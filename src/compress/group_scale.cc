#include "compress/group_scale.h"

#include <array>

namespace degu {
namespace {

// Scales tried: the full range, then down to this share of it in equal steps.
constexpr float kLeastShare = 0.6f;
constexpr int kSteps = 40;

}  // namespace

double group_error(Codes codes, std::span<const float> w, float scale, const GroupMetric& metric) {
  std::array<float, kScaleGroup> difference;
  const auto count = static_cast<int64_t>(w.size());
  for (size_t i = 0; i < w.size(); ++i) {
    difference[i] = w[i] - code_value(codes, code_of(codes, w[i], scale)) * scale;
  }
  double error = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double d = difference[static_cast<size_t>(i)];
    if (metric.block == nullptr) {
      error += d * d;
      continue;
    }
    const float* row = metric.block + i * metric.stride;
    double sum = 0.5 * d * row[i];  // the matrix is symmetric: half of it is enough
    for (int64_t j = 0; j < i; ++j) {
      sum += static_cast<double>(difference[static_cast<size_t>(j)] * row[j]);
    }
    error += 2 * d * sum;
  }
  return error;
}

float covering_scale(Codes codes, std::span<const float> w) {
  float most = 0;
  for (float each : w) most = std::max(most, std::fabs(each));
  return weight_scale(codes, most);
}

float least_error_scale(Codes codes, std::span<const float> w, const GroupMetric& metric) {
  float most = 0;
  for (float each : w) most = std::max(most, std::fabs(each));
  float best = weight_scale(codes, most);
  double least = group_error(codes, w, best, metric);
  for (int step = 1; step <= kSteps; ++step) {
    const float share = 1 - (1 - kLeastShare) * static_cast<float>(step) / kSteps;
    const float scale = weight_scale(codes, most * share);
    const double error = group_error(codes, w, scale, metric);
    if (error < least) {
      least = error;
      best = scale;
    }
  }
  return best;
}

}  // namespace degu
