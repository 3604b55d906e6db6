#include "kernels/tables/rmsnorm.h"

#include <vector>

#include "kernels/common/tree.h"
#include "kernels/cpu/duo.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/sweep.h"

namespace degu {
namespace {

// sum_i f(i) over a row, in four interleaved partial sums: an order fixed by `width` alone.
// `full(i)` and `part(i, count)` give the summands of one vector.
template <class Full, class Part>
float row_sum(int64_t width, Full&& full, Part&& part) {
  constexpr int64_t kLanes = VecF::kLanes;
  VecF sum0 = zero(), sum1 = zero(), sum2 = zero(), sum3 = zero();
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
    sum0 = full(sum0, i);
    sum1 = full(sum1, i + kLanes);
    sum2 = full(sum2, i + 2 * kLanes);
    sum3 = full(sum3, i + 3 * kLanes);
  }
  for (; i + kLanes <= width; i += kLanes) sum0 = full(sum0, i);
  if (i < width) sum1 = part(sum1, i, static_cast<int>(width - i));
  return sum_lanes((sum0 + sum1) + (sum2 + sum3));
}

inline float square_sum(const float* row, int64_t width) {
  return row_sum(
      width,
      [&](VecF sum, int64_t i) {
        const VecF v = load(row + i);
        return fma(v, v, sum);
      },
      [&](VecF sum, int64_t i, int count) {
        const VecF v = load(row + i, count);
        return fma(v, v, sum);
      });
}

// Two elements per lane at a time; what is left of the row one per lane.
inline float square_sum(const bf16* row, int64_t width) {
  constexpr int64_t kStep = 2 * VecPairs::kLanes;
  VecF sum0 = zero(), sum1 = zero();
  int64_t i = 0;
  for (; i + 2 * kStep <= width; i += 2 * kStep) {
    const VecPairs a = load_pairs(row + i), b = load_pairs(row + i + kStep);
    sum0 = dot_bf16(sum0, a, a);
    sum1 = dot_bf16(sum1, b, b);
  }
  each_vector(
      i, width,
      [&](int64_t at) {
        const VecF v = load(row + at);
        sum0 = fma(v, v, sum0);
      },
      [&](int64_t at, int count) {
        const VecF v = load(row + at, count);
        sum1 = fma(v, v, sum1);
      });
  return sum_lanes(sum0 + sum1);
}

// Rows whose sums, square roots and quotients are under way together: one row alone would wait for
// each of its steps.
inline constexpr int kTogether = 4;

// `gain` in the order of each_duo. The lines kTogether rows on are asked for while these rows are
// written: the pause between two bursts of reading is longer than the hardware's prefetching
// bridges.
template <bool kStream, int kRows, class T>
void forward_rows(const T* x, const float* gain, double eps, T* y, float* inv, int64_t width) {
  float squares[kRows], scale[kRows];
  for (int r = 0; r < kRows; ++r) squares[r] = square_sum(x + r * width, width);
  for (int r = 0; r < kRows; ++r) {
    const double mean = static_cast<double>(squares[r]) / static_cast<double>(width);
    scale[r] = static_cast<float>(1.0 / std::sqrt(mean + eps));
    if (inv != nullptr) inv[r] = scale[r];
  }
  for (int r = 0; r < kRows; ++r) {
    const T* row = x + r * width;
    const T* next = row + kRows * width;
    T* out = y + r * width;
    const VecF s = broadcast(scale[r]);
    each_duo(
        0, width,
        [&](int64_t i) {
          prefetch_duo(next + i);
          const Duo v = load_duo(row + i), g = load_duo(gain + i);
          put<kStream>(out + i, Duo{(v.a * s) * g.a, (v.b * s) * g.b});
        },
        [&](int64_t i, int count) {
          store(out + i, (load(row + i, count) * s) * load(gain + i, count), count);
        });
  }
}

template <class T>
void forward_typed(Context& context, AnyView x, AnyView gain, double eps, AnyView y, AnyView inv) {
  const int64_t width = gain.elements();
  const int64_t rows = x.elements() / width;
  const auto* in = static_cast<const T*>(x.data);
  auto* out = static_cast<T*>(y.data);
  const auto* g = static_cast<const float*>(gain.data);
  auto* kept = static_cast<float*>(inv.data);
  const bool past_caches = out != in && streams(out, rows, width);
  ScratchScope scope(context.scratch());
  float* ordered = context.scratch().take<float>({width}).data();
  in_duo_order<T>(g, width, ordered);
  const auto advance = [&]<int kRows>(int64_t t, std::integral_constant<int, kRows>) {
    const int64_t at = t * width;
    float* inv_at = kept != nullptr ? kept + t : nullptr;
    past_caches ? forward_rows<true, kRows>(in + at, ordered, eps, out + at, inv_at, width)
                : forward_rows<false, kRows>(in + at, ordered, eps, out + at, inv_at, width);
  };
  sweep_rows(context, rows, width, [&](int64_t begin, int64_t end) {
    int64_t t = begin;
    for (; t + kTogether <= end; t += kTogether) {
      advance(t, std::integral_constant<int, kTogether>{});
    }
    for (; t < end; ++t) advance(t, std::integral_constant<int, 1>{});
    if (past_caches) stream_fence();
  });
}

void forward(Context& context, AnyView x, AnyView gain, double eps, AnyView y, AnyView inv) {
  x.dtype == DType::kBF16 ? forward_typed<bf16>(context, x, gain, eps, y, inv)
                          : forward_typed<float>(context, x, gain, eps, y, inv);
}

// Rows that give one partial sum of dgain. Blocks are anchored at the start of each unit, so a
// unit's sum does not depend on which other units are here.
inline constexpr int64_t kRowBlock = 64;

struct BackwardArgs {
  const float* gain;
  const float* inv;
  int64_t width;
};

// sum_i gain_i d_i v_i over a row, in four interleaved partial sums: an order fixed by `width`.
template <class T>
float weighted_dot(const float* gain, const T* d, const T* v, int64_t width) {
  VecF sum0 = zero(), sum1 = zero(), sum2 = zero(), sum3 = zero();
  const auto add = [&](int64_t i, VecF& even, VecF& odd) {
    const Duo g = load_duo(gain + i), a = load_duo(d + i), b = load_duo(v + i);
    even = fma(g.a * a.a, b.a, even);
    odd = fma(g.b * a.b, b.b, odd);
  };
  int64_t i = 0;
  for (; i + 2 * kDuo <= width; i += 2 * kDuo) {
    add(i, sum0, sum1);
    add(i + kDuo, sum2, sum3);
  }
  each_duo(
      i, width, [&](int64_t at) { add(at, sum0, sum1); },
      [&](int64_t at, int n) {
        sum2 = fma(load(gain + at, n) * load(d + at, n), load(v + at, n), sum2);
      });
  return sum_lanes((sum0 + sum1) + (sum2 + sum3));
}

// dx of kRows neighbouring rows, and their parts of dgain added to `dgain` in row order: gain and
// dgain, both in the order of each_duo, pass through registers once for all of them. Rows of dx are
// written in turns of whole lines, which non-temporal stores need.
template <bool kStream, bool kAdd, int kRows, class T>
void backward_rows(const BackwardArgs& args, const T* dy, const T* x, const float* inv,
                   const T* add, T* dx, float* dgain) {
  const int64_t width = args.width;
  const float* gain = args.gain;
  VecF r[kRows], c[kRows];
  for (int row = 0; row < kRows; ++row) {
    const float dot = weighted_dot(gain, dy + row * width, x + row * width, width);
    r[row] = broadcast(inv[row]);
    c[row] = broadcast(dot / static_cast<float>(width) * inv[row] * inv[row]);
  }
  const auto step = [&](int row, VecF g, VecF d, VecF v, VecF carried, VecF& sum) {
    const VecF dr = d * r[row];
    sum = fma(dr, v, sum);
    return fma(dr, g, carried - (v * r[row]) * c[row]);
  };
  const Duo nothing = {zero(), zero()};
  each_duo(
      0, width,
      [&](int64_t i) {
        const Duo g = load_duo(gain + i);
        Duo sum = load_duo(dgain + i);
#pragma GCC unroll 4
        for (int row = 0; row < kRows; ++row) {
          const int64_t at = row * width + i;
          const int64_t next = at + kRows * width;
          prefetch_duo(dy + next);
          prefetch_duo(x + next);
          if constexpr (kAdd) prefetch_duo(add + next);
          const Duo d = load_duo(dy + at), v = load_duo(x + at);
          const Duo carried = kAdd ? load_duo(add + at) : nothing;
          put<kStream>(dx + at, Duo{step(row, g.a, d.a, v.a, carried.a, sum.a),
                                    step(row, g.b, d.b, v.b, carried.b, sum.b)});
        }
        store_duo(dgain + i, sum);
      },
      [&](int64_t i, int n) {
        const VecF g = load(gain + i, n);
        VecF sum = load(dgain + i, n);
        for (int row = 0; row < kRows; ++row) {
          const int64_t at = row * width + i;
          const VecF carried = kAdd ? load(add + at, n) : zero();
          store(dx + at, step(row, g, load(dy + at, n), load(x + at, n), carried, sum), n);
        }
        store(dgain + i, sum, n);
      });
}

struct RowBlock {
  int64_t begin;
  int64_t end;
};

// dgain[s] = tree over units of (tree over the unit's blocks of their partial sums), columns in
// parallel.
void join_dgain(Context& context, const UnitSegments& segments, const float* partial_BD,
                std::span<const int64_t> first_block, int64_t width, float* dgain, Write write) {
  constexpr int64_t kColumns = 256;
  const int64_t pieces = (width + kColumns - 1) / kColumns;
  context.parallel_for(segments.slots * pieces, [&](int64_t task, int) {
    const int64_t slot = task / pieces;
    const int64_t column = task % pieces * kColumns;
    const int64_t count = std::min(kColumns, width - column);
    using Buffers =
        std::array<std::array<float, kColumns>, 32>;  // tree_depth of any count that fits in memory
    Buffers unit_sums, block_sums;
    const auto join_in = [count](Buffers& sums) {
      return [&sums, count](int into, int from) {
        float* to = sums[static_cast<size_t>(into)].data();
        const float* other = sums[static_cast<size_t>(from)].data();
        for (int64_t i = 0; i < count; ++i) to[i] = to[i] + other[i];
      };
    };
    tree_join(
        segments.units,
        [&](int64_t unit, int buffer) {
          const auto u = static_cast<size_t>(slot * segments.units + unit);
          block_sums[0].fill(0.0f);
          tree_join(
              first_block[u + 1] - first_block[u],
              [&](int64_t block, int inner) {
                const float* from = partial_BD + (first_block[u] + block) * width + column;
                std::copy_n(from, count, block_sums[static_cast<size_t>(inner)].data());
              },
              join_in(block_sums));
          unit_sums[static_cast<size_t>(buffer)] = block_sums[0];
        },
        join_in(unit_sums));
    float* out = dgain + slot * width + column;
    for (int64_t i = 0; i < count; ++i) {
      out[i] = write == Write::kAdd ? out[i] + unit_sums[0][static_cast<size_t>(i)]
                                    : unit_sums[0][static_cast<size_t>(i)];
    }
  });
}

template <class T>
void backward_typed(Context& context, AnyView dy, AnyView x, AnyView gain, AnyView inv,
                    const UnitSegments& segments, AnyView add, AnyView dx, AnyView dgain,
                    Write write) {
  const int64_t width = gain.elements();
  const auto* in_dy = static_cast<const T*>(dy.data);
  const auto* in_x = static_cast<const T*>(x.data);
  const auto* in_add = static_cast<const T*>(add.data);
  auto* out = static_cast<T*>(dx.data);

  const int64_t leaves = segments.slots * segments.units;
  std::vector<RowBlock> blocks;
  std::vector<int64_t> first_block(static_cast<size_t>(leaves) + 1, 0);
  for (int64_t u = 0; u < leaves; ++u) {
    const int64_t end = segments.offsets[static_cast<size_t>(u) + 1];
    for (int64_t r = segments.offsets[static_cast<size_t>(u)]; r < end; r += kRowBlock) {
      blocks.push_back({r, std::min(end, r + kRowBlock)});
    }
    first_block[static_cast<size_t>(u) + 1] = static_cast<int64_t>(blocks.size());
  }

  ScratchScope scope(context.scratch());
  float* ordered = context.scratch().take<float>({width}).data();
  in_duo_order<T>(static_cast<const float*>(gain.data), width, ordered);
  const BackwardArgs args{ordered, static_cast<const float*>(inv.data), width};
  const auto count = static_cast<int64_t>(blocks.size());
  float* partial_BD = context.scratch().take<float>({std::max<int64_t>(count, 1), width}).data();
  const bool past_caches =
      out != in_add && out != in_dy && out != in_x && streams(out, segments.rows(), width);
  context.parallel_for(count, [&](int64_t b, int) {
    const RowBlock block = blocks[static_cast<size_t>(b)];
    float* sums = partial_BD + b * width;
    std::fill_n(sums, width, 0.0f);
    const auto advance = [&]<int kRows>(int64_t t, std::integral_constant<int, kRows>) {
      const int64_t at = t * width;
      const auto rows = [&]<bool kStream, bool kAdd>(std::bool_constant<kStream>,
                                                     std::bool_constant<kAdd>) {
        backward_rows<kStream, kAdd, kRows>(args, in_dy + at, in_x + at, args.inv + t,
                                            kAdd ? in_add + at : nullptr, out + at, sums);
      };
      constexpr std::true_type kYes;
      constexpr std::false_type kNo;
      if (in_add != nullptr) {
        past_caches ? rows(kYes, kYes) : rows(kNo, kYes);
      } else {
        past_caches ? rows(kYes, kNo) : rows(kNo, kNo);
      }
    };
    int64_t t = block.begin;
    for (; t + 4 <= block.end; t += 4) advance(t, std::integral_constant<int, 4>{});
    for (; t < block.end; ++t) advance(t, std::integral_constant<int, 1>{});
    if (past_caches) stream_fence();
    from_duo_order<T>(sums, width);
  });
  join_dgain(context, segments, partial_BD, first_block, width, static_cast<float*>(dgain.data),
             write);
}

void backward(Context& context, AnyView dy, AnyView x, AnyView gain, AnyView inv,
              const UnitSegments& segments, AnyView add, AnyView dx, AnyView dgain, Write write) {
  x.dtype == DType::kBF16
      ? backward_typed<bf16>(context, dy, x, gain, inv, segments, add, dx, dgain, write)
      : backward_typed<float>(context, dy, x, gain, inv, segments, add, dx, dgain, write);
}

}  // namespace

template <>
const RmsNormKernels cpu::Table<RmsNormKernels, cpu::kThisIsa>::value = {&forward, &backward};

}  // namespace degu
