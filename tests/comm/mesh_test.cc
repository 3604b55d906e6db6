#include "comm/mesh.h"

#include <catch2/catch.hpp>

#include <vector>

namespace degu {
namespace {

TEST_CASE("expert_parallel must divide the ranks, experts must divide among the group") {
  CHECK_THROWS_AS(Layout(0, 4, 3), ConfigError);
  CHECK_THROWS_AS(Layout(0, 4, 0), ConfigError);
  CHECK_THROWS_AS(Layout(0, 4, 8), ConfigError);
  CHECK_THROWS_AS(Layout(0, 4, 2).experts(7), ConfigError);
}

TEST_CASE("every expert has one owner in each group") {
  for (int ranks : {1, 2, 4, 6}) {
    for (int ep = 1; ep <= ranks; ++ep) {
      if (ranks % ep != 0) continue;
      for (int rank = 0; rank < ranks; ++rank) {
        const Layout layout(rank, ranks, ep);
        const int64_t experts = 12 * ep;
        const Range own = layout.experts(experts);
        for (int64_t e = 0; e < experts; ++e) {
          CHECK(own.contains(e) == (layout.owner_of_expert(experts, e) == layout.ep_rank()));
        }
        CHECK(layout.ep_group() * ep + layout.ep_rank() == rank);
        CHECK(layout.edp_rank() < layout.edp_size());
      }
    }
  }
}

TEST_CASE("units are dealt once, in order, in runs") {
  for (int ranks : {1, 2, 4}) {
    for (int64_t micro_batches : {1, 2, 4}) {
      int64_t next = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const Layout layout(rank, ranks, 1);
        CHECK(layout.aligned(16, micro_batches));
        CHECK(layout.units(16).begin == next);
        for (int64_t m = 0; m < micro_batches; ++m) {
          const Range run = layout.units(16, micro_batches, m);
          CHECK(run.begin == next);
          CHECK(run.size() == 16 / ranks / micro_batches);
          next = run.end;
        }
        CHECK(layout.units(16).end == next);
      }
      CHECK(next == 16);
    }
  }
  CHECK_THROWS_AS(Layout(0, 4, 1).units(6), ConfigError);
  CHECK_THROWS_AS(Layout(0, 2, 1).units(6, 2, 0), ConfigError);
}

TEST_CASE("units go to passes first where sums are taken over ranks first") {
  for (int ranks : {1, 2, 3, 4}) {
    for (int64_t micro_batches : {1, 2, 4}) {
      const int64_t units = 2 * ranks * micro_batches;
      int64_t next = 0;
      for (int64_t m = 0; m < micro_batches; ++m) {
        for (int rank = 0; rank < ranks; ++rank) {
          const Layout layout(rank, ranks, 1);
          const Range run = layout.units(units, micro_batches, m, UnitOrder::kPassMajor);
          CHECK(run == Range{next, next + 2});
          next = run.end;
        }
      }
      CHECK(next == units);
      // Passes of 2 * ranks units each are subtrees, or there is one.
      CHECK(Layout(0, ranks, 1).aligned(units, micro_batches, UnitOrder::kPassMajor) ==
            (ranks != 3 || micro_batches == 1));
    }
  }
  CHECK(Layout(0, 1, 1).aligned(12, 3, UnitOrder::kPassMajor));
  CHECK_FALSE(Layout(0, 1, 1).aligned(12, 2, UnitOrder::kPassMajor));  // passes of 6
}

TEST_CASE("alignment: runs are powers of two, or the whole") {
  CHECK(Layout(0, 1, 1).aligned(6, 1));
  CHECK_FALSE(Layout(0, 1, 1).aligned(6, 2));  // runs of 3
  CHECK_FALSE(Layout(0, 2, 1).aligned(6, 1));
  CHECK(Layout(0, 3, 1).aligned(12, 2));  // three ranks of 4
  CHECK(Layout(0, 3, 1).aligned(12, 4));
  CHECK_FALSE(Layout(0, 4, 1).aligned(6, 1));
  CHECK(Layout(0, 6, 2).aligned(12, 1));
  CHECK_FALSE(Layout(0, 6, 3).aligned(12, 1));  // of an ep group's three ranks two are neighbours
  CHECK(Layout(0, 3, 3).aligned(12, 1));
}

TEST_CASE("shards cover a buffer once") {
  for (int64_t elements : {0, 1, 15, 16, 17, 1000, 4097}) {
    for (int parts : {1, 2, 3, 4, 8}) {
      int64_t next = 0;
      for (int part = 0; part < parts; ++part) {
        const Range shard = Layout::shard(elements, parts, part);
        CHECK(shard.begin == next);
        CHECK((shard.begin % 16 == 0 || shard.size() == 0));
        next = shard.end;
      }
      CHECK(next == elements);
    }
  }
}

}  // namespace
}  // namespace degu
