// Pages of keys and values on the GPU (layout: kernels/cuda/attention_tiles.cuh).
#pragma once

#include <algorithm>

#include "kernels/api/attention.h"

namespace degu::cuda {

// visit(sequence, row, position, count): the new tokens of each sequence, cut where blocks of keys
// begin.
template <class Visit>
void each_block_piece(const Sequences& sequences, Visit&& visit) {
  for (int64_t s = 0; s < sequences.count(); ++s) {
    const int64_t first = sequences.first_position[static_cast<size_t>(s)];
    const int64_t end = first + sequences.length(s);
    for (int64_t at = first; at < end;) {
      const int64_t next = std::min(end, (at / kKvPageKeys + 1) * kKvPageKeys);
      visit(s, sequences.offsets[static_cast<size_t>(s)] + at - first, at, next - at);
      at = next;
    }
  }
}

size_t attention_page_bytes(DType dtype, int64_t kv_heads, int64_t head_width);
void attention_store(Context& context, AnyView k_TGA, AnyView v_TGA, const Sequences& sequences,
                     const KvView& kv);

}  // namespace degu::cuda
