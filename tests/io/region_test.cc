#include "io/region.h"

#include <catch2/catch.hpp>

#include <cstring>

#include "base/random.h"

namespace degu {
namespace {

// Numbers drawn in order.
class Draw {
 public:
  explicit Draw(uint64_t seed) : stream_(seed, "region test") {}
  int64_t below(int64_t n) {
    return static_cast<int64_t>(stream_.below(next_++, static_cast<uint64_t>(n)));
  }

 private:
  RandomStream stream_;
  uint64_t next_ = 0;
};

Shape make_shape(const std::vector<int64_t>& d) {
  switch (d.size()) {
    case 0:
      return {};
    case 1:
      return {d[0]};
    case 2:
      return {d[0], d[1]};
    case 3:
      return {d[0], d[1], d[2]};
    default:
      return {d[0], d[1], d[2], d[3]};
  }
}

Region draw_region(Draw& draw, Shape whole) {
  if (draw.below(3) == 0) {
    const int64_t begin = draw.below(whole.elements() + 1);
    return Region::range(whole, begin, draw.below(whole.elements() - begin + 1));
  }
  std::vector<int64_t> offset, extent;
  for (int i = 0; i < whole.rank(); ++i) {
    const bool all = draw.below(2) == 0;
    offset.push_back(all ? 0 : draw.below(whole[i]));
    extent.push_back(all ? whole[i] : draw.below(whole[i] - offset.back() + 1));
  }
  return Region::box(whole, make_shape(offset), make_shape(extent));
}

// The definition: where element `part` (row-major in the region) lies in the whole.
int64_t place_in_whole(const Region& region, int64_t part) {
  if (region.flat) return region.offset[0] + part;
  int64_t at = 0;
  int64_t stride = 1;
  for (int i = region.whole.rank() - 1; i >= 0; --i) {
    at += (region.offset[i] + part % region.extent[i]) * stride;
    part /= region.extent[i];
    stride *= region.whole[i];
  }
  return at;
}

TEST_CASE("any region is copied from any other, element for element") {
  Draw draw(1);
  for (int round = 0; round < 3000; ++round) {
    std::vector<int64_t> dims;
    const int64_t rank = draw.below(5);
    for (int64_t i = 0; i < rank; ++i) dims.push_back(1 + draw.below(6));
    const Shape whole = make_shape(dims);
    const Region from = draw_region(draw, whole);
    const Region to = draw_region(draw, whole);
    INFO(from.str() << " to " << to.str());
    REQUIRE(from.inside());
    REQUIRE(to.inside());

    std::vector<int16_t> source, target(static_cast<size_t>(to.elements()), -1);
    std::vector<int16_t> held(static_cast<size_t>(whole.elements()), -1);
    for (int64_t i = 0; i < from.elements(); ++i) {
      source.push_back(static_cast<int16_t>(1000 + i));
      held[static_cast<size_t>(place_in_whole(from, i))] = source.back();
    }
    const int64_t copied =
        copy_common(from, reinterpret_cast<const std::byte*>(source.data()), to,
                    reinterpret_cast<std::byte*>(target.data()), sizeof(int16_t));
    int64_t common = 0;
    for (int64_t i = 0; i < to.elements(); ++i) {
      const int16_t expected = held[static_cast<size_t>(place_in_whole(to, i))];
      REQUIRE(target[static_cast<size_t>(i)] == expected);
      common += expected >= 0;
    }
    CHECK(copied == common);
    CHECK(run_count(from) == static_cast<int64_t>(runs_of(from).size()));
  }
}

TEST_CASE("a region of whole rows is one run") {
  CHECK(runs_of(Region::box({8, 4, 3}, {2, 0, 0}, {5, 4, 3})).size() == 1);
  CHECK(runs_of(Region::box({8, 4, 3}, {2, 1, 0}, {5, 2, 3})).size() == 5);
  CHECK(runs_of(Region::box({8, 4, 3}, {0, 0, 0}, {0, 4, 3})).empty());
}

TEST_CASE("regions outside their tensor are recognised") {
  CHECK_FALSE(Region::box({4, 4}, {2, 0}, {3, 4}).inside());
  CHECK_FALSE(Region::box({4, 4}, {-1, 0}, {1, 4}).inside());
  CHECK_FALSE(Region::box({4, 4}, {1}, {1}).inside());
  CHECK_FALSE(Region::range({4, 4}, 10, 7).inside());
  CHECK_FALSE(Region::box({4}, {1}, {INT64_MAX}).inside());
}

}  // namespace
}  // namespace degu
