// The matrix at the heart of GPTQ, on its own so that it can be tested.
#pragma once

#include <cstdint>
#include <vector>

#include "compress/method.h"

namespace degu {

// The order in which columns are rounded and, for column i and a later one j, how much of i's error
// j takes.
struct GptqFactor {
  std::vector<int64_t> order;  // [D]: which column comes i-th
  std::vector<double> upper;   // [D, D]: U with U^T U = (H + damping)^-1, rows and columns in order
};

// H is damped by options.damping times its mean diagonal; channels that no row used get that too
// (or one, where nothing was used at all). NumericError when H is not positive even so.
GptqFactor gptq_factor(AnyView hessian_DD, const MethodOptions& options, const std::string& name);

}  // namespace degu
