#include "kernels/cpu/attention.h"

#include <cmath>

#include "kernels/cpu/attention_bytes.h"
#include "kernels/cpu/attention_tiles.h"
#include "kernels/tables/attention.h"

namespace degu {
namespace {

constexpr double kLn2 = 0.69314718055994531;

// Some consecutive positions of one sequence inside one block, for one key/value head.
struct BlockTask {
  int32_t sequence;
  int32_t kv_head;
  int32_t block;
};

std::span<BlockTask> block_tasks(Arena& scratch, const Sequences& sequences, int64_t kv_heads) {
  int64_t blocks = 0;
  const auto first_block = [&](int64_t s) {
    return sequences.first_position[static_cast<size_t>(s)] / kBlock;
  };
  const auto end_block = [&](int64_t s) {
    return kv_pages_for(sequences.first_position[static_cast<size_t>(s)] + sequences.length(s));
  };
  for (int64_t s = 0; s < sequences.count(); ++s) {
    if (sequences.length(s) > 0) blocks += end_block(s) - first_block(s);
  }
  auto* tasks = static_cast<BlockTask*>(
      scratch.take_bytes(static_cast<size_t>(blocks * kv_heads) * sizeof(BlockTask)));
  int64_t count = 0;
  for (int64_t s = 0; s < sequences.count(); ++s) {
    if (sequences.length(s) == 0) continue;
    for (int64_t g = 0; g < kv_heads; ++g) {
      // Late blocks see the most keys: long tasks first.
      for (int64_t b = end_block(s) - 1; b >= first_block(s); --b) {
        tasks[count++] = {static_cast<int32_t>(s), static_cast<int32_t>(g),
                          static_cast<int32_t>(b)};
      }
    }
  }
  return {tasks, static_cast<size_t>(count)};
}

// The rows of a batch that a task covers, and where they start.
struct Span {
  int64_t row;       // first row of the batch
  int64_t position;  // of that row in its sequence
  int64_t count;

  Span(const Sequences& sequences, const BlockTask& task) {
    const auto s = static_cast<size_t>(task.sequence);
    const int64_t first = sequences.first_position[s];
    position = std::max(first, task.block * kBlock);
    row = sequences.offsets[s] + position - first;
    count = std::min(first + sequences.length(task.sequence), (task.block + 1) * kBlock) - position;
  }
};

// ---- storing keys and values ----

size_t page_bytes(DType dtype, int64_t kv_heads, int64_t head_width) {
  if (dtype == DType::kI8) {
    return static_cast<size_t>(kv_heads) * BytePageLayout(head_width).head_bytes();
  }
  const PageLayout layout(dtype, head_width);
  return static_cast<size_t>(kv_heads * layout.head_elements()) * size_of(dtype);
}

template <class T>
void store_values(const T* v, int64_t stride, int64_t first, int64_t count,
                  const PageLayout& layout, T* values) {
  const auto put_one = [&](int64_t r) {
    const int64_t key = first + r;
    T* to = values + key / kPack<T> * layout.columns * kPack<T> + key % kPack<T>;
    for (int64_t d = 0; d < layout.head_width; ++d) to[d * kPack<T>] = v[r * stride + d];
  };
  int64_t r = 0;
  if (first % kPack<T> != 0) put_one(r++);
  const int64_t whole = (count - r) / kPack<T> * kPack<T>;
  if (whole > 0) {
    rows_to_words(v + r * stride, stride, whole, layout.head_width,
                  values + (first + r) * layout.columns, layout.columns * kPack<T>);
    r += whole;
  }
  if (r < count) put_one(r);
}

template <class T>
void store_pages(Context& context, View<T> k_TGA, View<T> v_TGA, const Sequences& sequences,
                 const KvView& kv) {
  const PageLayout layout(kv.dtype, kv.head_width);
  const int64_t stride = kv.kv_heads * kv.head_width;
  const bool odd = kv.head_width % kPack<T> != 0;
  const int64_t padded = layout.key_words * kPack<T>;
  ScratchScope scope(context.scratch());
  const auto tasks = block_tasks(context.scratch(), sequences, kv.kv_heads);
  T* copies = odd ? context.scratch().take<T>({context.threads(), kBlock, padded}).data() : nullptr;
  context.parallel_for(static_cast<int64_t>(tasks.size()), [&](int64_t i, int thread) {
    const BlockTask& task = tasks[static_cast<size_t>(i)];
    const Span span(sequences, task);
    const int64_t slot = span.position % kBlock;
    T* page = page_of<T>(kv, layout, task.sequence, task.block, task.kv_head);
    const int64_t from = span.row * stride + task.kv_head * kv.head_width;
    const T* keys = k_TGA.data() + from;
    int64_t key_stride = stride;
    if (odd) {  // a key's last dimension shares its word with a zero
      T* copy = copies + thread * kBlock * padded;
      copy_rows(keys, stride, span.count, kv.head_width, copy, padded, span.count);
      keys = copy;
      key_stride = padded;
    }
    transpose_words(keys, key_stride / kPack<T>, span.count, layout.key_words,
                    page + slot * kPack<T>, kBlock);
    store_values(v_TGA.data() + from, stride, slot, span.count, layout,
                 page + layout.key_elements());
  });
}

template <class T>
void store_byte_pages(Context& context, View<T> k_TGA, View<T> v_TGA, const Sequences& sequences,
                      const KvView& kv) {
  const PageLayout layout(dtype_of<T>, kv.head_width);
  const int64_t stride = kv.kv_heads * kv.head_width;
  ScratchScope scope(context.scratch());
  const auto tasks = block_tasks(context.scratch(), sequences, kv.kv_heads);
  context.parallel_for(static_cast<int64_t>(tasks.size()), [&](int64_t i, int) {
    const BlockTask& task = tasks[static_cast<size_t>(i)];
    const Span span(sequences, task);
    const BytePage page(kv, layout, task.sequence, task.block, task.kv_head);
    const int64_t from = span.row * stride + task.kv_head * kv.head_width;
    for (int64_t r = 0; r < span.count; ++r) {
      const int64_t slot = span.position % kBlock + r;
      store_key<T>(page, layout, slot, k_TGA.data() + from + r * stride);
      store_value<T>(page, layout, slot, v_TGA.data() + from + r * stride);
    }
  });
}

void store_any(Context& context, AnyView k_TGA, AnyView v_TGA, const Sequences& sequences,
               const KvView& kv) {
  if (kv.dtype == DType::kI8) {
    if (k_TGA.dtype == DType::kF32) {
      store_byte_pages(context, k_TGA.as<float>(), v_TGA.as<float>(), sequences, kv);
    } else {
      store_byte_pages(context, k_TGA.as<bf16>(), v_TGA.as<bf16>(), sequences, kv);
    }
  } else if (kv.dtype == DType::kF32) {
    store_pages(context, k_TGA.as<float>(), v_TGA.as<float>(), sequences, kv);
  } else {
    store_pages(context, k_TGA.as<bf16>(), v_TGA.as<bf16>(), sequences, kv);
  }
}

// ---- forward ----

// Online softmax over blocks of keys. For each row: base, the largest score so far in units of
// log2; sum, lane by lane, of 2^(score - base); out, the same sum weighted with values.
template <class T>
struct ForwardTile {
  T* q;           // [64, padded width]
  float* score;   // [16, 64]
  T* weight;      // [16, 64]
  T* expanded;    // int8 pages only: one head of a page as T
  float* out;     // [64, columns]
  float* sum;     // [64, lanes]
  float* base;    // [64]
  float* factor;  // [16]

  static size_t bytes(const PageLayout& layout, bool expand) {
    const int64_t values = layout.key_words * kPack<T> * kBlock + kRun * kBlock +
                           (expand ? layout.head_elements() : 0);
    const int64_t floats = kRun * kBlock + kBlock * (layout.columns + kLanes + 1) + kRun;
    return static_cast<size_t>(values) * sizeof(T) + static_cast<size_t>(floats) * sizeof(float);
  }
  ForwardTile(void* memory, const PageLayout& layout) {
    score = static_cast<float*>(memory);
    out = score + kRun * kBlock;
    sum = out + kBlock * layout.columns;
    base = sum + kBlock * kLanes;
    factor = base + kBlock;
    weight = reinterpret_cast<T*>(factor + kRun);
    q = weight + kRun * kBlock;
    expanded = q + layout.key_words * kPack<T> * kBlock;
  }
};

// Scores of one row at and beyond `keys` become kLowest.
void mask_row(float* score, int64_t keys, int64_t columns) {
  for (int64_t n = keys / kLanes * kLanes; n < columns; n += kLanes) {
    const int kept = static_cast<int>(std::clamp<int64_t>(keys - n, 0, kLanes));
    store(score + n, keep_first(load(score + n), kept, broadcast(kLowest)));
  }
}

// Turns the scores of up to 16 rows into weights 2^(score * scale2 - base) and moves base, sum and
// factor on. `columns` of the 64 keys are in use.
template <class T>
void softmax_run(const ForwardTile<T>& tile, int64_t first_row, int64_t rows, int64_t columns,
                 float scale2) {
  VecF best[kRun];
  for (int64_t r = 0; r < rows; ++r) {
    const float* score = tile.score + r * kBlock;
    VecF top = load(score);
    for (int64_t n = kLanes; n < columns; n += kLanes) top = max(top, load(score + n));
    best[r] = top;
  }
  for (int64_t r = rows; r < kRun; ++r) best[r] = broadcast(kLowest);
  alignas(64) float top[kRun];
  reduce_lanes(
      best, [](VecF a, VecF b) { return max(a, b); }, top);
  const VecF scale = broadcast(scale2);
  float* base = tile.base + first_row;
  for (int64_t n = 0; n < kRun; n += kLanes) {
    const VecF before = load(base + n);
    const VecF after = max(before, load(top + n) * scale);
    store(tile.factor + n, exp2_of(before - after));
    store(base + n, after);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const VecF shift = broadcast(-base[r]);
    float* row_sum = tile.sum + (first_row + r) * kLanes;
    VecF sum = load(row_sum) * broadcast(tile.factor[r]);
    for (int64_t n = 0; n < columns; n += kLanes) {
      const VecF p = exp2_of(fma(load(tile.score + r * kBlock + n), scale, shift));
      sum = sum + p;
      store(tile.weight + r * kBlock + n, p);
    }
    store(row_sum, sum);
  }
}

// One block of keys for all rows of a tile. Row r is query r / heads of the tile and sees
// `visible` + r / heads keys of the block (64 or more: all).
template <class T>
void attend_block(const ForwardTile<T>& tile, const PageLayout& layout, const T* page, int64_t rows,
                  int64_t heads, int64_t visible, bool first_block, float scale2) {
  for (int64_t r0 = 0; r0 < rows; r0 += kRun) {
    const int64_t count = std::min(kRun, rows - r0);
    const auto keys_of = [&](int64_t r) { return std::min(kBlock, visible + (r0 + r) / heads); };
    const int64_t columns = (keys_of(count - 1) + kRun - 1) / kRun * kRun;
    product<T, Start::kZero>({tile.q + r0 * layout.key_words * kPack<T>, layout.key_words},
                             {page, kBlock}, count, columns, layout.key_words,
                             {tile.score, kBlock});
    if (keys_of(0) < columns) {
      for (int64_t r = 0; r < count; ++r) mask_row(tile.score + r * kBlock, keys_of(r), columns);
    }
    softmax_run(tile, r0, count, columns, scale2);
    const Operand<T> weights{tile.weight, kBlock / kPack<T>};
    const Operand<T> values{page + layout.key_elements(), layout.columns};
    const Sums out{tile.out + r0 * layout.columns, layout.columns, tile.factor};
    if (first_block) {
      product<T, Start::kZero>(weights, values, count, layout.columns, columns / kPack<T>, out);
    } else {
      product<T, Start::kScaled>(weights, values, count, layout.columns, columns / kPack<T>, out);
    }
  }
}

template <class T>
struct Forward {
  const PageLayout layout;
  const View<T> q_THA;
  const KvView& kv;
  const Sequences& sequences;
  const float scale2;
  const View<T> out_THA;
  float* lse_TH;

  // Queries of one block and one key/value head: all its query heads, as many at a time as fill a
  // tile.
  void run(const BlockTask& task, const ForwardTile<T>& tile) const {
    const Span span(sequences, task);
    const int64_t group = q_THA.dim(1) / kv.kv_heads;
    const int64_t heads = std::clamp<int64_t>(kBlock / span.count, 1, group);
    for (int64_t h = 0; h < group; h += heads) {
      run_heads(task, span, task.kv_head * group + h, std::min(heads, group - h), tile);
    }
  }

  void run_heads(const BlockTask& task, const Span& span, int64_t head, int64_t heads,
                 const ForwardTile<T>& tile) const {
    const int64_t width = layout.head_width;
    const int64_t padded = layout.key_words * kPack<T>;
    const int64_t row_elements = q_THA.dim(1) * width;
    const int64_t rows = span.count * heads;
    for (int64_t t = 0; t < span.count; ++t) {
      copy_rows(q_THA.data() + (span.row + t) * row_elements + head * width, width, heads, width,
                tile.q + t * heads * padded, padded, heads);
    }
    std::fill_n(tile.base, kBlock, kLowest);
    std::fill_n(tile.sum, rows * kLanes, 0.0f);
    for (int64_t b = 0; b <= task.block; ++b) {
      const T* page = nullptr;
      if (kv.dtype == DType::kI8) {
        expand(BytePage(kv, layout, task.sequence, b, task.kv_head), layout, tile.expanded);
        page = tile.expanded;
      } else {
        page = page_of<T>(kv, layout, task.sequence, b, task.kv_head);
      }
      const int64_t visible = span.position + 1 - b * kBlock;
      attend_block(tile, layout, page, rows, heads, visible, b == 0, scale2);
    }
    for (int64_t t = 0; t < span.count; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        write_row(tile, t * heads + h, (span.row + t) * q_THA.dim(1) + head + h);
      }
    }
  }

  // `to` counts rows of [T * H, A].
  void write_row(const ForwardTile<T>& tile, int64_t r, int64_t to) const {
    const float sum = sum_lanes(load(tile.sum + r * kLanes));
    const VecF inverse = broadcast(1.0f / sum);
    const float* from = tile.out + r * layout.columns;
    T* out = out_THA.data() + to * layout.head_width;
    // + 0 turns -0 into +0: whether masked keys were skipped or added as zeros leaves no trace.
    int64_t d = 0;
    for (; d + kLanes <= layout.head_width; d += kLanes) {
      store(out + d, load(from + d) * inverse + zero());
    }
    if (d < layout.head_width) {
      store(out + d, load(from + d) * inverse + zero(), static_cast<int>(layout.head_width - d));
    }
    if (lse_TH != nullptr) {
      lse_TH[to] = static_cast<float>(
          (static_cast<double>(tile.base[r]) + std::log2(static_cast<double>(sum))) * kLn2);
    }
  }
};

template <class T>
void forward(Context& context, AnyView q_THA, const KvView& kv, const Sequences& sequences,
             float scale, AnyView out_THA, AnyView lse_TH) {
  const Forward<T> pass{PageLayout(dtype_of<T>, kv.head_width),
                        q_THA.as<T>(),
                        kv,
                        sequences,
                        scale * kLog2E,
                        out_THA.as<T>(),
                        static_cast<float*>(lse_TH.data)};
  ScratchScope scope(context.scratch());
  const auto tasks = block_tasks(context.scratch(), sequences, kv.kv_heads);
  const size_t tile_bytes =
      (ForwardTile<T>::bytes(pass.layout, kv.dtype == DType::kI8) + 63) / 64 * 64;
  auto* memory = static_cast<std::byte*>(
      context.scratch().take_bytes(tile_bytes * static_cast<size_t>(context.threads())));
  context.parallel_dynamic(static_cast<int64_t>(tasks.size()), [&](int64_t i, int thread) {
    const ForwardTile<T> tile(memory + tile_bytes * static_cast<size_t>(thread), pass.layout);
    pass.run(tasks[static_cast<size_t>(i)], tile);
  });
}

void forward_any(Context& context, AnyView q_THA, const KvView& kv, const Sequences& sequences,
                 float scale, AnyView out_THA, AnyView lse_TH) {
  if (q_THA.dtype == DType::kF32) {
    forward<float>(context, q_THA, kv, sequences, scale, out_THA, lse_TH);
  } else {
    forward<bf16>(context, q_THA, kv, sequences, scale, out_THA, lse_TH);
  }
}

}  // namespace

template <>
const AttentionKernels cpu::Table<AttentionKernels, cpu::kThisIsa>::value = {
    &page_bytes, &store_any, &forward_any};

}  // namespace degu
