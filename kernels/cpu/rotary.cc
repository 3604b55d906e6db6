#include "kernels/tables/rotary.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd.h"

namespace degu {
namespace {

// Rows of work per task: enough to hide the cost of handing it out.
constexpr int64_t kRowsPerTask = 32;

// cos and sin of position * frequency in double precision, rounded to fp32, for a run of
// frequencies. x = n * pi/2 + r with |r| <= pi/4; pi/2 in two parts, the first of 33 bits so that n
// times it is exact for n < 2^20; Taylor series to r^14 and r^13 (the next terms are below 1e-15
// and 2e-14). Written without branches or calls, so that the compiler turns the loop into vector
// code.
void cos_sin_row(double position, const double* frequency, int64_t count, float* cosine,
                 float* sine) {
  constexpr double kRounder =
      6755399441055744.0;  // 1.5 * 2^52: adding it leaves no bit below the point
  constexpr double kTwoOverPi = 0.63661977236758134308;
  constexpr double kHalfPiHigh = 0x1.921fb544p+0;
  constexpr double kHalfPiLow = 0x1.0b4611a626331p-34;
  for (int64_t i = 0; i < count; ++i) {
    const double x = position * frequency[i];
    const double shifted = x * kTwoOverPi + kRounder;
    const double n = shifted - kRounder;
    const auto quadrant = std::bit_cast<uint64_t>(shifted);
    const double r = (x - n * kHalfPiHigh) - n * kHalfPiLow;
    const double z = r * r;
    double s = 1.0 / 6227020800.0;
    s = s * z - 1.0 / 39916800.0;
    s = s * z + 1.0 / 362880.0;
    s = s * z - 1.0 / 5040.0;
    s = s * z + 1.0 / 120.0;
    s = s * z - 1.0 / 6.0;
    s = r + r * z * s;
    double c = -1.0 / 87178291200.0;
    c = c * z + 1.0 / 479001600.0;
    c = c * z - 1.0 / 3628800.0;
    c = c * z + 1.0 / 40320.0;
    c = c * z - 1.0 / 720.0;
    c = c * z + 1.0 / 24.0;
    c = c * z - 0.5;
    c = 1.0 + z * c;
    // Quadrant 0: (c, s); 1: (-s, c); 2: (-c, -s); 3: (s, -c).
    const uint64_t swap = 0 - (quadrant & 1);  // all ones when the two change places
    const auto cb = std::bit_cast<uint64_t>(c);
    const auto sb = std::bit_cast<uint64_t>(s);
    const uint64_t cos_sign = ((quadrant + 1) & 2) << 62;
    const uint64_t sin_sign = (quadrant & 2) << 62;
    cosine[i] = static_cast<float>(std::bit_cast<double>(((cb & ~swap) | (sb & swap)) ^ cos_sign));
    sine[i] = static_cast<float>(std::bit_cast<double>(((sb & ~swap) | (cb & swap)) ^ sin_sign));
  }
}

// (low, high) -> (low * cos - high * sin, high * cos + low * sin) for one head.
template <class T>
void rotate_head(T* low, T* high, const float* cosine, const float* sine, int64_t half, VecF sign) {
  constexpr int64_t kLanes = VecF::kLanes;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const VecF a = load(low + i);
    const VecF b = load(high + i);
    const VecF c = load(cosine + i);
    const VecF s = load(sine + i) * sign;
    store(low + i, a * c - b * s);
    store(high + i, b * c + a * s);
  }
  if (i < half) {
    const int n = static_cast<int>(half - i);
    const VecF a = load(low + i, n);
    const VecF b = load(high + i, n);
    const VecF c = load(cosine + i, n);
    const VecF s = load(sine + i, n) * sign;
    store(low + i, a * c - b * s, n);
    store(high + i, b * c + a * s, n);
  }
}

template <class T>
void rotate_rows(Context& context, View<T> x_THA, std::span<const int32_t> positions_T,
                 int64_t first_position, bool by_position, const float* table, bool inverse) {
  const int64_t rows = x_THA.dim(0);
  const int64_t heads = x_THA.dim(1);
  const int64_t width = x_THA.dim(2);
  const int64_t half = width / 2;
  const VecF sign = broadcast(inverse ? -1.0f : 1.0f);
  context.parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    const int64_t end = std::min(rows, (task + 1) * kRowsPerTask);
    for (int64_t t = task * kRowsPerTask; t < end; ++t) {
      const int64_t entry = by_position ? positions_T[static_cast<size_t>(t)] - first_position : t;
      const float* cosine = table + entry * width;
      T* head = x_THA.row(t);
      for (int64_t h = 0; h < heads; ++h, head += width) {
        rotate_head(head, head + half, cosine, cosine + half, half, sign);
      }
    }
  });
}

void rotate(Context& context, AnyView x_THA, const RowNumbers& numbers, double theta,
            bool inverse) {
  const std::span<const int32_t> positions_T = numbers.host;
  const int64_t rows = x_THA.dim(0);
  const int64_t width = x_THA.dim(2);
  const int64_t half = width / 2;
  const auto [low, high] = std::minmax_element(positions_T.begin(), positions_T.end());
  const int64_t first = *low;
  // Sequences share positions when training, so the table has an entry per position; when serving,
  // positions lie far apart and each row has its own. An entry's bits depend on its position alone.
  const int64_t range = *high - first + 1;
  const bool by_position = range <= rows;
  const int64_t entries = by_position ? range : rows;

  ScratchScope scope(context.scratch());
  double* frequency = context.scratch().take<double>({half}).data();
  for (int64_t i = 0; i < half; ++i) {
    frequency[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(width));
  }
  float* table = context.scratch().take<float>({entries, width}).data();
  context.parallel_for((entries + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int) {
    const int64_t end = std::min(entries, (task + 1) * kRowsPerTask);
    for (int64_t e = task * kRowsPerTask; e < end; ++e) {
      const int64_t position = by_position ? first + e : positions_T[static_cast<size_t>(e)];
      float* row = table + e * width;
      cos_sin_row(static_cast<double>(position), frequency, half, row, row + half);
    }
  });
  if (x_THA.dtype == DType::kF32) {
    rotate_rows(context, x_THA.as<float>(), positions_T, first, by_position, table, inverse);
  } else {
    rotate_rows(context, x_THA.as<bf16>(), positions_T, first, by_position, table, inverse);
  }
}

}  // namespace

template <>
const RotaryKernels cpu::Table<RotaryKernels, cpu::kThisIsa>::value = {&rotate};

}  // namespace degu
