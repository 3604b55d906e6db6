// Conversion, addition, scaling, zeroing: every bit is defined, so every bit is compared.
#include "kernels/api/elementwise.h"

#include <limits>

#include "tests/support/device_testing.h"

namespace degu {
namespace {

using namespace degu::testing;

// Around vector widths, around a task's 32,768 elements, and one above the size where stores are
// streamed.
const std::vector<int64_t> kSizes = {0,  1,  3,    4,     15,    16,    17,    31,
                                     33, 64, 1000, 32767, 32768, 32769, 100001};
constexpr int64_t kPastCaches = (int64_t{16} << 20) / 2 + 77;

TEST_CASE("cast converts every element once, to nearest even", "[elementwise]") {
  std::vector<int64_t> sizes = kSizes;
  sizes.push_back(kPastCaches);
  const Tensor source = random_tensor(DType::kF32, {kPastCaches}, "wide", 3.0);
  for_each_backend([&](Context& context) {
    for (int64_t n : sizes) {
      const Tensor wide = copy_of(source.view().rows(0, n));
      Tensor narrow(DType::kBF16, {n}), expected(DType::kBF16, {n}), back(DType::kF32, {n});
      for (int64_t i = 0; i < n; ++i) expected.as<bf16>()[i] = bf16(wide.as<float>()[i]);
      run(context, cast, wide, narrow);
      check_same_bits("narrow", narrow, expected);
      run(context, cast, narrow, back);
      Tensor widened(DType::kF32, {n});
      for (int64_t i = 0; i < n; ++i) {
        widened.as<float>()[i] = static_cast<float>(expected.as<bf16>()[i]);
      }
      check_same_bits("back", back, widened);
      Tensor copy(DType::kBF16, {n}), wide_copy(DType::kF32, {n});
      run(context, cast, narrow, copy);
      check_same_bits("copy", copy, narrow);
      run(context, cast, wide, wide_copy);
      check_same_bits("wide copy", wide_copy, wide);
    }
  });
}

TEST_CASE("cast keeps infinities and NaN, and rounds overflow to infinity", "[elementwise]") {
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> values = {inf,   -inf, std::nanf(""), std::numeric_limits<float>::max(),
                                     -0.0f, 0.0f, 1.00390625f,   1.01171875f};
  for_each_backend([&](Context& context) {
    Tensor wide(DType::kF32, {static_cast<int64_t>(values.size())});
    std::copy(values.begin(), values.end(), wide.as<float>().data());
    Tensor narrow(DType::kBF16, wide.shape());
    run(context, cast, wide, narrow);
    CHECK(element(narrow, 0) == inf);
    CHECK(element(narrow, 1) == -inf);
    CHECK(std::isnan(element(narrow, 2)));
    CHECK(element(narrow, 3) == inf);
    CHECK(narrow.as<bf16>()[4].bits == 0x8000);
    CHECK(narrow.as<bf16>()[5].bits == 0);
    CHECK(element(narrow, 6) == 1.0);       // halfway between 1 and 1 + 2^-7: to even
    CHECK(element(narrow, 7) == 1.015625);  // halfway above 1 + 2^-7: to even
  });
}

TEST_CASE("add and scale round once, in place or not", "[elementwise]") {
  std::vector<int64_t> sizes = kSizes;
  sizes.push_back(kPastCaches);
  for (DType type : {DType::kF32, DType::kBF16}) {
    const Tensor source_a = random_tensor(type, {kPastCaches}, "a");
    const Tensor source_b = random_tensor(type, {kPastCaches}, "b");
    for_each_backend([&](Context& context) {
      for (int64_t n : sizes) {
        const Tensor a = copy_of(source_a.view().rows(0, n));
        const Tensor b = copy_of(source_b.view().rows(0, n));
        Tensor sum(type, {n}), scaled(type, {n});
        for (int64_t i = 0; i < n; ++i) {
          set_element(sum, i,
                      static_cast<float>(element(a, i)) + static_cast<float>(element(b, i)));
          set_element(scaled, i, static_cast<float>(element(a, i)) * 0.3f);
        }
        Tensor out(type, {n});
        run(context, add, a, b, out);
        check_same_bits("add", out, sum);
        Tensor left = copy_of(a), right = copy_of(b);
        run(context, add, left, b, left);
        check_same_bits("add into a", left, sum);
        run(context, add, a, right, right);
        check_same_bits("add into b", right, sum);
        Tensor times = copy_of(a);
        run(context, scale, times, 0.3f);
        check_same_bits("scale", times, scaled);
      }
    });
  }
}

TEST_CASE("add of counts is exact", "[elementwise]") {
  for_each_backend([&](Context& context) {
    for (int64_t n : {0, 1, 33, 70001}) {
      Tensor a(DType::kI64, {n}), b(DType::kI64, {n}), sum(DType::kI64, {n});
      for (int64_t i = 0; i < n; ++i) {
        a.as<int64_t>()[i] = (int64_t{1} << 60) + i;
        b.as<int64_t>()[i] = -3 * i;
        sum.as<int64_t>()[i] = (int64_t{1} << 60) - 2 * i;
      }
      run(context, add, a, b, a);
      check_same_bits("a", a, sum);
    }
  });
}

TEST_CASE("fill_zero writes its own bytes and no others", "[elementwise]") {
  for_each_backend([&](Context& context) {
    for (int64_t n : {int64_t{0}, int64_t{1}, int64_t{63}, int64_t{4096}, int64_t{131073},
                      (int64_t{16} << 20) + 5}) {
      Tensor whole(DType::kU8, {n + 64});
      std::memset(whole.view().data, 0x5a, static_cast<size_t>(n + 64));
      run(context, fill_zero, whole.view().rows(0, n));
      int64_t wrong = 0;
      for (int64_t i = 0; i < n + 64; ++i) wrong += whole.as<uint8_t>()[i] != (i < n ? 0 : 0x5a);
      CHECK(wrong == 0);
    }
  });
}

TEST_CASE("elementwise operators name what does not fit", "[elementwise]") {
  Context context(test_options(default_isa(), 1));
  const Tensor a(DType::kF32, {4}), b(DType::kF32, {5}), c(DType::kBF16, {4}), d(DType::kI32, {4});
  CHECK_THROWS_AS(cast(context, a, b), ShapeError);
  CHECK_THROWS_AS(cast(context, a, d), ShapeError);
  CHECK_THROWS_AS(add(context, a, c, a), ShapeError);
  CHECK_THROWS_AS(add(context, a, a, b), ShapeError);
  CHECK_THROWS_AS(scale(context, d, 2.0f), ShapeError);
  CHECK_THROWS_WITH(add(context, a, b, a),
                    Catch::Contains("b is [5]") && Catch::Contains("must hold 4"));
}

}  // namespace
}  // namespace degu
