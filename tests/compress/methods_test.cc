// Methods on single matrices, against plain references.
#include "compress/method.h"

#include <catch2/catch.hpp>

#include "compress/awq.h"
#include "compress/gptq.h"
#include "compress/group_scale.h"
#include "tests/support/kernel_testing.h"

namespace degu {
namespace {

using namespace degu::testing;

ContextOptions options() {
  return {.threads = 2, .scratch_bytes = size_t{256} << 20};
}

struct Held {
  Held(Scheme scheme, const Shape& shape)
      : codes(scheme_info(scheme).weight, code_shape(scheme, shape)),
        scales(DType::kBF16, scale_shape(shape)),
        weight{.scheme = scheme, .shape = shape, .codes = codes, .scales = scales} {}
  Tensor codes, scales;
  QuantizedWeight weight;
};

// Inputs whose channels differ in size by powers of ten and depend on each other, as a model's do.
Tensor calibration_rows(int64_t rows, int64_t width) {
  Tensor x = random_tensor(DType::kF32, {rows, width}, "rows");
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t d = 1; d < width; ++d) {
      const double size = d % 7 == 0 ? 8.0 : 1.0 + 0.1 * static_cast<double>(d % 5);
      set_element(x, r * width + d,
                  size * element(x, r * width + d) + 0.6 * element(x, r * width + d - 1));
    }
  }
  return x;
}

Tensor hessian_of(const Tensor& x) {
  const int64_t width = x.shape()[1];
  Tensor h(DType::kF32, {width, width});
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t j = 0; j < width; ++j) {
      double sum = 0;
      for (int64_t r = 0; r < x.shape()[0]; ++r) {
        sum += element(x, r * width + i) * element(x, r * width + j);
      }
      set_element(h, i * width + j, sum);
    }
  }
  return h;
}

// sum over rows x and outputs f of (x · (ŵ_f - w_f))^2, from the rows themselves.
double product_error(const Tensor& x, const Tensor& w, const Tensor& rounded) {
  const int64_t width = w.shape()[1];
  double error = 0;
  for (int64_t r = 0; r < x.shape()[0]; ++r) {
    for (int64_t f = 0; f < w.shape()[0]; ++f) {
      double sum = 0;
      for (int64_t d = 0; d < width; ++d) {
        sum += element(x, r * width + d) *
               (element(rounded, f * width + d) - element(w, f * width + d));
      }
      error += sum * sum;
    }
  }
  return error;
}

TEST_CASE("every method gives codes of the scheme, and one that measures beats one that does not",
          "[quantize]") {
  Context context(options());
  for (int64_t width : {5, 64, 90}) {
    const Shape shape{6, width};
    const Tensor w = random_tensor(DType::kF32, shape, "w");
    const Tensor x = calibration_rows(3 * width, width);
    const Tensor hessian = hessian_of(x);
    const InputStatistics input{.hessian_DD = hessian, .rows = x.shape()[0]};
    for (const SchemeInfo& info : kSchemes) {
      if (!info.quantized()) continue;
      double plain_rtn = 0, product_rtn = 0;
      for (const QuantizationMethod& method : quantization_methods()) {
        INFO(info.name << " " << method.name << " width " << width);
        const Held held(info.scheme, shape);
        MatrixTask task{.name = "w", .value_FD = w, .out = held.weight};
        method.choose(context, input, {}, {&task, 1});
        const Tensor memory(
            DType::kU8, {static_cast<int64_t>(packed_bytes(context, info.scheme, 1, 6, width))});
        CHECK_NOTHROW(pack_weight(context, held.weight, memory.view().data));
        const Tensor back(DType::kF32, shape);
        dequantize_weight(context, held.weight, back);
        double plain = 0;
        for (int64_t i = 0; i < shape.elements(); ++i) {
          plain += std::pow(element(back, i) - element(w, i), 2);
        }
        const double product = product_error(x, w, back);
        if (method.name == "rtn") {
          plain_rtn = plain;
          product_rtn = product;
        }
        if (method.name == "mse") CHECK(plain <= plain_rtn * 1.0001);
        if (method.calibrated) CHECK(product <= product_rtn * 1.0001);
        Tensor bad = copy_of(w);
        set_element(bad, 3, INFINITY);
        task.value_FD = bad;
        CHECK_THROWS_AS(method.choose(context, input, {}, {&task, 1}), DataError);
      }
    }
  }
  CHECK_THROWS_AS(quantization_method("magic"), ConfigError);
  CHECK(default_method(Scheme::kW4A8).name == "awq");
  CHECK(default_method(Scheme::kW4A16).name == "awq");
  CHECK(default_method(Scheme::kW8A8).name == "rtn");
}

// The inverse by Gauss-Jordan elimination.
std::vector<double> inverse(std::vector<double> a, size_t n) {
  std::vector<double> b(n * n, 0.0);
  for (size_t i = 0; i < n; ++i) b[i * n + i] = 1;
  for (size_t i = 0; i < n; ++i) {
    const double pivot = a[i * n + i];
    for (size_t j = 0; j < n; ++j) {
      a[i * n + j] /= pivot;
      b[i * n + j] /= pivot;
    }
    for (size_t k = 0; k < n; ++k) {
      if (k == i) continue;
      const double factor = a[k * n + i];
      for (size_t j = 0; j < n; ++j) {
        a[k * n + j] -= factor * a[i * n + j];
        b[k * n + j] -= factor * b[i * n + j];
      }
    }
  }
  return b;
}

// Optimal brain surgery as in the textbook: after each column the inverse of what is left of the
// Hessian is computed anew, and all columns that are left move.
std::vector<uint8_t> surgery(const Tensor& w, int64_t row, const Tensor& hessian, double damping,
                             const std::vector<int64_t>& order, const Held& held) {
  const int64_t width = w.shape()[1];
  const Codes codes = scheme_info(held.weight.scheme).codes;
  std::vector<double> value(static_cast<size_t>(width));
  for (int64_t d = 0; d < width; ++d) value[static_cast<size_t>(d)] = element(w, row * width + d);
  std::vector<uint8_t> result(static_cast<size_t>(width));
  for (size_t done = 0; done < order.size(); ++done) {
    const std::vector<int64_t> left(order.begin() + static_cast<std::ptrdiff_t>(done), order.end());
    const size_t n = left.size();
    std::vector<double> h(n * n);
    for (size_t i = 0; i < n; ++i) {
      for (size_t j = 0; j < n; ++j) h[i * n + j] = element(hessian, left[i] * width + left[j]);
      h[i * n + i] += damping;
    }
    const std::vector<double> inverted = inverse(h, n);
    const int64_t d = left[0];
    const auto scale =
        static_cast<float>(held.scales.as<bf16>()[row * scale_groups(width) + d / kScaleGroup]);
    double& at = value[static_cast<size_t>(d)];
    const uint8_t code = code_of(codes, static_cast<float>(at), scale);
    result[static_cast<size_t>(d)] = code;
    const double error = (at - double{code_value(codes, code)} * scale) / inverted[0];
    for (size_t j = 0; j < n; ++j) {
      value[static_cast<size_t>(left[j])] -= error * inverted[j];
    }
  }
  return result;
}

TEST_CASE("GPTQ's codes are those of surgery done step by step", "[quantize]") {
  Context context(options());
  for (int64_t width : {7, 40, 70}) {
    const Tensor w = random_tensor(DType::kF32, {4, width}, "w");
    const Tensor hessian = hessian_of(calibration_rows(2 * width, width));
    double mean = 0;
    for (int64_t i = 0; i < width; ++i)
      mean += element(hessian, i * width + i) / static_cast<double>(width);
    for (const Scheme scheme : {Scheme::kW4A8, Scheme::kW8A8}) {
      for (const bool activation_order : {false, true}) {
        INFO("width " << width << " order " << activation_order);
        const MethodOptions how{.damping = 0.02, .activation_order = activation_order};
        const Held held(scheme, w.shape());
        const MatrixTask task{.name = "w", .value_FD = w, .out = held.weight};
        choose_gptq(context, {.hessian_DD = hessian, .rows = 2 * width}, how, {&task, 1});
        const GptqFactor factor = gptq_factor(hessian, how, "w");
        const Codes codes = scheme_info(scheme).codes;
        for (int64_t row = 0; row < 4; ++row) {
          const std::vector<uint8_t> expected =
              surgery(w, row, hessian, how.damping * mean, factor.order, held);
          const uint8_t* stored =
              static_cast<const uint8_t*>(held.codes.view().data) + row * code_bytes(codes, width);
          int64_t different = 0;
          for (int64_t d = 0; d < width; ++d) {
            different += stored_code(codes, stored, d) != expected[static_cast<size_t>(d)];
          }
          CHECK(different == 0);
        }
      }
    }
  }
}

TEST_CASE("GPTQ's factor is that of the damped inverse, in order of activations", "[quantize]") {
  const int64_t width = 33;
  const Tensor hessian = hessian_of(calibration_rows(20, width));  // singular without damping
  const MethodOptions how{.damping = 0.05};
  const GptqFactor factor = gptq_factor(hessian, how, "w");
  double mean = 0;
  for (int64_t i = 0; i < width; ++i)
    mean += element(hessian, i * width + i) / static_cast<double>(width);
  for (size_t i = 0; i + 1 < factor.order.size(); ++i) {
    CHECK(element(hessian, factor.order[i] * (width + 1)) >=
          element(hessian, factor.order[i + 1] * (width + 1)));
  }
  double worst = 0;  // of U^T U (H + damping) against the unit matrix
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t j = 0; j < width; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < width; ++k) {
        double inverse_ik = 0;
        for (int64_t m = 0; m <= std::min(i, k); ++m) {
          inverse_ik += factor.upper[static_cast<size_t>(m * width + i)] *
                        factor.upper[static_cast<size_t>(m * width + k)];
        }
        const double h = element(hessian, factor.order[static_cast<size_t>(k)] * width +
                                              factor.order[static_cast<size_t>(j)]);
        sum += inverse_ik * (h + (k == j ? how.damping * mean : 0));
      }
      worst = std::max(worst, std::fabs(sum - (i == j ? 1 : 0)));
    }
  }
  CHECK(worst < 1e-9);
  Tensor bad = copy_of(hessian);
  set_element(bad, 0, -1e6);
  CHECK_THROWS_WITH(gptq_factor(bad, how, "blocks.0.moe.up"), Catch::Contains("blocks.0.moe.up"));
}

TEST_CASE("AWQ's candidates start at one, and its error is that of the product", "[quantize]") {
  Context context(options());
  const int64_t width = 70;
  const Tensor x = calibration_rows(100, width);
  const Tensor hessian = hessian_of(x);
  const OutputError error(context, hessian);
  const Tensor w = random_tensor(DType::kF32, {5, width}, "w");
  const AwqTerm term{.value_FD = w, .codes = Codes::kInt4, .error = &error};
  std::vector<double> squares;
  for (int64_t d = 0; d < width; ++d) squares.push_back(element(hessian, d * width + d));

  const std::vector<float> none = awq_candidate(squares, 0, false);
  CHECK(std::all_of(none.begin(), none.end(), [](float s) { return s == 1; }));
  const Held held(Scheme::kW4A8, w.shape());
  const MatrixTask task{.name = "w", .value_FD = w, .out = held.weight};
  choose_rtn(context, {}, {}, {&task, 1});
  const Tensor back(DType::kF32, w.shape());
  dequantize_weight(context, held.weight, back);
  CHECK(folded_error(context, term, none) == Approx(product_error(x, w, back)).epsilon(1e-3));

  for (int step = 1; step <= kAwqSteps; ++step) {
    int exponent = 0;
    for (float s : awq_candidate(squares, step, true)) CHECK(std::frexp(s, &exponent) == 0.5f);
  }
  // With inputs that differ much in size some candidate is better than none.
  double least = folded_error(context, term, none);
  for (int step = 1; step <= kAwqSteps; ++step) {
    least = std::min(least, folded_error(context, term, awq_candidate(squares, step, false)));
  }
  CHECK(least < 0.95 * folded_error(context, term, none));
  // Channels that nothing reached do not matter and do no harm.
  squares[3] = 0;
  for (float s : awq_candidate(squares, kAwqSteps, false)) CHECK((std::isfinite(s) && s > 0));
  std::fill(squares.begin(), squares.end(), 0.0);
  CHECK(awq_candidate(squares, kAwqSteps, false) == none);
}

TEST_CASE("a group's error is that of its metric", "[quantize]") {
  const Tensor w = random_tensor(DType::kF32, {kScaleGroup}, "w");
  const std::span<const float> group(w.as<float>().data(), kScaleGroup);
  const Tensor hessian = hessian_of(calibration_rows(50, kScaleGroup));
  const GroupMetric metric{.block = hessian.as<float>().data(), .stride = kScaleGroup};
  for (Codes codes : {Codes::kInt4, Codes::kInt8, Codes::kE4M3}) {
    const float scale = covering_scale(codes, group);
    std::vector<double> d;
    for (float each : group) {
      d.push_back(double{each} - code_value(codes, code_of(codes, each, scale)) * scale);
    }
    double plain = 0, weighted = 0;
    for (size_t i = 0; i < d.size(); ++i) {
      plain += d[i] * d[i];
      for (size_t j = 0; j < d.size(); ++j) {
        weighted += d[i] * d[j] * element(hessian, static_cast<int64_t>(i * d.size() + j));
      }
    }
    CHECK(group_error(codes, group, scale, {}) == Approx(plain).epsilon(1e-4));
    CHECK(group_error(codes, group, scale, metric) == Approx(weighted).epsilon(1e-3));
    const float best = least_error_scale(codes, group, metric);
    CHECK(group_error(codes, group, best, metric) <= group_error(codes, group, scale, metric));
  }
}

}  // namespace
}  // namespace degu
