#include "tensor/dtype.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

#include "base/random.h"

namespace {

using degu::bf16;
using degu::DType;

TEST_CASE("sizes and names") {
  CHECK(degu::size_of(DType::kF32) == 4);
  CHECK(degu::size_of(DType::kBF16) == 2);
  CHECK(degu::size_of(DType::kI8) == 1);
  CHECK(degu::size_of(DType::kI64) == 8);
  CHECK(degu::dtype_name(DType::kBF16) == "bf16");
  CHECK(degu::dtype_of<bf16> == DType::kBF16);
  CHECK(degu::dtype_of<double> == DType::kF64);
  CHECK(sizeof(bf16) == 2);
}

TEST_CASE("bf16 keeps what it can represent and rounds the rest to nearest even") {
  for (float exact : {0.0f, -0.0f, 1.0f, -2.5f, 0x1.fep+100f, 0x1p-126f, 0x1p-133f}) {
    CHECK(float(bf16(exact)) == exact);
    CHECK(std::signbit(float(bf16(exact))) == std::signbit(exact));
  }
  CHECK(float(bf16(1.0f + 0x1p-8f)) == 1.0f);                // a tie, to the even neighbour below
  CHECK(float(bf16(1.0f + 3 * 0x1p-8f)) == 1.0f + 0x1p-6f);  // a tie, to the even neighbour above
  CHECK(float(bf16(1.0f + 0x1.01p-8f)) == 1.0f + 0x1p-7f);   // just above a tie
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(float(bf16(infinity)) == infinity);
  CHECK(float(bf16(-infinity)) == -infinity);
  CHECK(float(bf16(std::numeric_limits<float>::max())) == infinity);
}

TEST_CASE("NaN stays NaN, whatever its payload") {
  for (uint32_t payload : {0x7f800001u, 0x7fffffffu, 0xffc00000u, 0xff800001u}) {
    CHECK(std::isnan(float(bf16(std::bit_cast<float>(payload)))));
  }
}

TEST_CASE("rounding picks the nearest of all bf16 values") {
  const degu::RandomStream random(1, "bf16");
  for (uint64_t i = 0; i < 20'000; ++i) {
    const auto word =
        static_cast<uint32_t>(random.bits64(i)) & 0xbf7fffffu;  // finite, no overflow near the top
    const auto value = std::bit_cast<float>(word);
    const bf16 rounded(value);
    const double error = std::abs(double(float(rounded)) - value);
    for (int step : {-1, 1}) {
      bf16 neighbour;
      neighbour.bits = static_cast<uint16_t>(rounded.bits + step);
      const double other = float(neighbour);
      if (!std::isfinite(other)) continue;
      REQUIRE(error <= std::abs(other - value));
    }
  }
}

}  // namespace
