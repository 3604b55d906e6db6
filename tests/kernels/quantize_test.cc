// Codes, scales and what they stand for.
#include "kernels/api/quantize.h"

#include <vector>

#include "kernels/api/weight.h"
#include "tests/support/device_testing.h"

namespace degu {
namespace {

using namespace degu::testing;

constexpr Codes kAllCodes[] = {Codes::kInt8, Codes::kInt4, Codes::kE4M3};
constexpr int64_t kWidths[] = {1, 3, 31, 32, 33, 64, 96, 97};

TEST_CASE("E4M3 codes are the nearest of all codes", "[quantize]") {
  std::vector<double> values;
  for (int code = 0; code < 0x7f; ++code) {
    const float value = e4m3_value(static_cast<uint8_t>(code));
    CHECK(e4m3_code(value) == code);
    CHECK(e4m3_code(-value) == (code | 0x80));
    values.push_back(value);
  }
  CHECK(values[1] == 0x1p-9);
  CHECK(values[8] == 0x1p-6);
  CHECK(values[0x38] == 1);
  CHECK(values.back() == 448);
  const RandomStream stream(3, "e4m3");
  for (uint64_t i = 0; i < 20000; ++i) {
    const auto x = static_cast<float>(std::exp2(12 * stream.uniform(i) - 11));
    const double got = e4m3_value(e4m3_code(x));
    double best = INFINITY;
    for (double value : values) best = std::min(best, std::fabs(value - x));
    CHECK(std::fabs(got - x) == best);
  }
  CHECK(e4m3_value(e4m3_code(1e9f)) == 448);
  CHECK(e4m3_value(e4m3_code(0x1.1p0f)) == 1);        // a tie: the even fraction
  CHECK(e4m3_value(e4m3_code(0x1.3p0f)) == 0x1.4p0);  // a tie: the even fraction
}

void check_rounding(Context& context) {
  for (const SchemeInfo& info : kSchemes) {
    if (!info.quantized()) continue;
    for (int64_t width : kWidths) {
      INFO(info.name << " width " << width);
      const Tensor w = random_tensor(DType::kF32, {2, 5, width}, "w");
      const Tensor codes(info.weight, code_shape(info.scheme, w.shape()));
      const Tensor scales(DType::kBF16, scale_shape(w.shape()));
      const QuantizedWeight quantized{info.scheme, w.shape(), codes, scales};
      run(context, quantize_weight, w, quantized);
      const Tensor back(DType::kF32, w.shape());
      run(context, dequantize_weight, quantized, back);
      for (int64_t r = 0; r < 10; ++r) {
        for (int64_t i = 0; i < width; ++i) {
          const double scale = element(scales, r * scale_groups(width) + i / kScaleGroup);
          const double value = element(w, r * width + i);
          // Half a step; E4M3 has steps of 1/8 of the binade, 2^-9 at the bottom. The rounded scale
          // may leave the largest magnitude half a percent outside.
          const double step =
              info.codes == Codes::kE4M3 ? std::max(std::fabs(value) / 8, 0x1p-9 * scale) : scale;
          const double tolerance = 0.5 * step + 0.005 * std::fabs(value);
          CHECK(std::fabs(element(back, r * width + i) - value) <= tolerance);
        }
      }
    }
  }
}

TEST_CASE("weights round to the nearest code of their group's scale", "[quantize]") {
  for_each_backend(check_rounding);
}

// Codes and scales are what a file holds: the same from every backend.
TEST_CASE("every backend quantizes to the same bits", "[quantize]") {
  for (const SchemeInfo& info : kSchemes) {
    if (!info.quantized()) continue;
    for (int64_t width : kWidths) {
      INFO(info.name << " width " << width);
      const Tensor w = random_tensor(DType::kF32, {3, width}, "w", 1e-3);
      for (int64_t i = 0; i < width; ++i) set_element(w, width + i, 1e-41 * static_cast<double>(i));
      Tensor first_codes, first_scales;
      for_each_backend([&](Context& context) {
        const Tensor codes(info.weight, code_shape(info.scheme, w.shape()));
        const Tensor scales(DType::kBF16, scale_shape(w.shape()));
        run(context, quantize_weight, w, QuantizedWeight{info.scheme, w.shape(), codes, scales});
        if (!first_codes) {
          first_codes = copy_of(codes);
          first_scales = copy_of(scales);
        }
        check_same_bits("codes", codes, first_codes);
        check_same_bits("scales", scales, first_scales);
      });
    }
  }
}

TEST_CASE("groups without a usable scale are zeros", "[quantize]") {
  for (Codes codes : kAllCodes) {
    CHECK(weight_scale(codes, 0) == 0);
    CHECK(weight_scale(codes, 1e-38f) == 0);
    CHECK(code_value(codes, code_of(codes, 1e-38f, 0)) == 0);
  }
}

TEST_CASE("rows are quantized against their group's largest magnitude", "[quantize]") {
  for_each_backend([&](Context& context) {
    for (DType type : {DType::kF32, DType::kBF16}) {
      for (int64_t width : kWidths) {
        constexpr int64_t kRows = 9;
        const Tensor x = random_tensor(type, {kRows, width}, "x");
        const int64_t groups = scale_groups(width);
        for (int64_t i = 0; i < width; ++i) set_element(x, 2 * width + i, 0);
        for (int64_t i = 0; i < width; ++i) set_element(x, 3 * width + i, 0x1p-120);
        set_element(x, 4 * width, INFINITY);
        set_element(x, 5 * width + width - 1, std::nan(""));
        Arena arena(size_t{1} << 20);
        const Activation out = Activation::take(arena, kRows, width);
        std::memset(out.values.data, 0x55, out.values.bytes());
        run(context, quantize_rows, x, out);
        for (int64_t r = 0; r < kRows; ++r) {
          for (int64_t g = 0; g < groups; ++g) {
            INFO(dtype_name(type) << " width " << width << " row " << r << " group " << g);
            double most = 0;
            bool finite = true;
            for (int64_t i = g * 32; i < std::min(width, g * 32 + 32); ++i) {
              finite &= std::isfinite(element(x, r * width + i));
              most = std::max(most, std::fabs(element(x, r * width + i)));
            }
            const double scale = element(out.scales, r * groups + g);
            if (!finite) {
              CHECK(std::isnan(scale));
            } else {
              CHECK(scale == (most < 0x1p-100 ? 0 : static_cast<float>(most) / 127.0f));
            }
            for (int64_t i = g * 32; i < g * 32 + 32; ++i) {
              const double code = element(out.values, r * groups * 32 + i);
              if (i >= width || !finite || scale == 0) {
                CHECK(code == 0);
              } else {
                CHECK(std::fabs(code) <= 127);
                CHECK(std::fabs(code - element(x, r * width + i) / scale) <= 0.50002);
              }
            }
          }
        }
      }
    }
  });
}

TEST_CASE("quantized weights that make no sense are refused", "[quantize]") {
  Context context(test_options(default_isa(), 1));
  const Tensor w = random_tensor(DType::kF32, {4, 64}, "w");
  for (const SchemeInfo& info : kSchemes) {
    if (!info.quantized()) continue;
    const Tensor codes(info.weight, code_shape(info.scheme, w.shape()));
    const Tensor scales(DType::kBF16, scale_shape(w.shape()));
    QuantizedWeight weight{info.scheme, w.shape(), codes, scales};
    CHECK_NOTHROW(quantize_weight(context, w, weight));
    const Tensor memory(DType::kU8,
                        {static_cast<int64_t>(packed_bytes(context, info.scheme, 1, 4, 64))});
    CHECK_NOTHROW(pack_weight(context, weight, memory.view().data));
    auto* bytes = static_cast<uint8_t*>(codes.view().data);
    const uint8_t before = bytes[70];
    bytes[70] = info.codes == Codes::kInt8 ? 0x80 : info.codes == Codes::kInt4 ? 0x07 : 0xff;
    CHECK_THROWS_AS(pack_weight(context, weight, memory.view().data), DataError);
    bytes[70] = before;
    weight.shape = {4, 66};
    CHECK_THROWS_AS(pack_weight(context, weight, memory.view().data), ShapeError);
    weight.shape = w.shape();
    const Tensor bad = copy_of(w);
    set_element(bad, 5, std::nan(""));
    CHECK_THROWS_AS(quantize_weight(context, bad, weight), DataError);
    weight.scheme = Scheme::kBf16;
    CHECK_THROWS_AS(quantize_weight(context, w, weight), ShapeError);
  }
}

}  // namespace
}  // namespace degu
