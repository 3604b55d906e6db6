// Causal grouped-query attention over a paged key/value view; the same operator in training,
// prefill and decode. Blocked with an online softmax (Dao et al. 2022, arXiv 2205.14135): no S x S
// buffer.
#pragma once

#include <cstddef>
#include <span>

#include "kernels/api/rows.h"
#include "tensor/context.h"

namespace degu {

// Keys per page and per block of the online softmax. Blocks are anchored at position 0 of the
// sequence, so a query's sums are ordered by key position alone: not by chunking, batch or page
// placement.
inline constexpr int64_t kKvPageKeys = 64;

// Keys and values as attention reads them: pages in the backend's own layout.
//
// int8 pages hold each key and each value of a head as A integers with one fp32 scale:
//   s = max_d |x_d| / 127,  q_d = round to nearest even (x_d * 127 / max_d |x_d|)
// and attention reads q_d * s, rounded to the queries' type. Rounding happens in kv_store, before
// anyone attends, so that every path reads the same numbers. A vector with a NaN or an infinity is
// read as all NaN.
struct KvView {
  void* pages = nullptr;           // page p starts at p * kv_page_bytes(...)
  DType dtype = DType::kBF16;      // fp32, bf16 or int8
  int64_t kv_heads = 0;            // G
  int64_t head_width = 0;          // A
  std::span<const int32_t> table;  // [sequences, max_pages]: page of block b of sequence s
  int64_t max_pages = 0;           // pages per row of the table
  // The table in an accelerator's memory, or null. With it and both device pointers of Sequences
  // kv_store and attention upload nothing, and the positions and pages there count: the host's
  // table may be empty and its positions any that fit, its offsets must hold. So a captured graph
  // can be replayed with other positions.
  const int32_t* device_table = nullptr;
};

size_t kv_page_bytes(const Context& context, DType dtype, int64_t kv_heads, int64_t head_width);
constexpr int64_t kv_pages_for(int64_t keys) {
  return (keys + kKvPageKeys - 1) / kKvPageKeys;
}

// Writes k_TGA and v_TGA ([T, G, A], the view's dtype, fp32 or bf16 for int8 pages; keys already
// rotated) to their pages: row t
// of sequence s goes to position first_position[s] + (t - offsets[s]). Touches nothing else of a
// page (a page is zeroed by whoever hands it out).
void kv_store(Context& context, AnyView k_TGA, AnyView v_TGA, const Sequences& sequences,
              const KvView& kv);

// out_THA[t, h] = sum_j p_j * v_j,  p = softmax_j(scale * q_THA[t, h] · k_j) over keys j at
// positions
// <= the position of t in its sequence; head h reads key/value head h / (H / G).
// q, out: the view's dtype; for int8 pages the type of the keys that were stored. lse_TH fp32 (null
// view: not kept) = log sum_j exp(scale * q·k_j).
void attention(Context& context, AnyView q_THA, const KvView& kv, const Sequences& sequences,
               float scale, AnyView out_THA, AnyView lse_TH);

// Gradients for whole sequences (first_position all 0, every key a row of the batch). fp32 and bf16
// pages only.
// dq_THA, dk_TGA, dv_TGA of the view's dtype, overwritten; sums fp32 in an order fixed by the
// sequence.
void attention_backward(Context& context, AnyView q_THA, const KvView& kv,
                        const Sequences& sequences, float scale, AnyView out_THA, AnyView lse_TH,
                        AnyView dout_THA, AnyView dq_THA, AnyView dk_TGA, AnyView dv_TGA);

}  // namespace degu
