#include "kernels/tables/permute.h"

#include "kernels/common/row_runs.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/row_copy.h"

namespace degu {
namespace {

// Tokens whose slots are counted and placed as one task. With a capacity, a capacity group instead:
// who is dropped is decided within one.
inline constexpr int64_t kPlanTokens = 1024;

void route_plan(Context& context, AnyView expert_TK, int64_t experts, int64_t capacity,
                std::span<const int64_t> group_offsets, int64_t* offsets_E, AnyView row_TK,
                AnyView token_R, int64_t* dropped) {
  const int64_t tokens = expert_TK.dim(0);
  const int64_t top_k = expert_TK.dim(1);
  const auto* expert = static_cast<const int32_t*>(expert_TK.data);
  auto* row = static_cast<int32_t*>(row_TK.data);
  auto* token = static_cast<int32_t*>(token_R.data);
  const bool limited = capacity > 0;
  const int64_t pieces = limited ? static_cast<int64_t>(group_offsets.size()) - 1
                                 : (tokens + kPlanTokens - 1) / kPlanTokens;
  const auto begin_of = [&](int64_t p) {
    return limited ? group_offsets[static_cast<size_t>(p)] : std::min(tokens, p * kPlanTokens);
  };

  ScratchScope scope(context.scratch());
  // kept_PE[p, e]: first how many rows of e piece p keeps, then the row where its next one goes.
  int64_t* kept_PE =
      context.scratch().take<int64_t>({std::max<int64_t>(pieces, 1), experts}).data();
  context.parallel_for(pieces, [&](int64_t p, int) {
    int64_t* kept = kept_PE + p * experts;
    std::fill_n(kept, experts, int64_t{0});
    for (int64_t i = begin_of(p) * top_k; i < begin_of(p + 1) * top_k; ++i) ++kept[expert[i]];
    for (int64_t e = 0; limited && e < experts; ++e) kept[e] = std::min(kept[e], capacity);
  });
  int64_t next = 0;
  for (int64_t e = 0; e < experts; ++e) {
    offsets_E[e] = next;
    for (int64_t p = 0; p < pieces; ++p) {
      const int64_t count = kept_PE[p * experts + e];
      kept_PE[p * experts + e] = next;
      next += count;
    }
  }
  offsets_E[experts] = next;

  int64_t* left_PE =
      limited ? context.scratch().take<int64_t>({std::max<int64_t>(pieces, 1), experts}).data()
              : nullptr;
  context.parallel_for(pieces, [&](int64_t p, int) {
    int64_t* place = kept_PE + p * experts;
    int64_t* left = limited ? left_PE + p * experts : nullptr;
    if (limited) std::fill_n(left, experts, capacity);
    for (int64_t t = begin_of(p); t < begin_of(p + 1); ++t) {
      for (int64_t i = t * top_k; i < (t + 1) * top_k; ++i) {
        const int32_t e = expert[i];
        if (limited && left[e]-- <= 0) {
          row[i] = -1;
          continue;
        }
        const int64_t r = place[e]++;
        row[i] = static_cast<int32_t>(r);
        token[r] = static_cast<int32_t>(t);
      }
    }
  });
  *dropped = tokens * top_k - next;
}

void unit_offsets(Context&, AnyView offsets_E, AnyView token_R, std::span<const int64_t> units,
                  AnyView offsets_EU) {
  const View<const int64_t> offsets = offsets_E.as<const int64_t>();
  const View<const int32_t> token = token_R.as<const int32_t>();
  const View<int64_t> out = offsets_EU.as<int64_t>();
  const int64_t experts = offsets.elements() - 1;
  const auto count = static_cast<int64_t>(units.size()) - 1;
  for (int64_t e = 0; e < experts; ++e) {
    int64_t row = offsets[e];
    for (int64_t u = 0; u < count; ++u) {
      while (row < offsets[e + 1] && token[row] < units[static_cast<size_t>(u)]) ++row;
      out[e * count + u] = row;
    }
  }
  out[experts * count] = offsets[experts];
}

void renumber(Context&, AnyView index, std::span<const int32_t> number, AnyView out) {
  const View<const int32_t> from = index.as<const int32_t>();
  const View<int32_t> to = out.as<int32_t>();
  for (int64_t i = 0; i < from.elements(); ++i) to[i] = number[static_cast<size_t>(from[i])];
}

void interleave_rows(Context&, std::span<const int64_t> counts_PeU, int64_t experts, int64_t units,
                     AnyView order_R, AnyView place_R) {
  const View<int32_t> order = order_R.as<int32_t>(), place = place_R.as<int32_t>();
  for (const RowRun& run : interleaved_runs(counts_PeU, experts, units)) {
    for (int32_t i = 0; i < run.rows; ++i) {
      order[run.row + i] = run.arrived + i;
      place[run.arrived + i] = run.row + i;
    }
  }
}

void gather_rows(Context& context, AnyView x, AnyView source, AnyView y) {
  const int64_t rows = source.elements();
  if (rows == 0) return;
  const int64_t row_bytes = static_cast<int64_t>(y.bytes()) / rows;
  copy_rows(context, x.data, static_cast<const int32_t*>(source.data), y.data, rows, row_bytes);
}

template <class T>
struct CombineArgs {
  const T* x;
  const int32_t* row;
  const float* gate;  // null: ones
  int64_t top_k;
  int64_t width;
};

template <bool kStream, class T>
void combine_token(const CombineArgs<T>& args, int64_t t, const T* add, T* y) {
  const int32_t* row = args.row + t * args.top_k;
  const float* gate = args.gate != nullptr ? args.gate + t * args.top_k : nullptr;
  const auto sum = [&](VecF total, auto&& load_from) {
    for (int64_t k = 0; k < args.top_k; ++k) {
      if (row[k] < 0) continue;
      const VecF value = load_from(args.x + int64_t{row[k]} * args.width);
      total = gate != nullptr ? fma(broadcast(gate[k]), value, total) : total + value;
    }
    return total;
  };
  each_vector(
      0, args.width,
      [&](int64_t i) {
        const VecF start = add != nullptr ? load(add + i) : zero();
        put<kStream>(y + i, sum(start, [&](const T* from) { return load(from + i); }));
      },
      [&](int64_t i, int n) {
        const VecF start = add != nullptr ? load(add + i, n) : zero();
        store(y + i, sum(start, [&](const T* from) { return load(from + i, n); }), n);
      });
}

template <class T>
void combine_typed(Context& context, AnyView x, AnyView row, AnyView gate, AnyView add, AnyView y) {
  const int64_t tokens = row.dim(0);
  const int64_t width = y.elements() / tokens;
  const CombineArgs<T> args{static_cast<const T*>(x.data), static_cast<const int32_t*>(row.data),
                            static_cast<const float*>(gate.data), row.dim(1), width};
  const auto* carried = static_cast<const T*>(add.data);
  auto* out = static_cast<T*>(y.data);
  const bool past_caches = carried != out && streams(out, tokens, width);
  sweep_rows(context, tokens, width * (1 + args.top_k), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const T* start = carried != nullptr ? carried + t * width : nullptr;
      past_caches ? combine_token<true>(args, t, start, out + t * width)
                  : combine_token<false>(args, t, start, out + t * width);
    }
    if (past_caches) stream_fence();
  });
}

void combine(Context& context, AnyView x, AnyView row, AnyView gate, AnyView add, AnyView y) {
  if (row.dim(0) == 0) return;
  y.dtype == DType::kBF16 ? combine_typed<bf16>(context, x, row, gate, add, y)
                          : combine_typed<float>(context, x, row, gate, add, y);
}

// dx = gate * dy, and dot(dy, x) in two interleaved partial sums.
template <bool kStream, class T>
float backward_slot(const T* dy, const T* x, float gate, T* dx, int64_t width) {
  constexpr int64_t kLanes = VecF::kLanes;
  const VecF g = broadcast(gate);
  VecF sum0 = zero(), sum1 = zero();
  const auto one = [&](VecF& sum, int64_t i) {
    const VecF d = load(dy + i);
    sum = fma(d, load(x + i), sum);
    put<kStream>(dx + i, g * d);
  };
  int64_t i = 0;
  for (; i + 2 * kLanes <= width; i += 2 * kLanes) {
    one(sum0, i);
    one(sum1, i + kLanes);
  }
  if (i + kLanes <= width) {
    one(sum0, i);
    i += kLanes;
  }
  if (i < width) {
    const int n = static_cast<int>(width - i);
    const VecF d = load(dy + i, n);
    sum1 = fma(d, load(x + i, n), sum1);
    store(dx + i, g * d, n);
  }
  return sum_lanes(sum0 + sum1);
}

template <class T>
void backward_typed(Context& context, AnyView dy, AnyView x, AnyView row, AnyView gate, AnyView dx,
                    AnyView dgate) {
  const int64_t tokens = row.dim(0);
  const int64_t top_k = row.dim(1);
  const int64_t width = dy.elements() / tokens;
  const auto* in_dy = static_cast<const T*>(dy.data);
  const auto* in_x = static_cast<const T*>(x.data);
  const auto* rows = static_cast<const int32_t*>(row.data);
  const auto* gates = static_cast<const float*>(gate.data);
  auto* out = static_cast<T*>(dx.data);
  auto* out_gate = static_cast<float*>(dgate.data);
  const bool past_caches = out != in_x && streams(out, tokens * top_k, width);
  sweep_rows(context, tokens, width * (1 + top_k), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * top_k; i < end * top_k; ++i) {
      const int64_t r = rows[i];
      const float g = gates != nullptr ? gates[i] : 1.0f;
      const T* d = in_dy + i / top_k * width;
      if (r < 0) {
        out_gate[i] = 0.0f;
      } else if (past_caches) {
        out_gate[i] = backward_slot<true>(d, in_x + r * width, g, out + r * width, width);
      } else {
        out_gate[i] = backward_slot<false>(d, in_x + r * width, g, out + r * width, width);
      }
    }
    if (past_caches) stream_fence();
  });
}

void combine_backward(Context& context, AnyView dy, AnyView x, AnyView row, AnyView gate,
                      AnyView dx, AnyView dgate) {
  if (row.dim(0) == 0) return;
  dy.dtype == DType::kBF16 ? backward_typed<bf16>(context, dy, x, row, gate, dx, dgate)
                           : backward_typed<float>(context, dy, x, row, gate, dx, dgate);
}

}  // namespace

template <>
const PermuteKernels cpu::Table<PermuteKernels, cpu::kThisIsa>::value = {
    &route_plan,  &unit_offsets, &renumber,        &interleave_rows,
    &gather_rows, &combine,      &combine_backward};

}  // namespace degu
