#include "optim/schedule.h"

#include <catch2/catch.hpp>

#include "kernels/api/adamw.h"
#include "optim/flat_layout.h"

namespace degu {
namespace {

TEST_CASE("the rate rises, holds and falls where the schedule says") {
  const Schedule cosine{.steps = 100, .warmup_steps = 10, .decay_steps = 90, .final_ratio = 0.1};
  CHECK(cosine.factor(0) == Approx(0.1));
  CHECK(cosine.factor(9) == 1.0);
  CHECK(cosine.factor(10) == 1.0);
  CHECK(cosine.factor(55) == Approx(0.55));
  CHECK(cosine.factor(99) < 0.101);
  CHECK(cosine.annealed());

  const Schedule wsd{.steps = 100,
                     .warmup_steps = 10,
                     .decay_steps = 20,
                     .decay = Decay::kLinearRoot,
                     .final_ratio = 0};
  CHECK(wsd.factor(79) == 1.0);
  CHECK(wsd.factor(80) == 1.0);
  CHECK(wsd.factor(85) == Approx(0.5));
  CHECK(wsd.factor(99) > 0);

  const Schedule constant{.steps = 100, .warmup_steps = 0, .decay = Decay::kNone};
  CHECK(constant.factor(99) == 1.0);
  CHECK_FALSE(constant.annealed());
}

TEST_CASE("shards cover the flat vector and never cut a block") {
  const std::vector<FlatMember> members = {
      {.piece_elements = 10},
      {.piece_elements = 2500, .pieces = 3, .first_piece = 3, .all_pieces = 6},
      {.piece_elements = kNormBlock}};
  for (int shards : {1, 2, 3, 7, 16}) {
    const FlatLayout layout(members, shards);
    CHECK(layout.elements() == 10 + 7500 + kNormBlock);
    CHECK(layout.all_blocks() == 1 + 6 * 3 + 1);
    int64_t end = 0;
    std::vector<int> seen(static_cast<size_t>(layout.all_blocks()), 0);
    for (int r = 0; r < shards; ++r) {
      CHECK(layout.shard(r).begin == end);
      end = layout.shard(r).end;
      int64_t elements = 0;
      for (const FlatLayout::Run& run : layout.piece_runs(r)) {
        elements += run.range.elements();
        const int64_t blocks = (run.range.elements() + kNormBlock - 1) / kNormBlock;
        for (int64_t b = 0; b < blocks; ++b) ++seen[static_cast<size_t>(run.first_block + b)];
      }
      CHECK(elements == layout.shard(r).elements());
    }
    CHECK(end == layout.elements());
    // Experts 3, 4 and 5 of the second member are here, each in three blocks.
    for (size_t b = 0; b < seen.size(); ++b) CHECK(seen[b] == (b >= 1 && b < 10 ? 0 : 1));
  }
}

}  // namespace
}  // namespace degu
