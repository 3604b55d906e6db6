// dW over groups, slots and units; and that forward, dX and dW belong to one function.
#include <vector>

#include "kernels/api/grouped_gemm.h"
#include "tests/support/device_testing.h"

namespace degu {
namespace {

using namespace degu::testing;

// For `run`, which sees neither default arguments nor overloads.
const auto weight_gradient = [](auto&&... args) { grouped_gemm_dw(args...); };
const auto multiply = [](auto&&... args) { grouped_gemm(args...); };
const auto pack_matrices = [](auto&&... args) { return pack_weight(args...); };

struct Case {
  int64_t groups, slots, units;
  std::vector<int64_t> counts;  // rows of (g, s, u)
  int64_t f, d;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> kCases = {
      {1, 1, 1, {17}, 13, 40},
      {1, 1, 1, {0}, 5, 6},
      {2, 1, 4, {3, 0, 1, 2, 8, 7, 0, 5}, 12, 33},
      {3, 2, 2, {1, 2, 3, 4, 0, 0, 5, 6, 31, 32, 33, 1}, 25, 16},
      {2, 1, 8, {16, 1, 0, 9, 4, 4, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0}, 97, 31},
      {2, 1, 7, {5, 3, 1, 2, 0, 4, 6, 1, 1, 1, 1, 1, 1, 1}, 11, 65},
      {1, 3, 5, {2, 0, 3, 1, 7, 1, 1, 1, 1, 1, 0, 0, 0, 0, 9}, 24, 7},
      {4, 1, 6, {1, 0, 2, 0, 3, 0, 4, 5, 6, 7, 8, 9, 2, 2, 2, 2, 2, 2, 0, 0, 1, 0, 0, 0}, 1, 1},
  };
  return kCases;
}

struct Problem {
  Problem(const Case& c, DType type)
      : offsets(offsets_of(c.counts)),
        segments{offsets, c.groups, c.slots, c.units},
        dy(random_tensor(type, {segments.rows(), c.f}, "dy")),
        x(random_tensor(type, {segments.rows(), c.d}, "x")) {}
  std::vector<int64_t> offsets;
  UnitSegments segments;
  Tensor dy;
  Tensor x;
};

TEST_CASE("grouped_gemm_dw agrees with a plain loop", "[grouped_gemm_dw]") {
  for_each_backend([&](Context& context) {
    for (const Case& c : cases()) {
      for (DType type : {DType::kF32, DType::kBF16}) {
        const Problem p(c, type);
        const Shape shape = {c.slots, c.groups, c.f, c.d};
        const Tensor held = random_tensor(DType::kF32, shape, "held");
        for (Write write : {Write::kOverwrite, Write::kAdd}) {
          Expected expected;
          for (int64_t i = 0; i < shape.elements(); ++i) {
            const int64_t s = i / (c.d * c.f * c.groups);
            const int64_t g = i / (c.d * c.f) % c.groups;
            ReferenceSum sum;
            for (int64_t r = p.segments.begin(g, s, 0); r < p.segments.end(g, s, c.units - 1);
                 ++r) {
              sum.add(element(p.dy, r * c.f + i / c.d % c.f) * element(p.x, r * c.d + i % c.d));
            }
            if (write == Write::kAdd) sum.add(element(held, i));
            expected.push(sum, DType::kF32);
          }
          Tensor dw = copy_of(held);
          if (write == Write::kOverwrite) fill_nan(dw);
          run(context, weight_gradient, p.dy, p.x, p.segments, dw, write);
          check_close("dw", dw, expected);
        }
      }
    }
  });
}

// Joins neighbours level by level; an odd last one moves up as it is.
std::vector<float> join_by_hand(std::vector<std::vector<float>> parts) {
  while (parts.size() > 1) {
    std::vector<std::vector<float>> next;
    for (size_t i = 0; i < parts.size(); i += 2) {
      next.push_back(parts[i]);
      if (i + 1 == parts.size()) continue;
      for (size_t j = 0; j < parts[i].size(); ++j) next.back()[j] = parts[i][j] + parts[i + 1][j];
    }
    parts = std::move(next);
  }
  return parts[0];
}

TEST_CASE("dW is the fixed tree over its units' own sums, bit for bit", "[grouped_gemm_dw]") {
  for_each_backend_alone([&](Context& one, auto&& each) {
    for (const Case& c : cases()) {
      for (DType type : {DType::kF32, DType::kBF16}) {
        const Problem p(c, type);
        const Tensor held = random_tensor(DType::kF32, {c.slots, c.groups, c.f, c.d}, "held");
        const int64_t size = c.f * c.d;
        Tensor expected(DType::kF32, held.shape());
        for (int64_t s = 0; s < c.slots; ++s) {
          for (int64_t g = 0; g < c.groups; ++g) {
            std::vector<std::vector<float>> parts;
            for (int64_t u = 0; u < c.units; ++u) {
              const int64_t begin = p.segments.begin(g, s, u);
              const int64_t rows = p.segments.end(g, s, u) - begin;
              const std::vector<int64_t> whole = {0, rows};
              Tensor part(DType::kF32, {c.f, c.d});
              run(one, weight_gradient, p.dy.view().rows(begin, rows), p.x.view().rows(begin, rows),
                  UnitSegments{whole}, part);
              const float* data = part.as<float>().data();
              parts.emplace_back(data, data + size);
            }
            const auto joined = join_by_hand(std::move(parts));
            std::copy(joined.begin(), joined.end(),
                      expected.as<float>().data() + (s * c.groups + g) * size);
          }
        }
        Tensor added = copy_of(held);
        for (int64_t i = 0; i < held.shape().elements(); ++i) {
          added.as<float>()[i] = held.as<float>()[i] + expected.as<float>()[i];
        }
        each([&](Context& context) {
          Tensor dw(DType::kF32, held.shape());
          fill_nan(dw);
          run(context, weight_gradient, p.dy, p.x, p.segments, dw);
          check_same_bits("dw", dw, expected);
          Tensor sum = copy_of(held);
          run(context, weight_gradient, p.dy, p.x, p.segments, sum, Write::kAdd);
          check_same_bits("dw added", sum, added);
        });
      }
    }
  });
}

TEST_CASE("large weight gradients divided over threads equal one thread's", "[grouped_gemm_dw]") {
  const Case c = {3, 1, 4, {40, 64, 3, 65, 0, 0, 0, 0, 128, 1, 90, 31}, 210, 150};
  for_each_backend_alone([&](Context& one, auto&& each) {
    for (DType type : {DType::kF32, DType::kBF16}) {
      const Problem p(c, type);
      Tensor expected(DType::kF32, {c.groups, c.f, c.d});
      run(one, weight_gradient, p.dy, p.x, p.segments, expected);
      each([&](Context& context) {
        Tensor dw(DType::kF32, {c.groups, c.f, c.d});
        fill_nan(dw);
        run(context, weight_gradient, p.dy, p.x, p.segments, dw);
        check_same_bits("dw", dw, expected);
      });
    }
  });
}

// 16 MiB and more is written past the caches: the same numbers as the parts, each too small for
// that.
TEST_CASE("a large weight gradient equals its parts", "[grouped_gemm_dw]") {
  constexpr int64_t kF = 2052, kD = 2048, kPart = 171, kRows = 3;
  const std::vector<int64_t> offsets = {0, kRows};
  for_each_backend([&](Context& context) {
    const Tensor dy = random_tensor(DType::kBF16, {kRows, kF}, "dy");
    const Tensor x = random_tensor(DType::kBF16, {kRows, kD}, "x");
    Tensor dw(DType::kF32, {kF, kD});
    run(context, weight_gradient, dy, x, UnitSegments{offsets}, dw);
    Tensor part_dy(DType::kBF16, {kRows, kPart});
    Tensor part(DType::kF32, {kPart, kD});
    for (int64_t first = 0; first < kF; first += kPart) {
      for (int64_t i = 0; i < kRows * kPart; ++i) {
        part_dy.as<bf16>()[i] = dy.as<bf16>()[i / kPart * kF + first + i % kPart];
      }
      run(context, weight_gradient, part_dy, x, UnitSegments{offsets}, part);
      check_same_bits("rows " + std::to_string(first), dw.view().rows(first, kPart), part);
    }
  });
}

TEST_CASE("grouped_gemm_dw refuses what does not fit", "[grouped_gemm_dw]") {
  Context context(test_options(default_isa(), 1));
  const Tensor dy(DType::kBF16, {6, 4});
  const Tensor x(DType::kBF16, {6, 3});
  const Tensor dw(DType::kF32, {2, 4, 3});
  const std::vector<int64_t> offsets = {0, 2, 6};
  const UnitSegments segments{offsets, 2, 1, 1};
  CHECK_NOTHROW(grouped_gemm_dw(context, dy, x, segments, dw));
  CHECK_THROWS_AS(grouped_gemm_dw(context, dy, x, {offsets, 1, 1, 1}, dw), ShapeError);
  CHECK_THROWS_AS(grouped_gemm_dw(context, dy, x, {offsets, 1, 1, 2}, dw), ShapeError);
  CHECK_THROWS_AS(grouped_gemm_dw(context, dy, Tensor(DType::kF32, {6, 3}), segments, dw),
                  ShapeError);
  CHECK_THROWS_AS(grouped_gemm_dw(context, dy, Tensor(DType::kBF16, {5, 3}), segments, dw),
                  ShapeError);
  CHECK_THROWS_AS(grouped_gemm_dw(context, dy, x, segments, Tensor(DType::kBF16, {2, 4, 3})),
                  ShapeError);
  CHECK_THROWS_AS(grouped_gemm_dw(context, dy, x, segments, Tensor(DType::kF32, {2, 3, 4})),
                  ShapeError);
}

// L = sum_rf c[r, f] * y[r, f]: moving x or w by h along a random direction changes L by what dX
// and dW say. In fp32 with L evaluated in double precision from y; L is linear in each, so h needs
// not be small.
TEST_CASE("forward, dX and dW are derivatives of one function", "[grouped_gemm][grouped_gemm_dw]") {
  const std::vector<int64_t> offsets = {0, 9, 9, 30, 31};
  constexpr int64_t kE = 4, kF = 37, kD = 29, kR = 31;
  for_each_backend([&](Context& context) {
    const RowGroups groups{offsets};
    const Tensor x = random_tensor(DType::kF32, {kR, kD}, "x");
    const Tensor w = random_tensor(DType::kF32, {kE, kF, kD}, "w");
    const Tensor c = random_tensor(DType::kF32, {kR, kF}, "c");
    const Tensor move_x = random_tensor(DType::kF32, {kR, kD}, "move x");
    const Tensor move_w = random_tensor(DType::kF32, {kE, kF, kD}, "move w");
    const auto pack = [&](const Tensor& weight, Orientation orientation, Tensor& memory) {
      const bool forward = orientation == Orientation::kForward;
      memory = Tensor(DType::kU8,
                      {static_cast<int64_t>(packed_bytes(context, Scheme::kFp32, kE,
                                                         forward ? kF : kD, forward ? kD : kF))},
                      context.device());
      return run(context, pack_matrices, weight, Scheme::kFp32, orientation, memory.view().data);
    };
    double magnitude = 0;
    const auto loss = [&](double step_x, double step_w) {
      Tensor moved_x = copy_of(x);
      Tensor moved_w = copy_of(w);
      for (int64_t i = 0; i < kR * kD; ++i)
        set_element(moved_x, i, element(x, i) + step_x * element(move_x, i));
      for (int64_t i = 0; i < kE * kF * kD; ++i)
        set_element(moved_w, i, element(w, i) + step_w * element(move_w, i));
      Tensor memory;
      const PackedWeight packed = pack(moved_w, Orientation::kForward, memory);
      Tensor y(DType::kF32, {kR, kF});
      run(context, multiply, moved_x, packed, groups, y);
      double sum = 0;
      magnitude = 0;
      for (int64_t i = 0; i < kR * kF; ++i) {
        sum += element(y, i) * element(c, i);
        magnitude += std::fabs(element(y, i) * element(c, i));
      }
      return sum;
    };
    Tensor memory;
    const PackedWeight backward = pack(w, Orientation::kBackward, memory);
    Tensor dx(DType::kF32, {kR, kD});
    run(context, multiply, c, backward, groups, dx);
    Tensor dw(DType::kF32, {kE, kF, kD});
    run(context, weight_gradient, c, x, UnitSegments{offsets, kE, 1, 1}, dw);
    const auto along = [](const Tensor& gradient, const Tensor& direction) {
      double sum = 0;
      for (int64_t i = 0; i < gradient.shape().elements(); ++i)
        sum += element(gradient, i) * element(direction, i);
      return sum;
    };
    const double slope_x = (loss(0.5, 0) - loss(-0.5, 0));
    const double slope_w = (loss(0, 0.5) - loss(0, -0.5));
    const double tolerance = 2.0 * kD * 0x1p-24 * magnitude * 2;
    CHECK(std::fabs(slope_x - along(dx, move_x)) < tolerance);
    CHECK(std::fabs(slope_w - along(dw, move_w)) < tolerance);
  });
}

}  // namespace
}  // namespace degu
