// SwiGLU: value over the whole range of the exponential, gradient, and rows beyond the ones asked
// for.
#include "kernels/api/swiglu.h"

#include "tests/support/device_testing.h"
#include "tests/support/gradient_check.h"

namespace degu {
namespace {

using namespace degu::testing;

double silu(double v) {
  return v / (1 + std::exp(-v));
}
double dsilu(double v) {
  const double s = 1 / (1 + std::exp(-v));
  return s * (1 + v * (1 - s));
}

TEST_CASE("swiglu and its gradient agree with a plain loop", "[swiglu]") {
  for_each_backend([&](Context& context) {
    for (DType type : {DType::kF32, DType::kBF16}) {
      for (int64_t width : {1, 5, 16, 33, 256}) {
        const int64_t rows = 9;
        const int64_t asked = 7;
        const Shape shape = {rows, width};
        const Tensor gate = random_tensor(type, shape, "gate", 4.0);
        const Tensor up = random_tensor(type, shape, "up");
        const Tensor dact = random_tensor(type, shape, "dact");
        Tensor act(type, shape), dgate(type, shape), dup(type, shape);
        for (const Tensor* each : {&act, &dgate, &dup}) fill_nan(*each);
        run(context, swiglu, gate, up, act, asked);
        run(context, swiglu_backward, dact, gate, up, dgate, dup, asked);
        // fp32: exp errs by 2 ulp, and every other step by one rounding. bf16: a sigmoid within
        // 2^-12.
        const double computed = type == DType::kBF16 ? 0x1p-12 : 16 * unit_roundoff(DType::kF32);
        const double u = computed + unit_roundoff(type);
        Expected ea, eg, eu;
        for (int64_t i = 0; i < asked * width; ++i) {
          const double g = element(gate, i), v = element(up, i), d = element(dact, i);
          ea.push(silu(g) * v, u * std::fabs(silu(g) * v) + 0x1p-120);
          eu.push(d * silu(g), u * std::fabs(d * silu(g)) + 0x1p-120);
          const double s = 1 / (1 + std::exp(-g));
          const double cancels =
              s + std::fabs(silu(g)) * (1 - s);  // s and silu (1 - s) differ in sign
          eg.push(d * v * dsilu(g), u * std::fabs(d * v * dsilu(g)) +
                                        computed * std::fabs(d * v) * cancels + 0x1p-120);
        }
        check_close("act", act.view().rows(0, asked), ea);
        check_close("dgate", dgate.view().rows(0, asked), eg);
        check_close("dup", dup.view().rows(0, asked), eu);
        for (int64_t i = asked * width; i < rows * width; ++i) {
          CHECK(std::isnan(element(act, i)));  // left untouched
          CHECK(std::isnan(element(dgate, i)));
          CHECK(std::isnan(element(dup, i)));
        }
        Tensor g = copy_of(gate), v = copy_of(up);
        run(context, swiglu, g, v, g, asked);
        check_same_bits("act in gate", g.view().rows(0, asked), act.view().rows(0, asked));
        g = copy_of(gate);
        run(context, swiglu_backward, dact, g, v, g, v, asked);
        check_same_bits("dgate in gate", g.view().rows(0, asked), dgate.view().rows(0, asked));
        check_same_bits("dup in up", v.view().rows(0, asked), dup.view().rows(0, asked));
        Tensor d = copy_of(dact);
        run(context, swiglu_backward, d, gate, up, dgate, d, asked);
        check_same_bits("dup in dact", d.view().rows(0, asked), dup.view().rows(0, asked));
      }
    }
  });
}

TEST_CASE("swiglu_backward is the derivative of swiglu", "[swiglu]") {
  for_each_backend([&](Context& context) {
    const Shape shape = {3, 21};
    const Tensor gate = random_tensor(DType::kF32, shape, "gate", 2.0);
    const Tensor up = random_tensor(DType::kF32, shape, "up");
    const Tensor dact = random_tensor(DType::kF32, shape, "dact");
    Tensor dgate(DType::kF32, shape), dup(DType::kF32, shape);
    run(context, swiglu_backward, dact, gate, up, dgate, dup, 3);
    const auto weight = values_of(dact);
    const auto objective = [&](const std::vector<double>& g, const std::vector<double>& v) {
      double sum = 0;
      for (size_t i = 0; i < g.size(); ++i) sum += weight[i] * silu(g[i]) * v[i];
      return sum;
    };
    check_gradient(
        "dgate", dgate, [&](const auto& at) { return objective(at, values_of(up)); },
        values_of(gate));
    check_gradient(
        "dup", dup, [&](const auto& at) { return objective(values_of(gate), at); }, values_of(up));
  });
}

TEST_CASE("swiglu saturates without overflow and keeps NaN", "[swiglu]") {
  for_each_backend([&](Context& context) {
    const std::vector<float> values = {-1e30f, -200.0f, -100.0f, -88.0f,
                                       88.0f,  200.0f,  1e30f,   std::nanf("")};
    const Shape shape = {1, static_cast<int64_t>(values.size())};
    Tensor gate(DType::kF32, shape), ones(DType::kF32, shape), act(DType::kF32, shape);
    Tensor dgate(DType::kF32, shape), dup(DType::kF32, shape);
    for (int64_t i = 0; i < shape[1]; ++i) {
      gate.as<float>()[i] = values[static_cast<size_t>(i)];
      ones.as<float>()[i] = 1.0f;
    }
    run(context, swiglu, gate, ones, act, 1);
    run(context, swiglu_backward, ones, gate, ones, dgate, dup, 1);
    for (int64_t i = 0; i < 4; ++i) {
      CHECK(std::fabs(element(act, i)) < 1e-30);
      CHECK(std::fabs(element(dgate, i)) < 1e-30);
    }
    for (int64_t i = 4; i < 7; ++i) {
      CHECK(element(act, i) == element(gate, i));
      CHECK(element(dgate, i) == 1.0);
      CHECK(element(dup, i) == element(gate, i));
    }
    CHECK(std::isnan(element(act, 7)));
    CHECK(std::isnan(element(dgate, 7)));
    CHECK(std::isnan(element(dup, 7)));
  });
}

TEST_CASE("swiglu gives the same bits on any number of threads and at any size", "[swiglu]") {
  const int64_t width = 512;
  const int64_t rows =
      (int64_t{16} << 20) / width / 2 + 5;  // past the size where stores are streamed
  const Tensor gate = random_tensor(DType::kBF16, {rows, width}, "gate", 3.0);
  const Tensor up = random_tensor(DType::kBF16, {rows, width}, "up");
  for (Isa isa : supported_isas()) {
    Tensor first_act, first_dgate;
    for_each_thread_count(isa, [&](Context& context) {
      Tensor act(DType::kBF16, {rows, width}), dgate(DType::kBF16, {rows, width}),
          dup(DType::kBF16, {rows, width});
      run(context, swiglu, gate, up, act, rows);
      run(context, swiglu_backward, up, gate, up, dgate, dup, rows);
      if (!first_act) {
        first_act = copy_of(act);
        first_dgate = copy_of(dgate);
      }
      check_same_bits("act", act, first_act);
      check_same_bits("dgate", dgate, first_dgate);
      Tensor row(DType::kBF16, {1, width});
      run(context, swiglu, gate.view().rows(rows - 1, 1), up.view().rows(rows - 1, 1), row, 1);
      check_same_bits("the last row alone", act.view().rows(rows - 1, 1), row);
    });
  }
}

TEST_CASE("swiglu names what does not fit", "[swiglu]") {
  Context context(test_options(default_isa(), 1));
  const Tensor a(DType::kF32, {4, 8}), b(DType::kF32, {4, 7});
  CHECK_THROWS_AS(swiglu(context, a, b, a, 4), ShapeError);
  CHECK_THROWS_WITH(swiglu(context, a, a, a, 5), Catch::Contains("rows is 5"));
}

}  // namespace
}  // namespace degu
