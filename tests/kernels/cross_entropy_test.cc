#include "kernels/api/cross_entropy.h"

#include "tests/support/device_testing.h"

namespace degu::testing {
namespace {

struct Reference {
  double loss = 0;
  double lse = 0;
  std::vector<double> gradient;
};

Reference row_reference(const std::vector<double>& x, int32_t target, double scale, double z_loss) {
  Reference ref;
  ref.gradient.assign(x.size(), 0);
  if (target < 0) return ref;
  double top = -INFINITY;
  for (double v : x) top = std::max(top, v);
  double sum = 0;
  for (double v : x) sum += std::exp(v - top);
  ref.lse = top + std::log(sum);
  ref.loss = ref.lse - x[static_cast<size_t>(target)] + z_loss * ref.lse * ref.lse;
  for (size_t v = 0; v < x.size(); ++v) {
    const double p = std::exp(x[v] - ref.lse);
    ref.gradient[v] =
        scale * ((1 + 2 * z_loss * ref.lse) * p - (static_cast<int32_t>(v) == target ? 1 : 0));
  }
  return ref;
}

std::vector<double> row_of(const Tensor& x, int64_t t) {
  std::vector<double> row;
  for (int64_t v = 0; v < x.shape()[1]; ++v) row.push_back(element(x, t * x.shape()[1] + v));
  return row;
}

std::vector<int32_t> some_targets(int64_t rows, int64_t vocabulary) {
  std::vector<int32_t> targets;
  const RandomStream stream(3, "targets");
  for (int64_t t = 0; t < rows; ++t) {
    targets.push_back(t % 5 == 3
                          ? -1
                          : static_cast<int32_t>(stream.below(static_cast<uint64_t>(t),
                                                              static_cast<uint64_t>(vocabulary))));
  }
  return targets;
}

// fp32 differences x - max and the sum of V exponentials: relative error of a weight.
double weight_error(double lse, double top, int64_t vocabulary) {
  return (4 * (std::fabs(lse) + std::fabs(top)) + static_cast<double>(vocabulary) + 8) * 0x1p-24;
}

void check_case(Context& context, int64_t rows, int64_t vocabulary, DType gradient_type,
                double spread, float z_loss) {
  INFO("V " << vocabulary << ", T " << rows << ", gradient " << dtype_name(gradient_type)
            << ", spread " << spread << ", z_loss " << z_loss);
  const Tensor logits = random_tensor(DType::kF32, {rows, vocabulary}, "logits", spread);
  const auto targets = some_targets(rows, vocabulary);
  const Tensor loss(DType::kF32, {rows});
  const Tensor gradient(gradient_type, {rows, vocabulary});
  fill_nan(loss);
  fill_nan(gradient);
  const float scale = 0.37f;
  run(context, cross_entropy, logits, targets, scale, z_loss, loss, gradient);
  Expected losses, gradients;
  for (int64_t t = 0; t < rows; ++t) {
    const auto x = row_of(logits, t);
    const int32_t target = targets[static_cast<size_t>(t)];
    const Reference ref = row_reference(x, target, scale, z_loss);
    const double size =
        target < 0 ? 0 : std::fabs(x[static_cast<size_t>(target)]) + std::fabs(ref.lse);
    const double e = weight_error(ref.lse, spread * 6, vocabulary);
    losses.push(ref.loss,
                (e + 4 * size * 0x1p-24) * (1 + 2 * z_loss * std::fabs(ref.lse)) + 0x1p-126);
    for (int64_t v = 0; v < vocabulary; ++v) {
      const double g = ref.gradient[static_cast<size_t>(v)];
      const double weight = std::fabs(g) + (v == target ? scale : 0);
      const double error = 2 * e * weight;
      gradients.push(g, error + unit_roundoff(gradient_type) * (std::fabs(g) + error) + 0x1p-126);
    }
  }
  check_close("loss", loss, losses);
  check_close("gradient", gradient, gradients);

  const Tensor loss_alone(DType::kF32, {rows});
  run(context, cross_entropy, logits, targets, scale, z_loss, loss_alone, AnyView{});
  check_same_bits("loss without gradient", loss_alone, loss);
  if (gradient_type == DType::kF32) {
    const Tensor in_place = copy_of(logits);
    run(context, cross_entropy, in_place, targets, scale, z_loss, loss_alone, in_place);
    check_same_bits("gradient in place of the logits", in_place, gradient);
  }
}

TEST_CASE("cross-entropy agrees with the definition in double precision", "[cross_entropy]") {
  for_each_backend([&](Context& context) {
    for (DType type : {DType::kF32, DType::kBF16}) {
      for (int64_t vocabulary : {1, 2, 15, 16, 17, 63, 64, 65, 130, 1023, 1024, 1025, 5001}) {
        check_case(context, 11, vocabulary, type, 2.0, 0.0f);
        check_case(context, 6, vocabulary, type, 30.0, 1e-3f);
      }
      check_case(context, 0, 64, type, 1.0, 0.0f);
      check_case(context, 1, 64, type, 1.0, 0.0f);
    }
  });
}

TEST_CASE("the reference gradient of cross-entropy is the slope of the reference",
          "[cross_entropy]") {
  const Tensor logits = random_tensor(DType::kF32, {1, 12}, "logits", 2);
  auto x = row_of(logits, 0);
  const double z_loss = 0.01;
  const Reference ref = row_reference(x, 4, 1.0, z_loss);
  for (size_t v = 0; v < x.size(); ++v) {
    const double h = 1e-5;
    const double kept = x[v];
    x[v] = kept + h;
    const double above = row_reference(x, 4, 1.0, z_loss).loss;
    x[v] = kept - h;
    const double below = row_reference(x, 4, 1.0, z_loss).loss;
    x[v] = kept;
    CHECK(ref.gradient[v] == Approx((above - below) / (2 * h)).epsilon(1e-6).margin(1e-8));
  }
}

TEST_CASE("a row's cross-entropy does not depend on threads or neighbours", "[cross_entropy]") {
  const int64_t rows = 37;
  const int64_t vocabulary = 777;
  const Tensor logits = random_tensor(DType::kF32, {rows, vocabulary}, "logits", 3);
  const auto targets = some_targets(rows, vocabulary);
  for (Isa isa : supported_isas()) {
    Context one(test_options(isa, 1));
    const Tensor loss(DType::kF32, {rows});
    const Tensor gradient(DType::kBF16, {rows, vocabulary});
    cross_entropy(one, logits, targets, 0.1f, 0.0f, loss, gradient);
    for_each_thread_count(isa, [&](Context& context) {
      const Tensor l(DType::kF32, {rows});
      const Tensor g(DType::kBF16, {rows, vocabulary});
      run(context, cross_entropy, logits, targets, 0.1f, 0.0f, l, g);
      check_same_bits("loss", l, loss);
      check_same_bits("gradient", g, gradient);
      for (int64_t t = 0; t < rows; ++t) {
        run(context, cross_entropy, logits.view().rows(t, 1),
            std::span(targets).subspan(static_cast<size_t>(t), 1), 0.1f, 0.0f, l.view().rows(t, 1),
            g.view().rows(t, 1));
      }
      check_same_bits("loss row by row", l, loss);
      check_same_bits("gradient row by row", g, gradient);
    });
  }
}

// Vocabulary entries that are switched off, also a whole part of a row of them.
TEST_CASE("logits of minus infinity have no probability", "[cross_entropy]") {
  for_each_backend([&](Context& context) {
    const int64_t off = 1500;
    const int64_t vocabulary = 1540;
    const Tensor masked = random_tensor(DType::kF32, {1, vocabulary}, "logits");
    for (int64_t v = 0; v < off; ++v) set_element(masked, v, -INFINITY);
    std::vector<double> rest;
    for (int64_t v = off; v < vocabulary; ++v) rest.push_back(element(masked, v));
    const Reference ref = row_reference(rest, 3, 1.0, 0.0);
    const Tensor loss(DType::kF32, {1});
    const Tensor gradient(DType::kF32, {1, vocabulary});
    const std::vector<int32_t> targets = {static_cast<int32_t>(off) + 3};
    run(context, cross_entropy, masked, targets, 1.0f, 0.0f, loss, gradient);
    CHECK(element(loss, 0) == Approx(ref.loss).epsilon(1e-6));
    for (int64_t v = 0; v < off; ++v) REQUIRE(element(gradient, v) == 0);
    for (int64_t v = off; v < vocabulary; ++v) {
      CHECK(element(gradient, v) ==
            Approx(ref.gradient[static_cast<size_t>(v - off)]).epsilon(1e-5));
    }
  });
}

TEST_CASE("cross-entropy of a NaN logit is NaN", "[cross_entropy]") {
  for_each_backend([&](Context& context) {
    for (int64_t bad : {0, 5, 63, 98}) {
      const Tensor logits = random_tensor(DType::kF32, {2, 99}, "logits");
      set_element(logits, bad, std::nan(""));
      const Tensor loss(DType::kF32, {2});
      const std::vector<int32_t> targets = {7, 8};
      run(context, cross_entropy, logits, targets, 1.0f, 0.0f, loss, AnyView{});
      CHECK(std::isnan(element(loss, 0)));
      CHECK(std::isfinite(element(loss, 1)));
    }
  });
}

TEST_CASE("cross-entropy refuses what does not fit", "[cross_entropy]") {
  Context context(test_options(default_isa(), 1));
  const Tensor logits(DType::kF32, {2, 8});
  const Tensor loss(DType::kF32, {2});
  const std::vector<int32_t> targets = {0, 7};
  const std::vector<int32_t> too_large = {0, 8};
  CHECK_THROWS_AS(cross_entropy(context, logits, too_large, 1, 0, loss, {}), DataError);
  CHECK_THROWS_AS(cross_entropy(context, Tensor(DType::kBF16, {2, 8}), targets, 1, 0, loss, {}),
                  ShapeError);
  CHECK_THROWS_AS(cross_entropy(context, Tensor(DType::kF32, {3, 8}), targets, 1, 0, loss, {}),
                  ShapeError);
  CHECK_THROWS_AS(cross_entropy(context, logits, targets, 1, 0, Tensor(DType::kF32, {3}), {}),
                  ShapeError);
  CHECK_THROWS_AS(cross_entropy(context, logits, targets, 1, 0, loss, Tensor(DType::kF32, {2, 7})),
                  ShapeError);
  const AnyView overlaid(logits.view().data, DType::kBF16, {2, 8});
  CHECK_THROWS_AS(cross_entropy(context, logits, targets, 1, 0, loss, overlaid), ShapeError);
}

}  // namespace
}  // namespace degu::testing
