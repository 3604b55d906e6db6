// Finds the setting that makes the quickest steps, in the first steps of a run: candidates are
// taken in turns, so they must not change what a step computes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace degu {

class StepTrial {
 public:
  // Each candidate, of which there is at least one, is timed in `rounds` steps, after a first step
  // that is not.
  explicit StepTrial(std::vector<int64_t> candidates, int rounds = 3);

  bool done() const { return steps_ > static_cast<int64_t>(candidates_.size()) * rounds_; }
  // The candidate for the coming step.
  int64_t next() const;
  // How long that step took.
  void took(double seconds);
  // The candidate with the least median; the first of several.
  int64_t best() const;
  // "1 0.812 s, 2 0.790 s": the medians.
  std::string str() const;

 private:
  size_t turn() const;
  double median(size_t candidate) const;

  std::vector<int64_t> candidates_;
  int64_t rounds_;
  int64_t steps_ = 0;
  std::vector<std::vector<double>> seconds_;  // by candidate
};

}  // namespace degu
