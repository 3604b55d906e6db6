#include "train/step_trial.h"

#include <catch2/catch.hpp>

namespace degu {
namespace {

// Seconds of each step, in order; the candidates that were asked for.
std::vector<int64_t> play(StepTrial& trial, const std::vector<double>& seconds) {
  std::vector<int64_t> asked;
  for (double s : seconds) {
    REQUIRE_FALSE(trial.done());
    asked.push_back(trial.next());
    trial.took(s);
  }
  return asked;
}

TEST_CASE("candidates are taken in turns, and the least median wins") {
  StepTrial trial({1, 2, 4});
  const std::vector<int64_t> asked = play(trial, {90, 5, 4, 3, 5, 4, 90, 5, 4, 4.5});
  CHECK(asked == std::vector<int64_t>{1, 1, 2, 4, 1, 2, 4, 1, 2, 4});
  CHECK(trial.done());
  CHECK(trial.best() == 2);
  CHECK(trial.str() == "1 5 s, 2 4 s, 4 4.5 s");
}

TEST_CASE("of equal medians the first stands, and one candidate wins") {
  StepTrial trial({3, 5}, 1);
  play(trial, {1, 2, 2});
  CHECK(trial.done());
  CHECK(trial.best() == 3);
  StepTrial alone({7}, 2);
  play(alone, {1, 2, 2});
  CHECK(alone.done());
  CHECK(alone.best() == 7);
}

}  // namespace
}  // namespace degu
