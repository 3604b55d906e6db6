#include "optim/schedule.h"

#include <cmath>
#include <numbers>

namespace degu {

double Schedule::factor(int64_t step) const {
  if (step < warmup_steps) {
    return static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  }
  const int64_t first = steps - decay_steps;
  if (decay == Decay::kNone || decay_steps <= 0 || step < first) return 1.0;
  const double progress = static_cast<double>(step - first) / static_cast<double>(decay_steps);
  const double shape = decay == Decay::kCosine ? 0.5 * (1.0 + std::cos(std::numbers::pi * progress))
                                               : 1.0 - std::sqrt(progress);
  return final_ratio + (1.0 - final_ratio) * shape;
}

}  // namespace degu
