// RMSNorm: value, gradient, the tree of dgain, and the ways rows can be cut.
#include "kernels/api/rmsnorm.h"

#include "tests/support/device_testing.h"
#include "tests/support/gradient_check.h"

namespace degu {
namespace {

using namespace degu::testing;

constexpr double kEps = 1e-5;

// For `run`, which does not see default arguments.
const auto norm_backward = [](auto&&... args) { rmsnorm_backward(args...); };

struct Normed {
  std::vector<double> y;
  std::vector<double> inv;
};

Normed reference(const std::vector<double>& x, const std::vector<double>& gain) {
  Normed out;
  const size_t width = gain.size();
  for (size_t t = 0; t * width < x.size(); ++t) {
    double squares = 0;
    for (size_t d = 0; d < width; ++d) squares += x[t * width + d] * x[t * width + d];
    out.inv.push_back(1 / std::sqrt(squares / static_cast<double>(width) + kEps));
    for (size_t d = 0; d < width; ++d) out.y.push_back(x[t * width + d] * out.inv.back() * gain[d]);
  }
  return out;
}

TEST_CASE("rmsnorm agrees with a plain loop", "[rmsnorm]") {
  for_each_backend([&](Context& context) {
    for (DType type : {DType::kF32, DType::kBF16}) {
      for (int64_t width : {1, 2, 7, 16, 33, 64, 100, 256, 513}) {
        for (int64_t rows : {0, 1, 5, 70}) {
          const Tensor x = random_tensor(type, {rows, width}, "x");
          const Tensor gain = random_tensor(DType::kF32, {width}, "gain");
          const Normed wanted = reference(values_of(x), values_of(gain));
          Tensor y(type, {rows, width}), inv(DType::kF32, {rows});
          fill_nan(y);
          run(context, rmsnorm, x, gain, kEps, y, inv);
          Expected ey, ei;
          // The mean square errs by at most width + 2 roundings, its root by half of that.
          const double relative = (static_cast<double>(width) + 8) * unit_roundoff(DType::kF32);
          for (double v : wanted.y) {
            ey.push(v, (relative + unit_roundoff(type)) * std::fabs(v) + 0x1p-126);
          }
          for (double v : wanted.inv) ei.push(v, relative * v);
          check_close("y", y, ey);
          check_close("inv", inv, ei);
          Tensor in_place = copy_of(x);
          run(context, rmsnorm, in_place, gain, kEps, in_place, AnyView{});
          check_same_bits("y in place, inv not kept", in_place, y);
        }
      }
    }
  });
}

TEST_CASE("rmsnorm_backward is the derivative of rmsnorm", "[rmsnorm]") {
  for_each_backend([&](Context& context) {
    for (int64_t width : {3, 16, 40}) {
      const int64_t rows = 5;
      const Tensor x = random_tensor(DType::kF32, {rows, width}, "x");
      const Tensor gain = random_tensor(DType::kF32, {width}, "gain");
      const Tensor dy = random_tensor(DType::kF32, {rows, width}, "dy");
      Tensor y(DType::kF32, {rows, width}), inv(DType::kF32, {rows}),
          dx(DType::kF32, {rows, width});
      Tensor dgain(DType::kF32, {width});
      run(context, rmsnorm, x, gain, kEps, y, inv);
      const std::vector<int64_t> offsets = {0, rows};
      run(context, norm_backward, dy, x, gain, inv, UnitSegments{offsets}, AnyView{}, dx, dgain);
      const auto weight = values_of(dy);
      check_gradient(
          "dx", dx,
          [&](const std::vector<double>& at) {
            return weighted(reference(at, values_of(gain)).y, weight);
          },
          values_of(x));
      check_gradient(
          "dgain", dgain,
          [&](const std::vector<double>& at) {
            return weighted(reference(values_of(x), at).y, weight);
          },
          values_of(gain));
    }
  });
}

// What the API promises, from the operator itself: one unit at a time, joined here by hand.
TEST_CASE("dgain joins units in the tree, bit for bit", "[rmsnorm]") {
  struct Case {
    int64_t slots, units;
    std::vector<int64_t> counts;
  };
  const std::vector<Case> cases = {{1, 1, {130}},
                                   {1, 4, {65, 0, 1, 64}},
                                   {2, 3, {5, 200, 63, 0, 0, 129}},
                                   {1, 7, {3, 1, 4, 1, 5, 9, 2}},
                                   {3, 2, {0, 0, 64, 64, 128, 1}},
                                   {1, 37, std::vector<int64_t>(37, 2)}};
  const int64_t width = 300;
  for_each_backend([&](Context& context) {
    for (const Case& c : cases) {
      const auto offsets = offsets_of(c.counts);
      const int64_t rows = offsets.back();
      const Tensor x = random_tensor(DType::kBF16, {rows, width}, "x");
      const Tensor dy = random_tensor(DType::kBF16, {rows, width}, "dy");
      const Tensor gain = random_tensor(DType::kF32, {width}, "gain");
      const Tensor held = random_tensor(DType::kF32, {c.slots, width}, "held");
      Tensor y(DType::kBF16, {rows, width}), inv(DType::kF32, {rows}),
          dx(DType::kBF16, {rows, width});
      run(context, rmsnorm, x, gain, kEps, y, inv);
      Tensor expected(DType::kF32, {c.slots, width});
      for (int64_t s = 0; s < c.slots; ++s) {
        std::vector<std::vector<float>> level;
        for (int64_t u = 0; u < c.units; ++u) {
          const int64_t begin = offsets[static_cast<size_t>(s * c.units + u)];
          const int64_t count = c.counts[static_cast<size_t>(s * c.units + u)];
          Tensor part(DType::kF32, {width});
          fill_nan(part);
          const std::vector<int64_t> alone = {0, count};
          run(context, norm_backward, dy.view().rows(begin, count), x.view().rows(begin, count),
              gain, inv.view().rows(begin, count), UnitSegments{alone}, AnyView{},
              dx.view().rows(begin, count), part);
          level.emplace_back(part.as<float>().data(), part.as<float>().data() + width);
        }
        while (level.size() > 1) {
          std::vector<std::vector<float>> next;
          for (size_t i = 0; i < level.size(); i += 2) {
            next.push_back(level[i]);
            for (size_t d = 0; i + 1 < level.size() && d < next.back().size(); ++d) {
              next.back()[d] = level[i][d] + level[i + 1][d];
            }
          }
          level = next;
        }
        for (int64_t d = 0; d < width; ++d) {
          expected.as<float>()(s, d) = level[0][static_cast<size_t>(d)];
        }
      }
      const UnitSegments segments{offsets, 1, c.slots, c.units};
      const Tensor dx_alone = copy_of(dx);
      Tensor dgain(DType::kF32, {c.slots, width});
      fill_nan(dgain);
      run(context, norm_backward, dy, x, gain, inv, segments, AnyView{}, dx, dgain);
      check_same_bits("dgain", dgain, expected);
      check_same_bits("dx", dx, dx_alone);
      Tensor added = copy_of(held);
      run(context, norm_backward, dy, x, gain, inv, segments, AnyView{}, dx, added, Write::kAdd);
      for (int64_t i = 0; i < expected.view().elements(); ++i) {
        expected.as<float>()[i] = held.as<float>()[i] + expected.as<float>()[i];
      }
      check_same_bits("dgain added", added, expected);
    }
  });
}

TEST_CASE("rmsnorm gives the same bits on any number of threads and at any size", "[rmsnorm]") {
  for (Isa isa : supported_isas()) {
    for (DType type : {DType::kF32, DType::kBF16}) {
      // The larger case is past the size where outputs are written around the caches.
      for (int64_t rows :
           {int64_t{333}, (int64_t{16} << 20) / 512 / static_cast<int64_t>(size_of(type)) + 3}) {
        const int64_t width = 512;
        const Tensor x = random_tensor(type, {333, width}, "x");
        const Tensor dy = random_tensor(type, {333, width}, "dy");
        const Tensor gain = random_tensor(DType::kF32, {width}, "gain");
        Tensor xs(type, {rows, width}), dys(type, {rows, width});
        const size_t row_bytes = static_cast<size_t>(width) * size_of(type);
        for (int64_t t = 0; t < rows; ++t) {
          std::memcpy(xs.view().rows(t, 1).data, x.view().rows(t % 333, 1).data, row_bytes);
          std::memcpy(dys.view().rows(t, 1).data, dy.view().rows(t % 333, 1).data, row_bytes);
        }
        const std::vector<int64_t> offsets = {0, rows / 3, rows / 2, rows};
        Tensor first_y, first_dx, first_dgain;
        for_each_thread_count(isa, [&](Context& context) {
          Tensor y(type, {rows, width}), inv(DType::kF32, {rows}), dx(type, {rows, width});
          Tensor dgain(DType::kF32, {width});
          run(context, rmsnorm, xs, gain, kEps, y, inv);
          run(context, norm_backward, dys, xs, gain, inv, UnitSegments{offsets, 1, 1, 3}, dys, dx,
              dgain);
          if (!first_y) {
            first_y = copy_of(y);
            first_dx = copy_of(dx);
            first_dgain = copy_of(dgain);
          }
          check_same_bits("y", y, first_y);
          check_same_bits("dx", dx, first_dx);
          check_same_bits("dgain", dgain, first_dgain);
          Tensor y_last(type, {1, width});
          run(context, rmsnorm, xs.view().rows(rows - 1, 1), gain, kEps, y_last, AnyView{});
          check_same_bits("the last row alone", y.view().rows(rows - 1, 1), y_last);
          Tensor carried = copy_of(dys);
          run(context, norm_backward, dys, xs, gain, inv, UnitSegments{offsets, 1, 1, 3}, carried,
              carried, dgain);
          check_same_bits("dx added in place", carried, first_dx);
        });
      }
    }
  }
}

TEST_CASE("rmsnorm names what does not fit", "[rmsnorm]") {
  Context context(test_options(default_isa(), 1));
  const Tensor x(DType::kF32, {4, 8}), gain(DType::kF32, {8}), short_gain(DType::kF32, {7}),
      inv(DType::kF32, {3});
  CHECK_THROWS_AS(rmsnorm(context, x, short_gain, kEps, x, AnyView{}), ShapeError);
  CHECK_THROWS_AS(rmsnorm(context, x, gain, kEps, x, inv), ShapeError);
  const std::vector<int64_t> offsets = {0, 3};
  const Tensor good_inv(DType::kF32, {4});
  CHECK_THROWS_WITH(rmsnorm_backward(context, x, x, gain, good_inv, {offsets}, AnyView{}, x, gain),
                    Catch::Contains("segments cover rows 0 to 3"));
}

}  // namespace
}  // namespace degu
