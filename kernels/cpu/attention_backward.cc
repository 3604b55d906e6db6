#include <cmath>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_tiles.h"
#include "kernels/tables/attention.h"

namespace degu {
namespace {

// With s = scale * q·k, p = exp(s - lse), delta = dot(dout, out), for each query and visible key:
//   dp = dout·v;  ds = p * (dp - delta);  dv += p * dout;  dk += scale * ds * q;  dq += scale * ds
//   * k
// p and ds are rounded to the type of the view before they meet another operand, and scale is
// applied to the finished sums.
//
// One task is one sequence and key/value head. Order of the sums, whatever the threads:
//   dq: over blocks of keys in order; dk, dv: over blocks of queries in order for each query head,
//   then over the group's heads in order.

// Rows of queries and keys of one block, padded to `runs` runs of 16 with zeros.
template <class T>
struct QueryBlock {
  T* q;             // [64, padded width]            left operand of scores
  T* dout;          // [64, padded width]            left operand of dp
  T* q_columns;     // [A, 64 / pack] words          left operand of dk^T
  T* dout_columns;  // [A, 64 / pack] words          left operand of dv^T
  float* dq;        // [64, columns]
  float* lse2;      // [64]  lse / ln 2; huge in padding rows: their p is 0
  float* delta;     // [64]
};

template <class T>
struct KeyBlock {
  const T* keys;    // [key words][64]      right operand of scores (the page itself)
  T* values_inner;  // [key words][64]      right operand of dp
  T* keys_outer;    // [64 / pack][columns] right operand of dq
};

// Scratch of one thread.
template <class T>
class Workspace {
 public:
  Workspace(std::byte* memory, const PageLayout& layout, int64_t blocks) : layout_(layout) {
    next_ = reinterpret_cast<uintptr_t>(memory);
    queries_.q = take<T>(blocks * row_elements());
    queries_.dout = take<T>(blocks * row_elements());
    queries_.q_columns = take<T>(blocks * column_elements());
    queries_.dout_columns = take<T>(blocks * column_elements());
    queries_.dq = take<float>(blocks * sum_elements());
    queries_.lse2 = take<float>(blocks * kBlock);
    queries_.delta = take<float>(blocks * kBlock);
    values_inner_ = take<T>(blocks * row_elements());
    keys_outer_ = take<T>(blocks * sum_elements());
    dk_total = take<float>(blocks * column_elements());
    dv_total = take<float>(blocks * column_elements());
    dk = take<float>(column_elements());
    dv = take<float>(column_elements());
    score = take<float>(kRun * kBlock);
    dp = take<float>(kRun * kBlock);
    p_words = take<T>(kBlock * kBlock);
    ds_words = take<T>(kBlock * kBlock);
    ds_rows = take<T>(kRun * kBlock);
    rows = take<T>(sum_elements());
    words = take<T>(sum_elements());
    sums = take<float>(sum_elements());
  }
  // What a workspace laid out at address 0 needs.
  static size_t bytes(const PageLayout& layout, int64_t blocks) {
    return Workspace(nullptr, layout, blocks).next_;
  }

  QueryBlock<T> queries(int64_t i) const {
    return {queries_.q + i * row_elements(),
            queries_.dout + i * row_elements(),
            queries_.q_columns + i * column_elements(),
            queries_.dout_columns + i * column_elements(),
            queries_.dq + i * sum_elements(),
            queries_.lse2 + i * kBlock,
            queries_.delta + i * kBlock};
  }
  KeyBlock<T> keys(const T* page, int64_t j) const {
    return {page, values_inner_ + j * row_elements(), keys_outer_ + j * sum_elements()};
  }
  int64_t row_elements() const { return kBlock * layout_.key_words * kPack<T>; }
  int64_t column_elements() const { return layout_.head_width * kBlock; }
  int64_t sum_elements() const { return kBlock * layout_.columns; }

  float* dk_total;  // [blocks, A, 64]: sums over the heads so far
  float* dv_total;
  float* dk;  // [A, 64]: dk^T and dv^T of one head and block of keys
  float* dv;
  float* score;  // [16, 64]
  float* dp;     // [16, 64]
  T* p_words;    // [64 / pack][64] words
  T* ds_words;
  T* ds_rows;  // [16, 64]
  T* rows;     // [64, columns]: rearranging
  T* words;
  float* sums;

 private:
  template <class U>
  U* take(int64_t elements) {
    auto* piece =
        reinterpret_cast<U*>(next_);  // NOLINT(performance-no-int-to-ptr): from null when measuring
    next_ += (static_cast<uintptr_t>(elements) * sizeof(U) + 63) / 64 * 64;
    return piece;
  }
  const PageLayout layout_;
  uintptr_t next_ = 0;
  QueryBlock<T> queries_;
  T* values_inner_;
  T* keys_outer_;
};

// Rounds a vector of each of two neighbouring rows of p and stores them as words.
inline void store_p(float* words, VecF even, VecF odd) {
  store(words, even);
  store(words + kBlock, odd);
}
// The same for ds, which is stored as rows too. fp32 words are rows: rows and words are one buffer.
inline void store_ds(float* words, float*, VecF even, VecF odd) {
  store_p(words, even, odd);
}

#if defined(__AVX512BF16__)
inline __m512i joined(__m512i rows) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, rows);
}
inline void store_p(bf16* words, VecF even, VecF odd) {
  _mm512_storeu_si512(words, joined((__m512i)_mm512_cvtne2ps_pbh(odd.v, even.v)));
}
inline void store_ds(bf16* words, bf16* rows, VecF even, VecF odd) {
  const auto both = (__m512i)_mm512_cvtne2ps_pbh(odd.v, even.v);
  _mm512_storeu_si512(words, joined(both));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows), _mm512_castsi512_si256(both));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows + kBlock),
                      _mm512_extracti64x4_epi64(both, 1));
}
#else
inline void store_p(bf16* words, VecF even, VecF odd) {
  bf16 low[kLanes];
  bf16 high[kLanes];
  store(low, even);
  store(high, odd);
  for (int64_t i = 0; i < kLanes; ++i) {
    words[2 * i] = low[i];
    words[2 * i + 1] = high[i];
  }
}
inline void store_ds(bf16* words, bf16* rows, VecF even, VecF odd) {
  store(rows, even);
  store(rows + kBlock, odd);
  store_p(words, even, odd);
}
#endif

// p and ds of one run of 16 queries against `columns` keys of a block, from the scores and dp.
// On the diagonal row r sees r + first_row + 1 keys.
template <class T>
void weights_run(const Workspace<T>& work, const QueryBlock<T>& queries, int64_t first_row,
                 int64_t columns, bool diagonal, float scale2) {
  const VecF scale = broadcast(scale2);
  for (int64_t r = 0; r < kRun; r += 2) {
    const float* score = work.score + r * kBlock;
    const float* dp = work.dp + r * kBlock;
    const float* lse2 = queries.lse2 + first_row + r;
    const float* delta = queries.delta + first_row + r;
    T* p_words = work.p_words + (first_row + r) * kBlock;
    T* ds_words = work.ds_words + (first_row + r) * kBlock;
    T* ds_rows = work.ds_rows + r * kBlock;
    for (int64_t n = 0; n < columns; n += kLanes) {
      VecF p[2];
      VecF ds[2];
      for (int64_t i = 0; i < 2; ++i) {
        p[i] = exp2_of(fma(load(score + i * kBlock + n), scale, broadcast(-lse2[i])));
        ds[i] = p[i] * (load(dp + i * kBlock + n) - broadcast(delta[i]));
        if (diagonal && n + kLanes > first_row) {
          const auto seen = std::clamp<int64_t>(first_row + r + i + 1 - n, 0, kLanes);
          p[i] = keep_first(p[i], static_cast<int>(seen), zero());
          ds[i] = keep_first(ds[i], static_cast<int>(seen), zero());
        }
      }
      store_p(p_words + n * kPack<T>, p[0], p[1]);
      store_ds(ds_words + n * kPack<T>, ds_rows + n, ds[0], ds[1]);
    }
  }
}

template <class T>
void product_from(bool fresh, Operand<T> a, Operand<T> b, int64_t rows, int64_t columns,
                  int64_t steps, Sums c) {
  if (fresh) {
    product<T, Start::kZero>(a, b, rows, columns, steps, c);
  } else {
    product<T, Start::kAdd>(a, b, rows, columns, steps, c);
  }
}

// One block of `runs` * 16 queries against one block of keys: the first one (j = 0) starts dq, the
// diagonal one starts dk and dv.
template <class T>
void block_pair(const Workspace<T>& work, const PageLayout& layout, const QueryBlock<T>& queries,
                const KeyBlock<T>& keys, int64_t runs, bool first_keys, bool diagonal,
                float scale2) {
  const int64_t words = layout.key_words;
  for (int64_t run = 0; run < runs; ++run) {
    const int64_t row = run * kRun;
    const int64_t columns = diagonal ? row + kRun : kBlock;
    product<T, Start::kZero>({queries.q + row * words * kPack<T>, words}, {keys.keys, kBlock}, kRun,
                             columns, words, {work.score, kBlock});
    product<T, Start::kZero>({queries.dout + row * words * kPack<T>, words},
                             {keys.values_inner, kBlock}, kRun, columns, words, {work.dp, kBlock});
    weights_run(work, queries, row, columns, diagonal, scale2);
    const T* ds = kPack<T> == 1 ? work.ds_words + row * kBlock : work.ds_rows;
    product_from<T>(first_keys, {ds, kBlock / kPack<T>}, {keys.keys_outer, layout.columns}, kRun,
                    layout.columns, columns / kPack<T>,
                    {queries.dq + row * layout.columns, layout.columns});
  }
  // On the diagonal a run of keys is seen by the queries from the same run on.
  const int64_t width = diagonal ? kRun : kBlock;
  for (int64_t n = 0; n < (diagonal ? runs * kRun : kBlock); n += width) {
    const int64_t first = diagonal ? n / kPack<T> : 0;  // word
    const int64_t steps = runs * kRun / kPack<T> - first;
    const int64_t offset = (first * kBlock + n) * kPack<T>;
    const int64_t stride = kBlock / kPack<T>;
    product_from<T>(diagonal, {queries.dout_columns + first * kPack<T>, stride},
                    {work.p_words + offset, kBlock}, layout.head_width, width, steps,
                    {work.dv + n, kBlock});
    product_from<T>(diagonal, {queries.q_columns + first * kPack<T>, stride},
                    {work.ds_words + offset, kBlock}, layout.head_width, width, steps,
                    {work.dk + n, kBlock});
  }
}

template <class T>
struct Backward {
  const PageLayout layout;
  const KvView& kv;
  const Sequences& sequences;
  const int64_t heads;
  const float scale;
  const float scale2;
  const T* q_THA;
  const T* out_THA;
  const float* lse_TH;
  const T* dout_THA;
  T* dq_THA;
  T* dk_TGA;
  T* dv_TGA;

  int64_t rows_in(int64_t s, int64_t block) const {
    return std::min(kBlock, sequences.length(s) - block * kBlock);
  }

  void run(int64_t s, int64_t kv_head, const Workspace<T>& work) const {
    const int64_t blocks = kv_pages_for(sequences.length(s));
    const int64_t group = heads / kv.kv_heads;
    for (int64_t j = 0; j < blocks; ++j) prepare_keys(s, kv_head, j, work);
    for (int64_t g = 0; g < group; ++g) {
      const int64_t head = kv_head * group + g;
      for (int64_t i = 0; i < blocks; ++i) prepare_queries(s, head, i, work);
      for (int64_t j = 0; j < blocks; ++j) {
        if (rows_in(s, j) <= kBlock - kRun) {  // runs of keys that do not exist
          std::fill_n(work.dk, work.column_elements(), 0.0f);
          std::fill_n(work.dv, work.column_elements(), 0.0f);
        }
        const KeyBlock<T> keys = work.keys(page_of<T>(kv, layout, s, j, kv_head), j);
        for (int64_t i = j; i < blocks; ++i) {
          const int64_t runs = (rows_in(s, i) + kRun - 1) / kRun;
          block_pair(work, layout, work.queries(i), keys, runs, j == 0, i == j, scale2);
        }
        finish_keys(s, kv_head, j, g, group, work);
      }
      for (int64_t i = 0; i < blocks; ++i) finish_queries(s, head, i, work);
    }
  }

  void prepare_keys(int64_t s, int64_t kv_head, int64_t j, const Workspace<T>& work) const {
    const int64_t words = layout.key_words;
    const int64_t padded = words * kPack<T>;
    const T* page = page_of<T>(kv, layout, s, j, kv_head);
    const KeyBlock<T> keys = work.keys(page, j);
    // Keys: words of dimensions by key -> rows -> words of keys by dimension.
    transpose_words(page, kBlock, words, kBlock, work.rows, words);
    if (padded < layout.columns) {
      copy_rows(work.rows, padded, kBlock, padded, work.words, layout.columns, kBlock);
      rows_to_words(work.words, layout.columns, kBlock, layout.columns, keys.keys_outer,
                    layout.columns * kPack<T>);
    } else {
      rows_to_words(work.rows, padded, kBlock, layout.columns, keys.keys_outer,
                    layout.columns * kPack<T>);
    }
    // Values: words of keys by dimension -> rows -> words of dimensions by key.
    words_to_rows(page + layout.key_elements(), layout.columns * kPack<T>, kBlock, layout.columns,
                  work.rows, layout.columns);
    transpose_words(work.rows, layout.columns / kPack<T>, kBlock, words, keys.values_inner, kBlock);
  }

  void prepare_queries(int64_t s, int64_t head, int64_t i, const Workspace<T>& work) const {
    const int64_t width = layout.head_width;
    const int64_t padded = layout.key_words * kPack<T>;
    const int64_t stride = heads * width;
    const int64_t first = sequences.offsets[static_cast<size_t>(s)] + i * kBlock;
    const int64_t rows = rows_in(s, i);
    const QueryBlock<T> to = work.queries(i);
    const T* q = q_THA + first * stride + head * width;
    const T* out = out_THA + first * stride + head * width;
    const T* dout = dout_THA + first * stride + head * width;
    copy_rows(q, stride, rows, width, to.q, padded, kBlock);
    copy_rows(dout, stride, rows, width, to.dout, padded, kBlock);
    to_columns(to.q, to.q_columns, work);
    to_columns(to.dout, to.dout_columns, work);
    for (int64_t r = 0; r < kBlock; ++r) {
      const bool real = r < rows;
      to.lse2[r] = real ? lse_TH[(first + r) * heads + head] * kLog2E : -kLowest;
      to.delta[r] = real ? row_dot(dout + r * stride, out + r * stride) : 0.0f;
    }
  }

  // Rows of queries [64][padded width] -> [A][64 / pack] words of neighbouring queries.
  void to_columns(const T* rows, T* columns, const Workspace<T>& work) const {
    const int64_t width = layout.head_width;
    rows_to_words(rows, layout.key_words * kPack<T>, kBlock, width, work.words, width * kPack<T>);
    transpose_words(work.words, width, kBlock / kPack<T>, width, columns, kBlock / kPack<T>);
  }

  float row_dot(const T* a, const T* b) const {
    VecF sum = zero();
    int64_t d = 0;
    for (; d + kLanes <= layout.head_width; d += kLanes) sum = fma(load(a + d), load(b + d), sum);
    if (d < layout.head_width) {
      const int n = static_cast<int>(layout.head_width - d);
      sum = fma(load(a + d, n), load(b + d, n), sum);
    }
    return sum_lanes(sum);
  }

  void finish_queries(int64_t s, int64_t head, int64_t i, const Workspace<T>& work) const {
    const int64_t first = sequences.offsets[static_cast<size_t>(s)] + i * kBlock;
    write_rows(work.queries(i).dq, layout.columns, rows_in(s, i), scale,
               dq_THA + (first * heads + head) * layout.head_width, heads * layout.head_width);
  }

  // Joins the sums of one head with those of the group's earlier heads; the last one writes them.
  void finish_keys(int64_t s, int64_t kv_head, int64_t j, int64_t g, int64_t group,
                   const Workspace<T>& work) const {
    const float* dk = work.dk;
    const float* dv = work.dv;
    if (group > 1) {
      float* dk_total = work.dk_total + j * work.column_elements();
      float* dv_total = work.dv_total + j * work.column_elements();
      join(work.dk, dk_total, g == 0, work.column_elements());
      join(work.dv, dv_total, g == 0, work.column_elements());
      dk = dk_total;
      dv = dv_total;
    }
    if (g + 1 < group) return;
    const int64_t first = sequences.offsets[static_cast<size_t>(s)] + j * kBlock;
    const int64_t to = (first * kv.kv_heads + kv_head) * layout.head_width;
    write_columns(dk, rows_in(s, j), scale, dk_TGA + to, work);
    write_columns(dv, rows_in(s, j), 1.0f, dv_TGA + to, work);
  }

  static void join(const float* part, float* total, bool first, int64_t count) {
    if (first) {
      std::copy_n(part, count, total);
    } else {
      for (int64_t i = 0; i < count; ++i) total[i] = total[i] + part[i];
    }
  }

  void write_columns(const float* columns, int64_t rows, float factor, T* to,
                     const Workspace<T>& work) const {
    transpose_words(columns, kBlock, layout.head_width, rows, work.sums, layout.columns);
    write_rows(work.sums, layout.columns, rows, factor, to, kv.kv_heads * layout.head_width);
  }

  void write_rows(const float* from, int64_t from_stride, int64_t rows, float factor, T* to,
                  int64_t to_stride) const {
    const VecF f = broadcast(factor);
    for (int64_t r = 0; r < rows; ++r) {
      int64_t d = 0;
      for (; d + kLanes <= layout.head_width; d += kLanes) {
        store(to + r * to_stride + d, load(from + r * from_stride + d) * f);
      }
      if (d < layout.head_width) {
        const int n = static_cast<int>(layout.head_width - d);
        store(to + r * to_stride + d, load(from + r * from_stride + d, n) * f, n);
      }
    }
  }
};

// Sequences and key/value heads, the longest sequences first: tasks of falling cost.
std::span<int64_t> tasks_by_length(Arena& scratch, const Sequences& sequences, int64_t kv_heads) {
  const int64_t count = sequences.count() * kv_heads;
  int64_t* tasks = scratch.take<int64_t>({count}).data();
  for (int64_t i = 0; i < count; ++i) tasks[i] = i;
  std::stable_sort(tasks, tasks + count, [&](int64_t a, int64_t b) {
    return sequences.length(a / kv_heads) > sequences.length(b / kv_heads);
  });
  return {tasks, static_cast<size_t>(count)};
}

template <class T>
void backward(Context& context, AnyView q_THA, const KvView& kv, const Sequences& sequences,
              float scale, AnyView out_THA, AnyView lse_TH, AnyView dout_THA, AnyView dq_THA,
              AnyView dk_TGA, AnyView dv_TGA) {
  const Backward<T> pass{PageLayout(kv.dtype, kv.head_width),
                         kv,
                         sequences,
                         q_THA.dim(1),
                         scale,
                         scale * kLog2E,
                         q_THA.as<T>().data(),
                         out_THA.as<T>().data(),
                         static_cast<const float*>(lse_TH.data),
                         dout_THA.as<T>().data(),
                         dq_THA.as<T>().data(),
                         dk_TGA.as<T>().data(),
                         dv_TGA.as<T>().data()};
  ScratchScope scope(context.scratch());
  const auto tasks = tasks_by_length(context.scratch(), sequences, kv.kv_heads);
  const int64_t blocks = kv_pages_for(sequences.length(tasks[0] / kv.kv_heads));
  const size_t bytes = Workspace<T>::bytes(pass.layout, blocks);
  auto* memory = static_cast<std::byte*>(
      context.scratch().take_bytes(bytes * static_cast<size_t>(context.threads())));
  context.parallel_dynamic(static_cast<int64_t>(tasks.size()), [&](int64_t i, int thread) {
    const Workspace<T> work(memory + bytes * static_cast<size_t>(thread), pass.layout, blocks);
    const int64_t task = tasks[static_cast<size_t>(i)];
    pass.run(task / kv.kv_heads, task % kv.kv_heads, work);
  });
}

void backward_any(Context& context, AnyView q_THA, const KvView& kv, const Sequences& sequences,
                  float scale, AnyView out_THA, AnyView lse_TH, AnyView dout_THA, AnyView dq_THA,
                  AnyView dk_TGA, AnyView dv_TGA) {
  if (kv.dtype == DType::kF32) {
    backward<float>(context, q_THA, kv, sequences, scale, out_THA, lse_TH, dout_THA, dq_THA, dk_TGA,
                    dv_TGA);
  } else {
    backward<bf16>(context, q_THA, kv, sequences, scale, out_THA, lse_TH, dout_THA, dq_THA, dk_TGA,
                   dv_TGA);
  }
}

}  // namespace

template <>
const AttentionBackwardKernels cpu::Table<AttentionBackwardKernels, cpu::kThisIsa>::value = {
    &backward_any};

}  // namespace degu
