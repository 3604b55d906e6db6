#include "train/step_trial.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace degu {

StepTrial::StepTrial(std::vector<int64_t> candidates, int rounds)
    : candidates_(std::move(candidates)), rounds_(rounds), seconds_(candidates_.size()) {
  DEGU_DCHECK(!candidates_.empty() && rounds >= 1);
}

// Whose turn the coming step is; the first is the first candidate's, untimed.
size_t StepTrial::turn() const {
  return static_cast<size_t>(std::max<int64_t>(steps_ - 1, 0)) % candidates_.size();
}

int64_t StepTrial::next() const {
  return candidates_[turn()];
}

void StepTrial::took(double seconds) {
  if (steps_ > 0) seconds_[turn()].push_back(seconds);
  ++steps_;
}

double StepTrial::median(size_t candidate) const {
  std::vector<double> sorted = seconds_[candidate];
  std::sort(sorted.begin(), sorted.end());
  return sorted[sorted.size() / 2];
}

int64_t StepTrial::best() const {
  size_t best = 0;
  for (size_t i = 1; i < candidates_.size(); ++i) {
    if (median(i) < median(best)) best = i;
  }
  return candidates_[best];
}

std::string StepTrial::str() const {
  std::string all;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    all += fmt::format("{}{} {:.3g} s", i == 0 ? "" : ", ", candidates_[i], median(i));
  }
  return all;
}

}  // namespace degu
