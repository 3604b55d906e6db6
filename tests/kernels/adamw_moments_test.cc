// AdamW with bf16 moments: the fp32 step, then the rounding of kernels/common/stochastic_rounding.h
// by each element's place in its tensor.
#include <array>
#include <limits>

#include "base/random.h"
#include "kernels/api/adamw.h"
#include "kernels/common/stochastic_rounding.h"
#include "tests/support/device_testing.h"

namespace degu {
namespace {

using namespace degu::testing;

constexpr uint64_t kSeed = 7;
constexpr std::string_view kTensor = "blocks.0.moe.up";

struct State {
  Tensor master, m, v;
};

// Masters and moments in the middle of a run; the third and fourth v are subnormal and infinite.
State state_of(int64_t n, DType moments) {
  State s{random_tensor(DType::kF32, {n}, "master"), Tensor(moments, {n}), Tensor(moments, {n})};
  const Tensor m = random_tensor(DType::kBF16, {n}, "m"), v = random_tensor(DType::kBF16, {n}, "v");
  for (int64_t i = 0; i < n; ++i) {
    const auto mean = static_cast<float>(m.as<bf16>()[i]);
    float square = std::fabs(static_cast<float>(v.as<bf16>()[i]));
    if (i == 2) square = 0x1p-130f;
    if (i == 3) square = std::numeric_limits<float>::infinity();
    if (moments == DType::kBF16) {
      s.m.as<bf16>()[i] = bf16(mean);
      s.v.as<bf16>()[i] = bf16(square);
    } else {
      s.m.as<float>()[i] = mean;
      s.v.as<float>()[i] = square;
    }
  }
  return s;
}

AdamWStep step_at(int64_t step, int64_t first_element) {
  return {.learning_rate = 0.01,
          .beta2 = 0.999,
          .weight_decay = 0.1,
          .step = step,
          .seed = kSeed,
          .tensor = kTensor,
          .first_element = first_element};
}

const Tensor& half_scale() {
  static const Tensor scale = [] {
    Tensor one(DType::kF32, {1});
    one.as<float>()[0] = 0.5f;
    return one;
  }();
  return scale;
}

// The noise word of an element, straight from its definition.
uint32_t noise_at(int64_t step, int64_t index, std::string_view tensor = kTensor) {
  const RandomStream stream(kSeed, "adamw/" + std::string(tensor), static_cast<uint64_t>(step));
  const uint64_t keys = stream.bits64(static_cast<uint64_t>(index) >> 32);
  return noise_word(static_cast<uint32_t>(index), static_cast<uint32_t>(keys >> 32),
                    static_cast<uint32_t>(keys));
}

int64_t different(const Tensor& rounded, const std::vector<bf16>& expected) {
  int64_t count = 0;
  for (int64_t i = 0; i < rounded.view().elements(); ++i) {
    const bf16 is = rounded.as<bf16>()[i], must = expected[static_cast<size_t>(i)];
    const bool nan = std::isnan(static_cast<float>(must));
    count += nan ? !std::isnan(static_cast<float>(is)) : !(is == must);
  }
  return count;
}

TEST_CASE("bf16 moments are those of the fp32 step, rounded by their places", "[adamw]") {
  for_each_backend_and_thread_count([](Context& context) {
    for (int64_t n : {1, 15, 33, 70001}) {
      for (int64_t first : {int64_t{0}, int64_t{12345}, (int64_t{1} << 32) - 20}) {
        Tensor grad = random_tensor(DType::kF32, {n}, "grad");
        if (n > 5) grad.as<float>()[5] = std::numeric_limits<float>::quiet_NaN();
        if (n > 2) grad.as<float>()[2] = 0;  // v stays subnormal
        const AdamWStep s = step_at(3, first);
        State plain = state_of(n, DType::kF32), half = state_of(n, DType::kBF16);
        Tensor plain_weight(DType::kBF16, {n}), weight(DType::kBF16, {n});
        run(context, adamw, s, half_scale(), plain.master, plain.m, plain.v, grad, plain_weight);
        run(context, adamw, s, half_scale(), half.master, half.m, half.v, grad, weight);
        check_same_bits("master", half.master, plain.master);
        check_same_bits("weight", weight, plain_weight);
        std::vector<bf16> m, v;
        for (int64_t i = 0; i < n; ++i) {
          const uint32_t word = noise_at(3, first + i);
          m.push_back(stochastic_bf16(plain.m.as<float>()[i], word & 0xffffu));
          v.push_back(stochastic_bf16(plain.v.as<float>()[i], word >> 16));
        }
        INFO("n " << n << ", first element " << first);
        CHECK(different(half.m, m) == 0);
        CHECK(different(half.v, v) == 0);
      }
    }
  });
}

TEST_CASE("bf16 moments do not know how their tensor was cut", "[adamw]") {
  const int64_t n = 100000, first = (int64_t{5} << 32) - 50000;
  const Tensor grad = random_tensor(DType::kF32, {n}, "grad");
  for_each_backend([&](Context& context) {
    State whole = state_of(n, DType::kBF16);
    run(context, adamw, step_at(9, first), half_scale(), whole.master, whole.m, whole.v, grad,
        AnyView{});
    State cut = state_of(n, DType::kBF16);
    const std::array<int64_t, 7> cuts = {0, 1, 18, 1000, 49999, 70001, n};
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      const auto part = [&](const Tensor& all) {
        return all.view().rows(cuts[i], cuts[i + 1] - cuts[i]);
      };
      run(context, adamw, step_at(9, first + cuts[i]), half_scale(), part(cut.master), part(cut.m),
          part(cut.v), part(grad), AnyView{});
    }
    check_same_bits("master", cut.master, whole.master);
    check_same_bits("m", cut.m, whole.m);
    check_same_bits("v", cut.v, whole.v);
  });
}

TEST_CASE("noise words are even, and those of neighbours, steps and tensors independent",
          "[adamw]") {
  // Means of `kDraws` fair values within five of their standard deviations.
  constexpr int64_t kDraws = 100000;
  const double five_sigma = 5 / std::sqrt(static_cast<double>(kDraws));
  std::array<double, 32> ones{};
  double neighbours = 0, steps = 0, tensors = 0, halves = 0;
  // Uniform in [0, 2^16), to mean 0 and variance 1.
  const auto centred = [](uint32_t half) {
    return (half + 0.5 - 32768) / (65536 / std::sqrt(12.0));
  };
  const auto m = [&](uint32_t word) { return centred(noise_of_m(word)); };
  const auto v = [&](uint32_t word) { return centred(noise_of_v(word)); };
  for (int64_t i = 0; i < kDraws; ++i) {
    const uint32_t word = noise_at(1, i);
    for (size_t bit = 0; bit < ones.size(); ++bit) ones[bit] += (word >> bit & 1u) ? 1 : -1;
    neighbours += v(word) * v(noise_at(1, i + 1));
    steps += v(word) * v(noise_at(2, i));
    tensors += v(word) * v(noise_at(1, i, "blocks.1.moe.up"));
    halves += m(word) * v(word);
  }
  for (size_t bit = 0; bit < ones.size(); ++bit) {
    INFO("bit " << bit);
    CHECK(std::fabs(ones[bit] / kDraws) < five_sigma);
  }
  for (double sum : {neighbours, steps, tensors, halves}) {
    CHECK(std::fabs(sum / kDraws) < five_sigma);
  }
  // One element over the steps of a run.
  double over_steps = 0, twins = 0;
  for (int64_t step = 1; step <= kDraws; ++step) {
    over_steps += v(noise_at(step, 77));
    twins += v(noise_at(step, 77)) * v(noise_at(step + 1, 77));
  }
  CHECK(std::fabs(over_steps / kDraws) < five_sigma);
  CHECK(std::fabs(twins / kDraws) < five_sigma);
}

TEST_CASE("rounding is right on average", "[adamw]") {
  constexpr int64_t kDraws = 200000;
  const float infinity = std::numeric_limits<float>::infinity();
  for (float lower : {1.0f, -3.0f, 0x1.fep-20f, 0x1p-130f}) {
    const uint32_t word = std::bit_cast<uint32_t>(lower);
    for (uint32_t below : {0u, 1u, 0x1234u, 0x8000u, 0xf000u, 0xffffu}) {  // of 2^16
      const auto value = std::bit_cast<float>(word + below);
      int64_t ups = 0;
      for (int64_t i = 0; i < kDraws; ++i) {
        const bf16 rounded = stochastic_bf16(value, noise_of_v(noise_at(1, i)));
        ups += rounded.bits != word >> 16;
        if (rounded.bits - (word >> 16) > 1u) FAIL("no neighbour of " << value);
      }
      const double p = below / 65536.0;
      const double sigma = std::sqrt(p * (1 - p) / kDraws);
      CHECK(std::fabs(static_cast<double>(ups) / kDraws - p) <= 5 * sigma);
    }
  }
  CHECK(static_cast<float>(stochastic_bf16(infinity, 0xffff)) == infinity);
  CHECK(std::isnan(
      static_cast<float>(stochastic_bf16(std::bit_cast<float>(uint32_t{0x7fffffff}), 0xffff))));
}

TEST_CASE("the mean square of a long run arrives where rounding to nearest stands still",
          "[adamw]") {
  constexpr int64_t kN = 1024, kSteps = 3000;
  bf16 nearest(0.0f);
  for (int64_t step = 1; step <= kSteps; ++step) {
    nearest = bf16(0.999f * static_cast<float>(nearest) + 0.001f);
  }
  CHECK(static_cast<float>(nearest) == 0.25f);
  Context context(test_options(default_isa(), 1));
  Tensor master(DType::kF32, {kN}), m(DType::kBF16, {kN}), v(DType::kBF16, {kN});
  Tensor grad(DType::kF32, {kN});
  for (int64_t i = 0; i < kN; ++i) grad.as<float>()[i] = 2.0f;
  for (int64_t step = 1; step <= kSteps; ++step) {
    adamw(context, step_at(step, 0), half_scale(), master, m, v, grad, AnyView{});
  }
  double mean_m = 0, mean_v = 0, square_v = 0;
  for (int64_t i = 0; i < kN; ++i) {
    mean_m += element(m, i) / kN;
    mean_v += element(v, i) / kN;
    square_v += element(v, i) * element(v, i) / kN;
  }
  const double expected = 1 - std::pow(0.999, kSteps);
  const double spread = std::sqrt(square_v - mean_v * mean_v);
  CHECK(std::fabs(mean_v - expected) < 5 * spread / std::sqrt(kN));
  CHECK(spread < 0.1 * expected);
  CHECK(mean_m == Approx(1.0).epsilon(1e-2));
}

TEST_CASE("adamw names moments that do not fit", "[adamw]") {
  Context context(test_options(default_isa(), 1));
  const Tensor a(DType::kF32, {4}), half(DType::kBF16, {4}), code(DType::kI8, {4});
  CHECK_THROWS_AS(adamw(context, {}, {}, a, half, a, a, AnyView{}), ShapeError);
  CHECK_THROWS_AS(adamw(context, {}, {}, a, code, code, a, AnyView{}), ShapeError);
  CHECK_THROWS_AS(adamw(context, {}, {}, half, half, half, a, AnyView{}), ShapeError);
  CHECK_THROWS_AS(adamw(context, {.first_element = -1}, {}, a, half, half, a, AnyView{}),
                  ShapeError);
}

}  // namespace
}  // namespace degu
