#include "kernels/api/rotary.h"

#include <algorithm>

#include "tests/support/device_testing.h"

namespace degu::testing {
namespace {

// For `run`, which does not see default arguments.
const auto rotate = [](auto&&... args) { rotary(args...); };

constexpr DType kTypes[] = {DType::kF32, DType::kBF16};

// By the definition; the tolerance covers two fp32 products of rounded cosines and sines, one sum,
// and the rounding to the type.
Expected expect(const Tensor& x_THA, const std::vector<int32_t>& positions, double theta,
                bool inverse) {
  const int64_t heads = x_THA.shape()[1];
  const int64_t width = x_THA.shape()[2];
  Expected expected;
  for (size_t t = 0; t < positions.size(); ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t d = 0; d < width; ++d) {
        const int64_t i = d % (width / 2);
        const double angle = positions[t] * std::pow(theta, -2.0 * static_cast<double>(i) /
                                                                static_cast<double>(width));
        const int64_t row = (static_cast<int64_t>(t) * heads + h) * width;
        const double low = element(x_THA, row + i);
        const double high = element(x_THA, row + i + width / 2);
        const double s = inverse ? -std::sin(angle) : std::sin(angle);
        const double value =
            d < width / 2 ? low * std::cos(angle) - high * s : high * std::cos(angle) + low * s;
        const double error = 4 * 0x1p-24 * (std::fabs(low) + std::fabs(high));
        expected.push(value, error + unit_roundoff(x_THA.dtype()) * (std::fabs(value) + error));
      }
    }
  }
  return expected;
}

std::vector<int32_t> consecutive(int32_t first, size_t count) {
  std::vector<int32_t> positions(count);
  std::iota(positions.begin(), positions.end(), first);
  return positions;
}

TEST_CASE("rotary agrees with the definition in double precision", "[rotary]") {
  const std::vector<std::vector<int32_t>> cases = {
      {},
      {0},
      {31071},
      consecutive(0, 70),
      consecutive(4000, 33),
      {0, 1, 2, 0, 1, 0, 0, 1, 2, 3},
      {5, 100000, 7, 262143},  // far apart: a row of the table each
  };
  for_each_backend([&](Context& context) {
    for (DType type : kTypes) {
      for (int64_t width : {2, 6, 16, 34, 64, 128, 300}) {
        for (const auto& positions : cases) {
          for (bool inverse : {false, true}) {
            INFO(dtype_name(type) << ", A " << width << ", rows " << positions.size());
            const Shape shape{static_cast<int64_t>(positions.size()), 3, width};
            const Tensor before = random_tensor(type, shape, "x");
            const Tensor x = copy_of(before);
            run(context, rotate, x, positions, 10000.0, inverse);
            check_close("rotary", x, expect(before, positions, 10000.0, inverse));
          }
        }
      }
    }
  });
}

// dot(rotate(x), y) = dot(x, rotate back(y)): the inverse is the gradient's operator, in exact
// terms up to fp32 rounding.
TEST_CASE("rotating back is the gradient of rotating", "[rotary]") {
  for_each_backend([&](Context& context) {
    const Shape shape{50, 2, 32};
    const auto positions = consecutive(17, 50);
    const Tensor x = random_tensor(DType::kF32, shape, "x");
    const Tensor y = random_tensor(DType::kF32, shape, "y");
    const Tensor forward = copy_of(x);
    const Tensor back = copy_of(y);
    run(context, rotate, forward, positions, 500.0);
    run(context, rotate, back, positions, 500.0, true);
    ReferenceSum left, right;
    for (int64_t i = 0; i < shape.elements(); ++i) {
      left.add(element(forward, i) * element(y, i));
      right.add(element(x, i) * element(back, i));
    }
    CHECK(std::fabs(left.value() - right.value()) <= left.tolerance(DType::kF32));
  });
}

TEST_CASE("a row's rotation depends on its position alone", "[rotary]") {
  for (Isa isa : supported_isas()) {
    for (DType type : kTypes) {
      const int64_t rows = 200;
      const auto positions = consecutive(1000, static_cast<size_t>(rows));
      const Tensor x = random_tensor(type, {rows, 2, 24}, "x");
      Context one(test_options(isa, 1));
      const Tensor expected = copy_of(x);
      rotary(one, expected, positions, 10000.0);
      for_each_thread_count(isa, [&](Context& context) {
        const Tensor whole = copy_of(x);
        run(context, rotate, whole, positions, 10000.0);
        check_same_bits("whole", whole, expected);
        const Tensor single = copy_of(x);
        for (int64_t t = 0; t < rows; ++t) {
          run(context, rotate, single.view().rows(t, 1),
              std::span(positions).subspan(static_cast<size_t>(t), 1), 10000.0);
        }
        check_same_bits("row by row", single, expected);
        // Far neighbours: the table is laid out per row instead of per position.
        auto mixed = positions;
        mixed[0] = 900000;
        const Tensor scattered = copy_of(x);
        run(context, rotate, scattered, mixed, 10000.0);
        check_same_bits("scattered", scattered.view().rows(1, rows - 1),
                        expected.view().rows(1, rows - 1));
      });
    }
  }
}

TEST_CASE("rotary refuses what does not fit", "[rotary]") {
  Context context(test_options(default_isa(), 1));
  const std::vector<int32_t> two = {0, 1};
  const std::vector<int32_t> negative = {0, -1};
  CHECK_THROWS_AS(rotary(context, Tensor(DType::kF32, {2, 1, 7}), two, 1e4), ShapeError);
  CHECK_THROWS_AS(rotary(context, Tensor(DType::kF32, {3, 1, 8}), two, 1e4), ShapeError);
  CHECK_THROWS_AS(rotary(context, Tensor(DType::kF32, {2, 8}), two, 1e4), ShapeError);
  CHECK_THROWS_AS(rotary(context, Tensor(DType::kI32, {2, 1, 8}), two, 1e4), ShapeError);
  CHECK_THROWS_AS(rotary(context, Tensor(DType::kF32, {2, 1, 8}), negative, 1e4), ShapeError);
  CHECK_THROWS_AS(rotary(context, Tensor(DType::kF32, {2, 1, 8}), two, 0), ShapeError);
}

}  // namespace
}  // namespace degu::testing
