#include "kernels/tables/embedding.h"

#include <array>

#include "kernels/common/tree.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/row_copy.h"

namespace degu {
namespace {

void forward(Context& context, AnyView table, const RowNumbers& tokens, AnyView y) {
  const auto rows = static_cast<int64_t>(tokens.size());
  const int64_t row_bytes = table.dim(1) * static_cast<int64_t>(size_of(table.dtype));
  copy_rows(context, table.data, tokens.host.data(), y.data, rows, row_bytes);
}

// The rows of one slot in order of (token, row), by a counting sort.
struct RowsByToken {
  int64_t* first;  // [V + 1]
  int32_t* row;    // [rows of the slot], counted from the slot's first
};

RowsByToken sort_rows(Arena& arena, std::span<const int32_t> tokens, int64_t vocab) {
  const auto rows = static_cast<int64_t>(tokens.size());
  RowsByToken sorted{arena.take<int64_t>({vocab + 1}).data(),
                     arena.take<int32_t>({std::max<int64_t>(rows, 1)}).data()};
  std::fill_n(sorted.first, vocab + 1, int64_t{0});
  for (int32_t token : tokens) ++sorted.first[token + 1];
  for (int64_t v = 0; v < vocab; ++v) sorted.first[v + 1] += sorted.first[v];
  for (int64_t r = 0; r < rows; ++r) {
    sorted.row[sorted.first[tokens[static_cast<size_t>(r)]]++] = static_cast<int32_t>(r);
  }
  // Placing moved each start to the next token's: move them back.
  for (int64_t v = vocab; v > 0; --v) sorted.first[v] = sorted.first[v - 1];
  sorted.first[0] = 0;
  return sorted;
}

// Vectors of one row that are summed at a time: they stay in registers while the rows pass.
inline constexpr int kVectors = VecF::kLanes == 16 ? 16 : 8;
inline constexpr int64_t kColumns = kVectors * VecF::kLanes;
struct Part {
  VecF v[kVectors];
};

struct SlotArgs {
  const int64_t* unit_end;  // first row after each unit, from the slot's first row
  int64_t width;
  bool add;
};

// out = columns [column, column + n) of rows row[0 … count - 1], n <= kColumns.
template <class T>
void sum_rows(const T* dy, int64_t width, int64_t column, int64_t n, const int32_t* row,
              int64_t count, Part& out) {
  VecF sum[kVectors];  // not `out` itself, which the compiler would keep in memory
  for (VecF& each : sum) each = zero();
  if (n == kColumns) {
    for (int64_t r = 0; r < count; ++r) {
      const T* from = dy + row[r] * width + column;
#pragma GCC unroll 16
      for (int i = 0; i < kVectors; ++i) sum[i] = sum[i] + load(from + i * VecF::kLanes);
    }
  } else {
    for (int64_t r = 0; r < count; ++r) {
      const T* from = dy + row[r] * width + column;
      int vector = 0;
      each_vector(
          0, n, [&](int64_t i) { sum[vector] = sum[vector] + load(from + i), ++vector; },
          [&](int64_t i, int k) { sum[vector] = sum[vector] + load(from + i, k); });
    }
  }
  for (int i = 0; i < kVectors; ++i) out.v[i] = sum[i];
}

template <bool kStream>
void store_part(const Part& sum, bool add, int64_t n, float* to) {
  int vector = 0;
  each_vector(
      0, n,
      [&](int64_t i) {
        const VecF value = sum.v[vector++];
        add ? store(to + i, load(to + i) + value) : put<kStream>(to + i, value);
      },
      [&](int64_t i, int k) {
        const VecF value = sum.v[vector];
        store(to + i, add ? load(to + i, k) + value : value, k);
      });
}

// out = (0 + a) + b, where b may be absent.
template <bool kStream, bool kPair, class T>
void sum_pair(const T* a, const T* b, int64_t width, bool add, float* out) {
  each_vector(
      0, width,
      [&](int64_t i) {
        VecF value = zero() + load(a + i);
        if constexpr (kPair) value = value + load(b + i);
        add ? store(out + i, load(out + i) + value) : put<kStream>(out + i, value);
      },
      [&](int64_t i, int k) {
        VecF value = zero() + load(a + i, k);
        if constexpr (kPair) value = value + load(b + i, k);
        store(out + i, add ? load(out + i, k) + value : value, k);
      });
}

// Neighbouring rows of one unit, and the buffers to join before they are summed into `into`.
struct Leaf {
  int64_t begin;
  int64_t end;
  int joins;
  int into;
};

// A plan holds this many leaves; a token with more rows is summed straight from its tree.
inline constexpr int kPlanLeaves = 64;

// One row of the gradient: its summands are rows row[0] < row[1] < … of dy, which already stand in
// order of their units.
template <bool kStream, class T>
void sum_token(const SlotArgs& args, const T* dy, const int32_t* row, int64_t count, float* out) {
  // Any tree over one or two rows is their sum. Most of a vocabulary is that rare.
  const auto at = [&](int64_t r) { return dy + row[r] * args.width; };
  if (count == 1) return sum_pair<kStream, false>(at(0), at(0), args.width, args.add, out);
  if (count == 2) return sum_pair<kStream, true>(at(0), at(1), args.width, args.add, out);

  std::array<Part, 32> sums;
  const auto join = [&](int into, int from) {
    Part& to = sums[static_cast<size_t>(into)];
    const Part& other = sums[static_cast<size_t>(from)];
    for (int i = 0; i < kVectors; ++i) to.v[i] = to.v[i] + other.v[i];
  };
  // What to sum and when to join is the same for all columns: found once, while it fits.
  std::array<Leaf, kPlanLeaves> plan;  // NOLINT(cppcoreguidelines-pro-type-member-init)
  int leaves = 0, last_joins = 0;
  const auto each_leaf = [&](TreeStack& tree, auto&& joined, auto&& visit) {
    int64_t unit = 0;
    for (int64_t next = 0; next < count;) {
      while (row[next] >= args.unit_end[unit]) ++unit;
      int64_t end = next + 1;
      while (end < count && row[end] < args.unit_end[unit]) ++end;
      visit(next, end, tree.push(unit, joined));
      next = end;
    }
    tree.finish(joined);
  };
  const bool planned = count <= kPlanLeaves;
  if (planned) {
    TreeStack tree;
    int joins = 0;
    each_leaf(
        tree, [&](int, int) { ++joins; },
        [&](int64_t begin, int64_t end, int into) {
          plan[static_cast<size_t>(leaves++)] = {begin, end, joins, into};
          joins = 0;
        });
    last_joins = joins;
  }
  for (int64_t column = 0; column < args.width; column += kColumns) {
    const int64_t n = std::min(kColumns, args.width - column);
    const auto fill = [&](int64_t begin, int64_t end, int into) {
      sum_rows(dy, args.width, column, n, row + begin, end - begin,
               sums[static_cast<size_t>(into)]);
    };
    if (planned) {
      int top = -1;
      for (int l = 0; l < leaves; ++l) {
        const Leaf& leaf = plan[static_cast<size_t>(l)];
        for (int j = 0; j < leaf.joins; ++j, --top) join(top - 1, top);
        fill(leaf.begin, leaf.end, leaf.into);
        top = leaf.into;
      }
      for (int j = 0; j < last_joins; ++j, --top) join(top - 1, top);
    } else {
      TreeStack tree;
      each_leaf(tree, join, fill);
    }
    if (count == 0) {
      for (VecF& each : sums[0].v) each = zero();
    }
    store_part<kStream>(sums[0], args.add, n, out + column);
  }
}

template <class T>
void backward_typed(Context& context, AnyView dy, std::span<const int32_t> tokens,
                    const UnitSegments& segments, AnyView dtable, int64_t width, Write write) {
  const int64_t vocab = dtable.elements() / (segments.slots * width);
  auto* out = static_cast<float*>(dtable.data);
  for (int64_t slot = 0; slot < segments.slots; ++slot) {
    const int64_t first_row = segments.begin(0, slot, 0);
    const int64_t last_row = segments.end(0, slot, segments.units - 1);
    ScratchScope scope(context.scratch());
    const auto part =
        tokens.subspan(static_cast<size_t>(first_row), static_cast<size_t>(last_row - first_row));
    const RowsByToken sorted = sort_rows(context.scratch(), part, vocab);
    int64_t* unit_end = context.scratch().take<int64_t>({segments.units}).data();
    for (int64_t u = 0; u < segments.units; ++u) {
      unit_end[u] = segments.end(0, slot, u) - first_row;
    }
    const SlotArgs args{unit_end, width, write == Write::kAdd};
    const bool past_caches = !args.add && streams(out + slot * vocab * width, vocab, width);
    const T* dy_slot = static_cast<const T*>(dy.data) + first_row * width;
    float* table = out + slot * vocab * width;
    // Few tokens carry most of a text's rows: small pieces, taken as threads become free.
    constexpr int64_t kPiece = 64;
    const int64_t row_bytes = width * static_cast<int64_t>(sizeof(T));
    const int64_t ahead = rows_ahead(row_bytes);
    context.parallel_dynamic((vocab + kPiece - 1) / kPiece, [&](int64_t task, int) {
      const int64_t last = std::min(vocab, (task + 1) * kPiece);
      int64_t asked = sorted.first[task * kPiece];  // rows before this one are on their way
      for (int64_t v = task * kPiece; v < last; ++v) {
        const int64_t count = sorted.first[v + 1] - sorted.first[v];
        // Of a frequent token only the first rows: the others would push each other out.
        const int64_t own = sorted.first[v] + std::min<int64_t>(count, 16);
        const int64_t wanted = std::min(sorted.first[last], own + ahead);
        for (asked = std::max(asked, sorted.first[v]); asked < wanted; ++asked) {
          prefetch_row(dy_slot + sorted.row[asked] * width, row_bytes);
        }
        if (count == 0 && args.add) continue;
        const int32_t* row = sorted.row + sorted.first[v];
        past_caches ? sum_token<true>(args, dy_slot, row, count, table + v * width)
                    : sum_token<false>(args, dy_slot, row, count, table + v * width);
      }
      if (past_caches) stream_fence();
    });
  }
}

void backward(Context& context, AnyView dy, std::span<const int32_t> tokens,
              const UnitSegments& segments, AnyView dtable, int64_t width, Write write) {
  dy.dtype == DType::kBF16
      ? backward_typed<bf16>(context, dy, tokens, segments, dtable, width, write)
      : backward_typed<float>(context, dy, tokens, segments, dtable, width, write);
}

}  // namespace

template <>
const EmbeddingKernels cpu::Table<EmbeddingKernels, cpu::kThisIsa>::value = {&forward, &backward};

}  // namespace degu
