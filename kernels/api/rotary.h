// Rotary position embedding (Su et al. 2021, arXiv 2104.09864), halves convention: dimension i of a
// head is rotated with dimension i + A/2 by the angle position * theta^(-2i/A).
#pragma once

#include "kernels/api/rows.h"
#include "tensor/context.h"

namespace degu {

// In place on x_THA ([T, H, A], fp32 or bf16); positions_T are the tokens' positions in their
// sequences. Angles, sines and cosines are computed in double precision once per call and rounded
// to fp32. `inverse` rotates back: the gradient.
void rotary(Context& context, AnyView x_THA, const RowNumbers& positions_T, double theta,
            bool inverse = false);

}  // namespace degu
