#include "kernels/tables/grouped_gemm.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "kernels/cpu/packing.h"
#include "kernels/cpu/sweep.h"

namespace degu {
namespace {

// tile[i] += sum over steps of a[step][i] * b[step]; a is [steps][kRows], b [steps][kPanel].
template <class T, int kRows>
[[gnu::always_inline]] inline void accumulate(Tile<kRows>& tile, const uint32_t* a,
                                              const uint32_t* b, int64_t steps) {
  for (int64_t s = 0; s < steps; ++s, a += kRows, b += kPanel) {
    Words<T>::multiply(tile, b, [a](int i) { return broadcast_word(a[i]); });
  }
}

constexpr int64_t kTileFloats = kTileRows * kPanel;

// One (group, slot): where its units lie and where the result goes.
struct Result {
  const int64_t* first_step;  // of each unit, and the end of the last
  int64_t units;
  float* dw;      // [F, D]
  int64_t width;  // D
  bool add;
  bool streamed;  // written past the caches
  float* stack;   // partial sums of complete subtrees, one tile per level
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

template <int kRows>
[[gnu::always_inline]] inline void write_result(const Tile<kRows>& tile, const Result& result,
                                                int64_t row, int64_t column) {
  const auto columns = static_cast<int>(std::min<int64_t>(kPanel, result.width - column));
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; ++v) {
      float* at = result.dw + (row + i) * result.width + column + v * VecF::kLanes;
      const int n = std::min(VecF::kLanes, columns - v * VecF::kLanes);
      if (n == VecF::kLanes) {
        if (result.add) {
          store(at, load(at) + tile.sum[i][v]);
        } else if (result.streamed) {
          stream(at, tile.sum[i][v]);
        } else {
          store(at, tile.sum[i][v]);
        }
      } else if (n > 0) {
        store(at, result.add ? load(at, n) + tile.sum[i][v] : tile.sum[i][v], n);
      }
    }
  }
}

// The tree is walked like a binary counter: after unit u as many complete subtrees end as u has
// trailing ones, each joined with its left sibling from the stack. When the number of units is no
// power of two the remaining subtrees are joined from the right: with 7 units ((u0+u1)+(u2+u3)) +
// ((u4+u5) + u6).
template <class T, int kRows>
void gradient_tile(const Result& result, const uint32_t* a, const uint32_t* b, int64_t row,
                   int64_t column) {
  Tile<kRows> tile{};
  for (int64_t u = 0; u < result.units; ++u) {
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) tile.sum[i][0] = tile.sum[i][1] = zero();
    const int64_t steps = result.first_step[u + 1] - result.first_step[u];
    accumulate<T>(tile, a, b, steps);
    a += steps * kRows;
    b += steps * kPanel;
    int level = 0;
    for (; (u >> level & 1) != 0; ++level) join(result.stack + level * kTileFloats, tile);
    if (u + 1 < result.units) {
      keep(tile, result.stack + level * kTileFloats);
    } else {
      for (++level; (u >> level) != 0; ++level) {
        if ((u >> level & 1) != 0) join(result.stack + level * kTileFloats, tile);
      }
    }
  }
  write_result(tile, result, row, column);
}

template <class T>
using GradientFunction = void (*)(const Result&, const uint32_t*, const uint32_t*, int64_t,
                                  int64_t);

// Entry i - 1 computes i rows of the gradient.
template <class T>
constexpr auto kGradientFunctions = []<int... i>(std::integer_sequence<int, i...>) {
  return std::array<GradientFunction<T>, sizeof...(i)>{&gradient_tile<T, i + 1>...};
}
(std::make_integer_sequence<int, kTileRows>{});

// dW is cut into blocks of tiles: kBlockTiles tiles high, all columns wide. x is packed into panels
// once (by all threads, before), dy block by block, by the thread that needs it, into scratch that
// stays in its second-level cache while the panels of x pass by.
constexpr int64_t kBlockTiles = 8;
constexpr int64_t kTasksPerThread = 4;  // fewer tiles per block where there would be fewer tasks

template <class T>
class WeightGradient {
 public:
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
        tiles_((outputs_ + kTileRows - 1) / kTileRows),
        add_(write == Write::kAdd),
        streamed_(!add_ && streams(dw_, dw.elements() / std::max<int64_t>(1, width_), width_)) {}

  void run() {
    const int64_t results = segments_.groups * segments_.slots;
    if (outputs_ == 0 || width_ == 0 || results == 0) return;
    ScratchScope scope(context_.scratch());
    Arena& arena = context_.scratch();
    count_steps();
    x_words_ = take_words(first_step_[results * segments_.units] * panels_ * kPanel);
    const int64_t runs = (panels_ + kPanelsPerTask - 1) / kPanelsPerTask;
    context_.parallel_for(results * segments_.units * runs,
                          [&](int64_t task, int) { pack_x(task / runs, task % runs); });

    const int64_t wanted = std::max<int64_t>(1, context_.threads() * kTasksPerThread / results);
    block_tiles_ = std::clamp<int64_t>(tiles_ / wanted, 1, kBlockTiles);
    const int64_t blocks = (tiles_ + block_tiles_ - 1) / block_tiles_;
    const int64_t dy_words = most_steps_ * block_tiles_ * kTileRows;
    const int64_t levels = std::bit_width(static_cast<uint64_t>(segments_.units));
    uint32_t* dy_scratch = take_words(context_.threads() * dy_words);
    float* stacks = arena.take<float>({context_.threads(), levels * kTileFloats}).data();
    context_.parallel_dynamic(results * blocks, [&](int64_t task, int thread) {
      compute_block(task / blocks, task % blocks, dy_scratch + thread * dy_words,
                    stacks + thread * levels * kTileFloats);
    });
  }

 private:
  static constexpr int64_t kPanelsPerTask = 4;

  uint32_t* take_words(int64_t count) {
    return static_cast<uint32_t*>(
        context_.scratch().take_bytes(static_cast<size_t>(count) * sizeof(uint32_t)));
  }

  // Segment i = r * units + u holds unit u of result r = g * slots + s.
  int64_t row_of_segment(int64_t i) const { return segments_.offsets[static_cast<size_t>(i)]; }
  int64_t steps_of_result(int64_t r) const {
    return first_step_[(r + 1) * segments_.units] - first_step_[r * segments_.units];
  }

  void count_steps() {
    const int64_t count = segments_.groups * segments_.slots * segments_.units;
    first_step_ = context_.scratch().take<int64_t>({count + 1}).data();
    first_step_[0] = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t steps = steps_for<T>(row_of_segment(i + 1) - row_of_segment(i));
      first_step_[i + 1] = first_step_[i] + steps;
      if ((i + 1) % segments_.units == 0) {
        most_steps_ = std::max(most_steps_, steps_of_result(i / segments_.units));
      }
    }
  }

  // Panels of one result lie one after the other, each [steps][kPanel].
  uint32_t* panel_of(int64_t r, int64_t panel) const {
    const int64_t first = first_step_[r * segments_.units];
    return x_words_ + (first * panels_ + steps_of_result(r) * panel) * kPanel;
  }

  void pack_x(int64_t segment, int64_t run) {
    const int64_t r = segment / segments_.units;
    const int64_t row = row_of_segment(segment);
    const int64_t step = first_step_[segment] - first_step_[r * segments_.units];
    const int64_t last = std::min(panels_, (run + 1) * kPanelsPerTask);
    for (int64_t panel = run * kPanelsPerTask; panel < last; ++panel) {
      const int64_t column = panel * kPanel;
      pack_rows<T>(x_ + row * width_ + column, width_, row_of_segment(segment + 1) - row,
                   std::min<int64_t>(kPanel, width_ - column), kPanel,
                   panel_of(r, panel) + step * kPanel);
    }
  }

  int64_t row_of_tile(int64_t tile) const { return outputs_ * tile / tiles_; }

  // dy of the block's tiles, each [steps][height].
  void pack_dy(int64_t r, int64_t first, int64_t last, uint32_t* words) const {
    const int64_t steps = steps_of_result(r);
    for (int64_t i = r * segments_.units; i < (r + 1) * segments_.units; ++i) {
      const int64_t row = row_of_segment(i);
      const int64_t step = first_step_[i] - first_step_[r * segments_.units];
      for (int64_t tile = first; tile < last; ++tile) {
        const int64_t column = row_of_tile(tile);
        const int64_t height = row_of_tile(tile + 1) - column;
        pack_rows<T>(dy_ + row * outputs_ + column, outputs_, row_of_segment(i + 1) - row, height,
                     height, words + (column - row_of_tile(first)) * steps + step * height);
      }
    }
  }

  void compute_block(int64_t r, int64_t block, uint32_t* dy_words, float* stack) const {
    const int64_t group = r / segments_.slots;
    const int64_t slot = r % segments_.slots;
    const Result result = {
        .first_step = first_step_ + r * segments_.units,
        .units = segments_.units,
        .dw = dw_ + (slot * segments_.groups + group) * outputs_ * width_,
        .width = width_,
        .add = add_,
        .streamed = streamed_,
        .stack = stack,
    };
    const int64_t first = block * block_tiles_;
    const int64_t last = std::min(tiles_, first + block_tiles_);
    pack_dy(r, first, last, dy_words);
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const uint32_t* x_words = panel_of(r, panel);
      for (int64_t tile = first; tile < last; ++tile) {
        const int64_t row = row_of_tile(tile);
        const int64_t height = row_of_tile(tile + 1) - row;
        const uint32_t* a = dy_words + (row - row_of_tile(first)) * steps_of_result(r);
        kGradientFunctions<T>[static_cast<size_t>(height - 1)](result, a, x_words, row,
                                                               panel * kPanel);
      }
    }
    if (streamed_) stream_fence();
  }

  Context& context_;
  const UnitSegments& segments_;
  const T* dy_;
  const T* x_;
  float* dw_;
  int64_t outputs_;  // F
  int64_t width_;    // D
  int64_t panels_;   // of x
  int64_t tiles_;    // of dy
  bool add_;
  bool streamed_;
  int64_t block_tiles_ = 1;
  int64_t most_steps_ = 0;         // of one result
  int64_t* first_step_ = nullptr;  // steps before each segment
  uint32_t* x_words_ = nullptr;    // x, packed
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
const GroupedGemmDwKernels cpu::Table<GroupedGemmDwKernels, cpu::kThisIsa>::value = {
    &weight_gradient};

}  // namespace degu
