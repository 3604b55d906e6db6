#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "kernels/cpu/grouped_gemm.h"
#include "kernels/cpu/packing.h"

namespace degu {
namespace {

// Rows are summed in steps: one row of fp32, a pair of rows of bf16 (an odd last row is paired with
// zeros). Within a unit both operands are packed step by step: `Word` is what one step takes of a
// column.
template <class T>
struct Rows;

template <>
struct Rows<float> {
  using Word = float;
  static constexpr int64_t kStep = 1;
  static Word join(float first, float) { return first; }
};

template <>
struct Rows<bf16> {
  using Word = uint32_t;
  static constexpr int64_t kStep = 2;
  static Word join(bf16 first, bf16 second) { return uint32_t{second.bits} << 16 | first.bits; }
};

template <class T>
int64_t steps_of(int64_t rows) {
  return (rows + Rows<T>::kStep - 1) / Rows<T>::kStep;
}

// out[step][0 .. width) = columns [column, column + count) of rows [begin, end), zeros beyond
// count.
template <class T>
void pack_columns(const T* from, int64_t stride, int64_t begin, int64_t end, int64_t column,
                  int64_t count, int64_t width, typename Rows<T>::Word* out) {
  for (int64_t r = begin; r < end; r += Rows<T>::kStep, out += width) {
    const T* first = from + r * stride + column;
    const bool paired = Rows<T>::kStep == 2 && r + 1 < end;
    for (int64_t j = 0; j < count; ++j) {
      out[j] = Rows<T>::join(first[j], paired ? first[stride + j] : T{});
    }
    for (int64_t j = count; j < width; ++j) out[j] = {};
  }
}

// tile[i] += sum over steps of a[step][i] * b[step]; a is [steps][kRows], b [steps][kPanel].
template <int kRows>
[[gnu::always_inline]] inline void accumulate(Tile<kRows>& tile, const uint32_t* a,
                                              const uint32_t* b, int64_t steps) {
  for (int64_t s = 0; s < steps; ++s, a += kRows, b += kPanel) {
    const VecPairs b0 = load_pairs(reinterpret_cast<const bf16*>(b));
    const VecPairs b1 = load_pairs(reinterpret_cast<const bf16*>(b + VecF::kLanes));
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const VecPairs w = broadcast_word(a[i]);
      tile.sum[i][0] = dot_bf16(tile.sum[i][0], w, b0);
      tile.sum[i][1] = dot_bf16(tile.sum[i][1], w, b1);
    }
  }
}

template <int kRows>
[[gnu::always_inline]] inline void accumulate(Tile<kRows>& tile, const float* a, const float* b,
                                              int64_t steps) {
  for (int64_t s = 0; s < steps; ++s, a += kRows, b += kPanel) {
    const VecF b0 = load(b);
    const VecF b1 = load(b + VecF::kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const VecF w = broadcast(a[i]);
      tile.sum[i][0] = fma(w, b0, tile.sum[i][0]);
      tile.sum[i][1] = fma(w, b1, tile.sum[i][1]);
    }
  }
}

constexpr int64_t kTileFloats = kTileRows * kPanel;

// One (group, slot): a tile of the gradient, its units joined in the fixed binary tree.
template <class T>
struct Result {
  std::span<const int64_t> steps;  // of each unit
  float* dw;                       // [F, D]
  int64_t width;                   // D
  bool add;
  float* stack;  // partial sums of complete subtrees, one tile per level
};

// sum = left + sum
template <int kRows>
[[gnu::always_inline]] inline void join(const float* left, Tile<kRows>& tile) {
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; ++v) {
      tile.sum[i][v] = load(left + (i * kPanelVectors + v) * VecF::kLanes) + tile.sum[i][v];
    }
  }
}

template <int kRows>
[[gnu::always_inline]] inline void keep(const Tile<kRows>& tile, float* to) {
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; ++v) {
      store(to + (i * kPanelVectors + v) * VecF::kLanes, tile.sum[i][v]);
    }
  }
}

// The tree is walked like a binary counter: after unit u as many complete subtrees end as u has
// trailing ones, each joined with its left sibling from the stack. When the number of units is no
// power of two the remaining subtrees are joined from the right: with 7 units ((u0+u1)+(u2+u3)) +
// ((u4+u5) + u6).
template <class T, int kRows>
void gradient_tile(const Result<T>& result, const typename Rows<T>::Word* a,
                   const typename Rows<T>::Word* b, int64_t row, int64_t column) {
  Tile<kRows> tile{};
  const auto units = static_cast<int64_t>(result.steps.size());
  for (int64_t u = 0; u < units; ++u) {
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) tile.sum[i][0] = tile.sum[i][1] = zero();
    const int64_t steps = result.steps[static_cast<size_t>(u)];
    accumulate(tile, a, b, steps);
    a += steps * kRows;
    b += steps * kPanel;
    int level = 0;
    for (; (u >> level & 1) != 0; ++level) join(result.stack + level * kTileFloats, tile);
    if (u + 1 < units) {
      keep(tile, result.stack + level * kTileFloats);
    } else {
      for (++level; (u >> level) != 0; ++level) {
        if ((u >> level & 1) != 0) join(result.stack + level * kTileFloats, tile);
      }
    }
  }
  const int columns = static_cast<int>(std::min<int64_t>(kPanel, result.width - column));
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; ++v) {
      const int n = std::min(VecF::kLanes, columns - v * VecF::kLanes);
      if (n <= 0) continue;
      float* at = result.dw + (row + i) * result.width + column + v * VecF::kLanes;
      const VecF sum = result.add ? load(at, n) + tile.sum[i][v] : tile.sum[i][v];
      store(at, sum, n);
    }
  }
}

template <class T>
using GradientFunction = void (*)(const Result<T>&, const typename Rows<T>::Word*,
                                  const typename Rows<T>::Word*, int64_t, int64_t);

// Entry i - 1 computes i rows of the gradient.
template <class T>
constexpr auto kGradientFunctions = []<int... i>(std::integer_sequence<int, i...>) {
  return std::array<GradientFunction<T>, sizeof...(i)>{&gradient_tile<T, i + 1>...};
}
(std::make_integer_sequence<int, kTileRows>{});

template <class T>
class WeightGradient {
 public:
  using Word = typename Rows<T>::Word;

  WeightGradient(Context& context, AnyView dy, AnyView x, const UnitSegments& segments, AnyView dw,
                 Write write)
      : context_(context),
        segments_(segments),
        dy_(static_cast<const T*>(dy.data)),
        x_(static_cast<const T*>(x.data)),
        dw_(static_cast<float*>(dw.data)),
        outputs_(dy.dim(1)),
        width_(x.dim(1)),
        panels_((width_ + kPanel - 1) / kPanel),
        add_(write == Write::kAdd) {}

  void run() {
    if (outputs_ == 0 || width_ == 0) return;
    ScratchScope scope(context_.scratch());
    Arena& arena = context_.scratch();
    const auto count = static_cast<int64_t>(segments_.offsets.size()) - 1;
    steps_ = arena.take<int64_t>({count + 1}).data();
    first_ = arena.take<int64_t>({count + 1}).data();
    first_[0] = 0;
    int64_t most = 0;  // steps of one (group, slot)
    for (int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<size_t>(i);
      steps_[i] = steps_of<T>(segments_.offsets[at + 1] - segments_.offsets[at]);
      first_[i + 1] = first_[i] + steps_[i];
      if ((i + 1) % segments_.units == 0)
        most = std::max(most, first_[i + 1] - first_[i + 1 - segments_.units]);
    }
    const int64_t results = segments_.groups * segments_.slots;
    b_ = static_cast<Word*>(
        arena.take_bytes(static_cast<size_t>(first_[count] * panels_ * kPanel) * sizeof(Word)));
    context_.parallel_for(results * panels_,
                          [&](int64_t task, int) { pack_panel(task / panels_, task % panels_); });

    const int64_t tiles = (outputs_ + kTileRows - 1) / kTileRows;
    tiles_per_block_ = std::min<int64_t>(tiles, 8);
    const int64_t blocks = (tiles + tiles_per_block_ - 1) / tiles_per_block_;
    const int64_t levels = std::bit_width(static_cast<uint64_t>(segments_.units));
    const int64_t a_words = most * tiles_per_block_ * kTileRows;
    auto* a = static_cast<Word*>(
        arena.take_bytes(static_cast<size_t>(context_.threads() * a_words) * sizeof(Word)));
    float* stacks = arena.take<float>({context_.threads(), levels * kTileFloats}).data();
    context_.parallel_dynamic(results * blocks, [&](int64_t task, int thread) {
      compute_block(task / blocks, task % blocks, a + thread * a_words,
                    stacks + thread * levels * kTileFloats);
    });
  }

 private:
  // (group, slot) number r = g * slots + s; its units are segments r * units ...
  void pack_panel(int64_t r, int64_t panel) {
    const int64_t column = panel * kPanel;
    Word* out = panel_of(r, panel);
    for (int64_t i = r * segments_.units; i < (r + 1) * segments_.units; ++i) {
      pack_columns(x_, width_, segments_.offsets[static_cast<size_t>(i)],
                   segments_.offsets[static_cast<size_t>(i) + 1], column,
                   std::min<int64_t>(kPanel, width_ - column), kPanel, out);
      out += steps_[i] * kPanel;
    }
  }

  Word* panel_of(int64_t r, int64_t panel) const {
    const int64_t begin = first_[r * segments_.units];
    const int64_t steps = first_[(r + 1) * segments_.units] - begin;
    return b_ + (begin * panels_ + steps * panel) * kPanel;
  }

  void compute_block(int64_t r, int64_t block, Word* a, float* stack) {
    const int64_t units = segments_.units;
    const int64_t steps = first_[(r + 1) * units] - first_[r * units];
    const int64_t g = r / segments_.slots;
    const int64_t s = r % segments_.slots;
    const Result<T> result = {{steps_ + r * units, static_cast<size_t>(units)},
                              dw_ + (s * segments_.groups + g) * outputs_ * width_,
                              width_,
                              add_,
                              stack};
    const int64_t tiles = (outputs_ + kTileRows - 1) / kTileRows;
    const int64_t first = block * tiles_per_block_;
    const int64_t last = std::min(tiles, first + tiles_per_block_);
    const auto row_of = [&](int64_t tile) { return outputs_ * tile / tiles; };
    for (int64_t t = first; t < last; ++t) {
      const int64_t height = row_of(t + 1) - row_of(t);
      Word* out = a + (row_of(t) - row_of(first)) * steps;
      for (int64_t i = r * units; i < (r + 1) * units; ++i) {
        pack_columns(dy_, outputs_, segments_.offsets[static_cast<size_t>(i)],
                     segments_.offsets[static_cast<size_t>(i) + 1], row_of(t), height, height, out);
        out += steps_[i] * height;
      }
    }
    for (int64_t panel = 0; panel < panels_; ++panel) {
      for (int64_t t = first; t < last; ++t) {
        const int64_t height = row_of(t + 1) - row_of(t);
        kGradientFunctions<T>[static_cast<size_t>(height - 1)](
            result, a + (row_of(t) - row_of(first)) * steps, panel_of(r, panel), row_of(t),
            panel * kPanel);
      }
    }
  }

  Context& context_;
  const UnitSegments& segments_;
  const T* dy_;
  const T* x_;
  float* dw_;
  int64_t outputs_;
  int64_t width_;
  int64_t panels_;
  bool add_;
  int64_t tiles_per_block_ = 1;
  int64_t* steps_ = nullptr;  // of each segment
  int64_t* first_ = nullptr;  // steps before each segment
  Word* b_ = nullptr;         // x, packed
};

void weight_gradient(Context& context, AnyView dy, AnyView x, const UnitSegments& segments,
                     AnyView dw, Write write) {
  if (x.dtype == DType::kF32) {
    WeightGradient<float>(context, dy, x, segments, dw, write).run();
  } else {
    WeightGradient<bf16>(context, dy, x, segments, dw, write).run();
  }
}

}  // namespace

template <>
const cpu::GroupedGemmDwKernels cpu::Table<cpu::GroupedGemmDwKernels, cpu::kThisIsa>::value = {
    &weight_gradient};

}  // namespace degu
