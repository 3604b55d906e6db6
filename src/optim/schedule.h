// The learning rate over a run.
#pragma once

#include <cstdint>

namespace degu {

enum class Decay { kCosine, kLinearRoot, kNone };  // kLinearRoot: 1 - sqrt(progress), for WSD

struct Schedule {
  int64_t steps = 1;
  int64_t warmup_steps = 0;  // rises linearly from 0: step s takes (s + 1) / warmup_steps
  int64_t decay_steps = 0;   // the last so many steps fall; cosine: everything after the warm-up
  Decay decay = Decay::kCosine;
  double final_ratio = 0.1;  // of the peak, reached after the last step

  // Factor on the peak rate at step s in [0, steps).
  double factor(int64_t step) const;
  // Has the rate reached its floor at the end of the run? Scaling fits use annealed losses only.
  bool annealed() const { return decay != Decay::kNone && decay_steps > 0; }
};

}  // namespace degu
