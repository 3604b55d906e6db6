// The search of AWQ for one matrix or several that read the same input, on its own so that it can
// be tested.
#pragma once

#include <span>
#include <vector>

#include "compress/method.h"
#include "compress/output_error.h"

namespace degu {

inline constexpr int kAwqSteps = 20;

// Candidate `step` in [0, kAwqSteps]: magnitude^(step / kAwqSteps), centred around one; step 0 is
// all ones. squares_D: mean or sum of squares per channel. With `powers_of_two` the nearest such.
std::vector<float> awq_candidate(std::span<const double> squares_D, int step, bool powers_of_two);

// A matrix that reads the channels.
struct AwqTerm {
  AnyView value_FD;
  Codes codes = Codes::kInt4;
  const OutputError* error = nullptr;
};

// Error of the product when the columns of `term` times factor_D are rounded to nearest and its
// input is divided by factor_D.
double folded_error(Context& context, const AwqTerm& term, std::span<const float> factor_D);

}  // namespace degu
