// The scale of one group of weights, by search.
#pragma once

#include <span>

#include "kernels/common/codes.h"

namespace degu {

// How much errors d of a group's weights matter: d^T M d with M the group's block of a larger
// symmetric matrix. Without one: the sum of squares.
struct GroupMetric {
  const float* block = nullptr;  // [count, count], rows `stride` apart
  int64_t stride = 0;
};

// The error of rounding `w` to codes times `scale`.
double group_error(Codes codes, std::span<const float> w, float scale, const GroupMetric& metric);

// The scale of least error among the one that fits the largest magnitude and smaller ones, down to
// 0.6 of it, that cut the largest off and make the steps of all others finer.
float least_error_scale(Codes codes, std::span<const float> w, const GroupMetric& metric = {});

// The scale that fits the largest magnitude.
float covering_scale(Codes codes, std::span<const float> w);

}  // namespace degu
