// Moving a factor of an input channel between the matrix that reads it and what produces it, so
// that the product stays what it was.
#pragma once

#include <span>

#include "tensor/view.h"

namespace degu {

// w_FD[f, d] *= factor_D[d].
void scale_columns(AnyView w_FD, std::span<const float> factor_D);
// w_FD[f, d] /= factor_F[f].
void divide_rows(AnyView w_FD, std::span<const float> factor_F);
// gain_D[d] /= factor_D[d]: of the norm whose output is the channel.
void divide_gain(AnyView gain_D, std::span<const float> factor_D);

}  // namespace degu
