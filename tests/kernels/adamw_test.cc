// AdamW against its formula in double precision over several steps, and the blocks of the gradient
// norm.
#include "kernels/api/adamw.h"

#include "tests/support/device_testing.h"

namespace degu {
namespace {

using namespace degu::testing;

Tensor number(float value) {
  Tensor one(DType::kF32, {1});
  one.as<float>()[0] = value;
  return one;
}

TEST_CASE("adamw follows its formula step by step", "[adamw]") {
  const Tensor scale = number(0.5f);
  for_each_backend([&](Context& context) {
    for (DType weight_type : {DType::kF32, DType::kBF16}) {
      for (int64_t n : {0, 1, 15, 16, 33, 32769}) {
        Tensor master = random_tensor(DType::kF32, {n}, "master");
        Tensor m(DType::kF32, {n}), v(DType::kF32, {n}), weight(weight_type, {n});
        for (int64_t step = 1; step <= 3; ++step) {
          const Tensor grad =
              random_tensor(DType::kF32, {n}, "grad", 1.0, static_cast<uint64_t>(step));
          const AdamWStep s{.learning_rate = 0.01,
                            .beta1 = 0.9,
                            .beta2 = 0.95,
                            .eps = 1e-8,
                            .weight_decay = 0.1,
                            .step = step};
          Expected em, ev, ew;
          const double u = unit_roundoff(DType::kF32);
          for (int64_t i = 0; i < n; ++i) {
            const double g = 0.5 * element(grad, i);
            const double next_m = 0.9 * element(m, i) + 0.1 * g;
            const double next_v = 0.95 * element(v, i) + 0.05 * g * g;
            const double m_error = 4 * u * (std::fabs(element(m, i)) + std::fabs(g));
            const double direction = (next_m / (1 - std::pow(0.9, step))) /
                                     (std::sqrt(next_v / (1 - std::pow(0.95, step))) + 1e-8);
            const double w = element(master, i) - 0.01 * (direction + 0.1 * element(master, i));
            // m may cancel: its absolute error passes through the quotient.
            const double direction_error =
                16 * u * std::fabs(direction) + m_error / std::sqrt(next_v + 1e-30) * 4;
            em.push(next_m, m_error);
            ev.push(next_v, 8 * u * next_v);
            ew.push(w, 4 * u * std::fabs(element(master, i)) + 0.01 * direction_error +
                           u * std::fabs(w));
          }
          run(context, adamw, s, scale, master, m, v, grad, weight);
          check_close("m", m, em);
          check_close("v", v, ev);
          check_close("master", master, ew);
          for (int64_t i = 0; i < n; ++i) {
            const double rounded =
                weight_type == DType::kBF16
                    ? static_cast<double>(static_cast<float>(bf16(master.as<float>()[i])))
                    : element(master, i);
            if (element(weight, i) != rounded) FAIL("weight " << i << " is not the rounded master");
          }
        }
      }
    }
  });
}

TEST_CASE("adamw without a weight view, and on any number of threads, gives the same bits",
          "[adamw]") {
  const int64_t n =
      (int64_t{16} << 20) / 2 + 17;  // bf16 weights past the size where stores are streamed
  const AdamWStep s{.learning_rate = 0.01, .weight_decay = 0.1, .step = 2};
  const Tensor start = random_tensor(DType::kF32, {n}, "master");
  const Tensor grad = random_tensor(DType::kF32, {n}, "grad");
  for (Isa isa : supported_isas()) {
    Tensor first;
    for_each_thread_count(isa, [&](Context& context) {
      Tensor master = copy_of(start), m(DType::kF32, {n}), v(DType::kF32, {n}),
             weight(DType::kBF16, {n});
      run(context, adamw, s, AnyView{}, master, m, v, grad, weight);
      if (!first) first = copy_of(master);
      check_same_bits("master", master, first);
      int64_t wrong = 0;
      for (int64_t i = 0; i < n; ++i)
        wrong += !(weight.as<bf16>()[i] == bf16(master.as<float>()[i]));
      CHECK(wrong == 0);
      if (context.threads() == 1) {
        Tensor part = copy_of(start.view().rows(0, 1000));
        Tensor part_m(DType::kF32, {1000}), part_v(DType::kF32, {1000});
        run(context, adamw, s, AnyView{}, part, part_m, part_v, grad.view().rows(0, 1000),
            AnyView{});
        check_same_bits("the first thousand alone", part, master.view().rows(0, 1000));
      }
    });
  }
}

TEST_CASE("block_square_sums are the same on every backend, instruction set and number of threads",
          "[adamw]") {
  for (int64_t n :
       {int64_t{0}, int64_t{1}, int64_t{17}, kNormBlock, kNormBlock + 1, 20 * kNormBlock + 123}) {
    const Tensor grad = random_tensor(DType::kF32, {n}, "grad");
    const int64_t blocks = (n + kNormBlock - 1) / kNormBlock;
    Tensor first;
    for_each_backend_and_thread_count([&](Context& context) {
      Tensor sums(DType::kF64, {blocks});
      run(context, block_square_sums, grad, sums);
      for (int64_t b = 0; b < blocks; ++b) {
        double plain = 0;
        const int64_t begin = b * kNormBlock;
        for (int64_t i = begin; i < std::min(n, begin + kNormBlock); ++i) {
          plain += element(grad, i) * element(grad, i);
        }
        CHECK(std::fabs(sums.as<double>()[b] - plain) <=
              static_cast<double>(kNormBlock) * 0x1p-53 * plain);
      }
      if (!first) first = copy_of(sums);
      check_same_bits("block_sums", sums, first);
    });
  }
}

TEST_CASE("a scale of NaN skips the step", "[adamw]") {
  const Tensor nan = number(std::nanf(""));
  for_each_backend([&](Context& context) {
    for (DType moments : {DType::kF32, DType::kBF16}) {
      const int64_t n = 33;
      Tensor master = random_tensor(DType::kF32, {n}, "master"), weight(DType::kBF16, {n});
      Tensor m = random_tensor(moments, {n}, "m"), v = random_tensor(moments, {n}, "v");
      const Tensor grad = random_tensor(DType::kF32, {n}, "grad");
      const Tensor before[] = {copy_of(master), copy_of(m), copy_of(v), copy_of(weight)};
      run(context, adamw, AdamWStep{.learning_rate = 0.01, .weight_decay = 0.1}, nan, master, m, v,
          grad, weight);
      check_same_bits("master", master, before[0]);
      check_same_bits("m", m, before[1]);
      check_same_bits("v", v, before[2]);
      check_same_bits("weight", weight, before[3]);
    }
  });
}

TEST_CASE("sum_blocks is the same on every backend, instruction set and number of threads",
          "[adamw]") {
  for (int64_t n : {int64_t{0}, int64_t{1}, int64_t{1000}, kNormBlock, kNormBlock + 1,
                    3 * kNormBlock * kNormBlock + 5}) {
    Tensor sums(DType::kF64, {n});
    double plain = 0;
    for (int64_t i = 0; i < n; ++i) {
      sums.as<double>()[i] = 1.0 / static_cast<double>(3 * i + 1);
      plain += sums.as<double>()[i];
    }
    Tensor first;
    for_each_backend_and_thread_count([&](Context& context) {
      Tensor sum(DType::kF64, {1});
      sum.as<double>()[0] = 7;
      run(context, sum_blocks, sums, sum);
      CHECK(sum.as<double>()[0] == Approx(plain).epsilon(1e-10).margin(0));
      if (!first) first = copy_of(sum);
      check_same_bits("sum", sum, first);
    });
  }
}

TEST_CASE("gradient_scale clips, and is NaN where a sum is not finite", "[adamw]") {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  struct Case {
    double gradient, other, clip;
    float scale;
  };
  const Case cases[] = {{16, 1, 1, 0.25f},
                        {16, 1, 4, 1},
                        {16, 1, 0, 1},
                        {0, 0, 1, 1},
                        {0.5, 9, 1, 1},
                        {9, 1e300, 1, 1.0f / 3},
                        {inf, 1, 1, NAN},
                        {nan, 1, 1, NAN},
                        {1, inf, 0, NAN},
                        {16, -nan, 1, NAN},
                        {1e77, 0, 1, static_cast<float>(1 / std::sqrt(1e77))}};
  for_each_backend([&](Context& context) {
    for (const Case& c : cases) {
      INFO(c.gradient << " and " << c.other << ", clip " << c.clip);
      Tensor sums(DType::kF64, {2}), scale(DType::kF32, {1});
      sums.as<double>()[0] = c.gradient;
      sums.as<double>()[1] = c.other;
      run(context, gradient_scale, sums, c.clip, scale);
      const float got = scale.as<float>()[0];
      CHECK((std::isnan(c.scale) ? std::isnan(got) : got == c.scale));
    }
  });
}

TEST_CASE("adamw names what does not fit", "[adamw]") {
  Context context(test_options(default_isa(), 1));
  const Tensor a(DType::kF32, {4}), b(DType::kF32, {5}), c(DType::kBF16, {4});
  CHECK_THROWS_AS(adamw(context, {}, {}, a, a, b, a, AnyView{}), ShapeError);
  CHECK_THROWS_AS(adamw(context, {}, {}, c, a, a, a, AnyView{}), ShapeError);
  CHECK_THROWS_AS(adamw(context, {.step = 0}, {}, a, a, a, a, AnyView{}), ShapeError);
  const Tensor two(DType::kF64, {2});
  CHECK_THROWS_AS(block_square_sums(context, a, two), ShapeError);
  CHECK_THROWS_AS(adamw(context, {}, b, a, a, a, a, AnyView{}), ShapeError);
  CHECK_THROWS_AS(sum_blocks(context, two, two), ShapeError);
  CHECK_THROWS_AS(gradient_scale(context, two, 1, a), ShapeError);
  CHECK_THROWS_AS(gradient_scale(context, Tensor(DType::kF64, {0}), 1, number(1)), ShapeError);
}

}  // namespace
}  // namespace degu
