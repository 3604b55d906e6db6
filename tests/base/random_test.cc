// Philox against the vectors of its authors' Random123 distribution, and what streams promise.
#include "base/random.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <set>
#include <vector>

namespace {

using degu::RandomStream;
using Counter = std::array<uint32_t, 4>;

TEST_CASE("philox4x32-10 gives the published vectors") {
  struct Case {
    Counter counter;
    std::array<uint32_t, 2> key;
    Counter expected;
  };
  const Case cases[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
       {0xffffffff, 0xffffffff},
       {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const Case& c : cases) CHECK(degu::philox4x32(c.counter, c.key) == c.expected);
}

TEST_CASE("a number depends on seed, purpose, step and index, and on nothing else") {
  const RandomStream stream(7, "init", 3);
  CHECK(stream.words(11) == RandomStream(7, "init", 3).words(11));
  std::set<uint64_t> seen;
  for (uint64_t seed : {0, 1, 2}) {
    for (const char* purpose : {"init", "data", "sample"}) {
      for (uint64_t step : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 40}) {
        for (uint64_t index : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 40}) {
          seen.insert(RandomStream(seed, purpose, step).bits64(index));
        }
      }
    }
  }
  CHECK(seen.size() == 81);
}

// Correlation of two streams that differ in one of their coordinates: N(0, 1/n) when independent.
TEST_CASE("neighbouring streams are independent") {
  constexpr int kCount = 100'000;
  const RandomStream base(1, "a", 0);
  const RandomStream others[] = {RandomStream(2, "a", 0), RandomStream(1, "b", 0),
                                 RandomStream(1, "a", 1)};
  for (const RandomStream& other : others) {
    double sum = 0;
    for (uint64_t i = 0; i < kCount; ++i) sum += (base.uniform(i) - 0.5) * (other.uniform(i) - 0.5);
    CHECK(std::abs(sum / kCount * 12) < 5 / std::sqrt(double{kCount}));
  }
  double lagged = 0;  // and of a stream with itself, one further
  for (uint64_t i = 0; i < kCount; ++i)
    lagged += (base.uniform(i) - 0.5) * (base.uniform(i + 1) - 0.5);
  CHECK(std::abs(lagged / kCount * 12) < 5 / std::sqrt(double{kCount}));
}

TEST_CASE("uniform and normal have their moments") {
  constexpr int kCount = 200'000;
  const RandomStream stream(3, "moments");
  double mean = 0, square = 0, normal_mean = 0, normal_square = 0, normal_fourth = 0;
  for (uint64_t i = 0; i < kCount; ++i) {
    const double u = stream.uniform(i);
    REQUIRE(u >= 0);
    REQUIRE(u < 1);
    mean += u;
    square += u * u;
    const double z = stream.normal(i);
    REQUIRE(std::isfinite(z));
    normal_mean += z;
    normal_square += z * z;
    normal_fourth += z * z * z * z;
  }
  // Five standard errors of each mean.
  CHECK(std::abs(mean / kCount - 0.5) < 5 * std::sqrt(1.0 / 12 / kCount));
  CHECK(std::abs(square / kCount - 1.0 / 3) < 5 * std::sqrt(4.0 / 45 / kCount));
  CHECK(std::abs(normal_mean / kCount) < 5 * std::sqrt(1.0 / kCount));
  CHECK(std::abs(normal_square / kCount - 1) < 5 * std::sqrt(2.0 / kCount));
  CHECK(std::abs(normal_fourth / kCount - 3) < 5 * std::sqrt(96.0 / kCount));
}

TEST_CASE("below covers its range evenly") {
  const RandomStream stream(4, "below");
  for (uint64_t n : {uint64_t{1}, uint64_t{2}, uint64_t{7}, uint64_t{10}}) {
    std::vector<int> counts(n);
    constexpr int kCount = 50'000;
    for (uint64_t i = 0; i < kCount; ++i) ++counts.at(stream.below(i, n));
    const double expected = double{kCount} / static_cast<double>(n);
    for (int count : counts) CHECK(std::abs(count - expected) <= 5 * std::sqrt(expected));
  }
  const uint64_t large = (uint64_t{1} << 63) + 1;
  for (uint64_t i = 0; i < 1000; ++i) REQUIRE(stream.below(i, large) < large);
}

TEST_CASE("names hash to the published FNV-1a values") {
  CHECK(degu::hash_name("") == 0xcbf29ce484222325ull);
  CHECK(degu::hash_name("a") == 0xaf63dc4c8601ec8cull);
  CHECK(degu::hash_name("foobar") == 0x85944171f73967e8ull);
}

}  // namespace
