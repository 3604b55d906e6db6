#include "infer/speculation.h"

#include <catch2/catch.hpp>

namespace degu {
namespace {

std::vector<int32_t> ngram(const std::vector<int32_t>& tokens, int depth) {
  std::vector<int32_t> drafts;
  DraftTask task{.key = 1, .tokens = tokens, .sampler = nullptr, .depth = depth, .drafts = &drafts};
  NgramDrafter().propose({&task, 1});
  return drafts;
}

TEST_CASE("n-gram look-up goes on as the text last went on") {
  using V = std::vector<int32_t>;
  CHECK(ngram({1, 2, 3, 4, 9, 1, 2, 3, 4, 8, 5, 1, 2, 3, 4}, 3) == V{8, 5, 1});
  CHECK(ngram({1, 2, 5, 6, 7, 1, 2}, 2) == V{5, 6});
  CHECK(ngram({7, 7, 7}, 4) == V{7, 7, 7, 7});              // a run goes on
  CHECK(ngram({1, 2, 1, 2, 1, 2}, 5) == V{1, 2, 1, 2, 1});  // so does a cycle
  CHECK(ngram({1, 2, 3, 4}, 3).empty());
  CHECK(ngram({5}, 3).empty());
}

// Feeds a chooser with passes of a made-up machine.
int settled_depth(DepthChooser& chooser, int64_t sequences, double per_row, double per_expert,
                  double hit) {
  double luck = 0;
  int depth = 0;
  for (int i = 0; i < 600; ++i) {
    depth = chooser.choose(sequences);
    const int64_t rows = sequences * (1 + depth);
    const double distinct = chooser.predicted_distinct(rows);
    chooser.saw_pass(rows, distinct,
                     1e-3 + per_row * static_cast<double>(rows) + per_expert * distinct);
    for (int64_t s = 0; s < sequences && depth > 0; ++s) {
      int64_t stood = 0;
      while (stood < depth && (luck += hit) >= 1) {
        luck -= 1;
        ++stood;
      }
      chooser.saw_acceptance(depth, stood);
    }
  }
  // The choice, not a trial.
  for (int i = 0; i < 3; ++i) depth = std::min(depth, chooser.choose(sequences));
  return depth;
}

TEST_CASE("depth follows what it brings and what it costs") {
  SECTION("free rows and good guesses: deep") {
    DepthChooser chooser(0, 0, 6, false);
    CHECK(settled_depth(chooser, 1, 1e-6, 0, 0.9) >= 4);
  }
  SECTION("guesses that never stand: none") {
    DepthChooser chooser(0, 0, 6, false);
    CHECK(settled_depth(chooser, 1, 1e-4, 0, 0.0) == 0);
    CHECK(chooser.acceptance(0) < 0.2);
  }
  SECTION("each row wakes experts of its own: none, though guesses often stand") {
    DepthChooser chooser(64, 8, 6, false);
    CHECK(settled_depth(chooser, 1, 0, 5e-3, 0.6) == 0);
  }
  SECTION("many streams wake the experts anyway: speculation pays again") {
    DepthChooser chooser(8, 2, 4, false);
    CHECK(settled_depth(chooser, 16, 1e-7, 5e-3, 0.8) > 0);
  }
  SECTION("a fixed depth stays") {
    DepthChooser chooser(64, 8, 3, true);
    CHECK(settled_depth(chooser, 1, 1, 1, 0.0) == 3);
  }
}

TEST_CASE("distinct experts of independent rows") {
  const DepthChooser chooser(64, 8, 4, false);
  CHECK(chooser.predicted_distinct(1) == Approx(8));
  CHECK(chooser.predicted_distinct(2) == Approx(15));  // 64 (1 - (7/8)^2)
}

}  // namespace
}  // namespace degu
