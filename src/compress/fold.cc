#include "compress/fold.h"

namespace degu {

void scale_columns(AnyView w_FD, std::span<const float> factor_D) {
  const View<float> w = w_FD.as<float>();
  for (int64_t f = 0; f < w.dim(0); ++f) {
    for (int64_t d = 0; d < w.dim(1); ++d) w(f, d) *= factor_D[static_cast<size_t>(d)];
  }
}

void divide_rows(AnyView w_FD, std::span<const float> factor_F) {
  const View<float> w = w_FD.as<float>();
  for (int64_t f = 0; f < w.dim(0); ++f) {
    for (int64_t d = 0; d < w.dim(1); ++d) w(f, d) /= factor_F[static_cast<size_t>(f)];
  }
}

void divide_gain(AnyView gain_D, std::span<const float> factor_D) {
  const View<float> gain = gain_D.as<float>();
  for (int64_t d = 0; d < gain.elements(); ++d) gain[d] /= factor_D[static_cast<size_t>(d)];
}

}  // namespace degu
