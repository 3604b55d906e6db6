#include "kernels/tables/grouped_gemm.h"

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/cpu/packing.h"

namespace degu {
namespace {

template <class T>
struct Product {
  const void* x;
  const void* x_scales;
  int64_t inner;
  int64_t outputs;
  T* y;
  const T* add;  // null: nothing added
};

// y[r][0 .. columns) = sum (+ add), one rounding; columns < kPanel at the right edge.
template <int kRows, class T>
[[gnu::always_inline]] inline void write_tile(const Tile<kRows>& tile, T* y, const T* add,
                                              int64_t stride, int columns) {
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; ++v) {
      const int n = std::min(VecF::kLanes, columns - v * VecF::kLanes);
      const int64_t at = r * stride + v * VecF::kLanes;
      VecF sum = tile.sum[r][v];
      if (n == VecF::kLanes) {
        if (add != nullptr) sum = sum + load(add + at);
        store(y + at, sum);
      } else if (n > 0) {
        if (add != nullptr) sum = sum + load(add + at, n);
        store(y + at, sum, n);
      }
    }
  }
}

// The tile of rows [row, row + kRows) and one panel; x is where these rows lie.
template <class Format, class T, int kRows>
void run_tile(const Product<T>& p, const typename Packing<Format>::Rows& x, int64_t row,
              const typename Packing<Format>::Panel& panel, int64_t column) {
  Tile<kRows> tile{};
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) tile.sum[r][0] = tile.sum[r][1] = zero();
  Packing<Format>::multiply(tile, x, panel, p.inner);
  const int64_t at = row * p.outputs + column;
  write_tile(tile, p.y + at, p.add == nullptr ? nullptr : p.add + at, p.outputs,
             static_cast<int>(std::min<int64_t>(kPanel, p.outputs - column)));
}

template <class Format, class T>
using TileFunction = void (*)(const Product<T>&, const typename Packing<Format>::Rows&, int64_t,
                              const typename Packing<Format>::Panel&, int64_t);

// Entry r - 1 multiplies r rows.
template <class Format, class T>
constexpr auto kTileFunctions = []<int... r>(std::integer_sequence<int, r...>) {
  return std::array<TileFunction<Format, T>, sizeof...(r)>{&run_tile<Format, T, r + 1>...};
}
(std::make_integer_sequence<int, Packing<Format>::kTileRows>{});

// Rows whose activations stay in the second-level cache (1 MiB on Zen 4, half of it on others)
// while the panels pass by, each read once per block.
int64_t block_rows(int64_t row_bytes, int64_t tile_rows) {
  constexpr int64_t kBytes = 192 << 10;
  constexpr int64_t kMost = 384;
  return std::clamp<int64_t>(kBytes / std::max<int64_t>(1, row_bytes) / tile_rows, 1,
                             kMost / tile_rows) *
         tile_rows;
}

// The work as one line: experts in order, in each its row blocks, in each block the panels. A panel
// of a block costs its rows plus a constant for starting; a task is a stretch of equal cost, so
// that ragged groups balance and a task of few rows reads one contiguous run of panels.
struct WorkLine {
  const RowGroups& groups;
  int64_t block;  // most rows per block
  int64_t panels;

  static constexpr int64_t kStartCost = 2;
  static int64_t unit_cost(int64_t rows) { return rows + kStartCost; }
  int64_t blocks(int64_t rows) const { return (rows + block - 1) / block; }

  int64_t total() const {
    int64_t cost = 0;
    for (int64_t e = 0; e < groups.groups(); ++e) {
      const int64_t rows = groups.end(e) - groups.begin(e);
      cost += (rows + blocks(rows) * kStartCost) * panels;
    }
    return cost;
  }

  // visit(expert, first row, rows, first panel, last panel) for units that begin in [low, high).
  template <class Visit>
  void visit(int64_t low, int64_t high, Visit&& visit) const {
    int64_t cost = 0;
    for (int64_t e = 0; e < groups.groups() && cost < high; ++e) {
      const int64_t rows = groups.end(e) - groups.begin(e);
      const int64_t count = blocks(rows);
      for (int64_t b = 0; b < count && cost < high; ++b) {
        const int64_t begin = rows * b / count;
        const int64_t end = rows * (b + 1) / count;
        const int64_t unit = unit_cost(end - begin);
        const auto panel_at = [&](int64_t position) {
          return std::clamp<int64_t>((position - cost + unit - 1) / unit, 0, panels);
        };
        const int64_t first = panel_at(low);
        const int64_t last = panel_at(high);
        if (first < last) visit(e, groups.begin(e) + begin, end - begin, first, last);
        cost += unit * panels;
      }
    }
  }
};

// Memory of one thread.
struct Workspace {
  std::byte* rows = nullptr;
  std::byte* panel = nullptr;
};

template <class Format, class T>
void multiply_stretch(const Product<T>& p, const PackedWeight& w, const WorkLine& line, int64_t low,
                      int64_t high, const Workspace& workspace) {
  using Layout = Packing<Format>;
  const size_t panel_bytes = Layout::panel_bytes(w.inner);
  line.visit(low, high, [&](int64_t e, int64_t row, int64_t rows, int64_t first, int64_t last) {
    const auto x = Layout::rows(p.x, p.x_scales, row, rows, w.inner, workspace.rows);
    const int64_t tiles = (rows + Layout::kTileRows - 1) / Layout::kTileRows;
    for (int64_t panel = first; panel < last; ++panel) {
      const std::byte* bytes = static_cast<const std::byte*>(w.bytes) +
                               static_cast<size_t>(e * line.panels + panel) * panel_bytes;
      const typename Layout::Panel ready = Layout::ready(bytes, w.inner, tiles, workspace.panel);
      for (int64_t t = 0; t < tiles; ++t) {  // tiles of nearly equal height
        const int64_t begin = rows * t / tiles;
        const int64_t height = rows * (t + 1) / tiles - begin;
        kTileFunctions<Format, T>[static_cast<size_t>(height - 1)](p, x.from(begin), row + begin,
                                                                   ready, panel * kPanel);
      }
    }
  });
}

// Multiply-adds below which a task of its own costs more than it saves (some microseconds of one
// core).
constexpr int64_t kTaskWork = 1 << 18;
constexpr int64_t kTasksPerThread = 8;

template <class Format, class T>
void multiply_groups(Context& context, const Activation& x, const PackedWeight& w,
                     const RowGroups& groups, AnyView y, const Epilogue& epilogue) {
  using Layout = Packing<Format>;
  const Product<T> p = {
      x.values.data, x.scales.data,           w.inner,
      w.outputs,     static_cast<T*>(y.data), static_cast<const T*>(epilogue.add_RF.data)};
  const int64_t row_bytes = w.inner * static_cast<int64_t>(size_of(x.values.dtype));
  const WorkLine line = {groups, block_rows(row_bytes, Layout::kTileRows),
                         (w.outputs + kPanel - 1) / kPanel};
  const int64_t total = line.total();
  const int64_t most = context.threads() == 1 ? 1 : context.threads() * kTasksPerThread;
  const int64_t tasks = std::clamp<int64_t>(total * kPanel * w.inner / kTaskWork, 1, most);
  ScratchScope scope(context.scratch());
  const auto per_thread = [&](int64_t bytes) {
    const int64_t rounded = (bytes + 63) / 64 * 64;
    void* first =
        rounded == 0
            ? nullptr
            : context.scratch().take_bytes(static_cast<size_t>(context.threads() * rounded));
    return [first = static_cast<std::byte*>(first), rounded](int thread) {
      return first == nullptr ? first : first + thread * rounded;
    };
  };
  const auto rows_of = per_thread(Layout::row_scratch(line.block, w.inner));
  const auto panel_of = per_thread(Layout::panel_scratch(w.inner));
  context.parallel_dynamic(tasks, [&](int64_t task, int thread) {
    multiply_stretch<Format>(p, w, line, total * task / tasks, total * (task + 1) / tasks,
                             {rows_of(thread), panel_of(thread)});
  });
}

void forward(Context& context, const Activation& x, const PackedWeight& w, const RowGroups& groups,
             AnyView y, const Epilogue& epilogue) {
  visit_format(w.scheme, [&]<class Format>() {
    if (y.dtype == DType::kF32) {
      multiply_groups<Format, float>(context, x, w, groups, y, epilogue);
    } else {
      multiply_groups<Format, bf16>(context, x, w, groups, y, epilogue);
    }
  });
}

}  // namespace

template <>
const GroupedGemmKernels cpu::Table<GroupedGemmKernels, cpu::kThisIsa>::value = {&forward};

}  // namespace degu
