// What one forward pass runs over: a ragged, token-major batch.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/api/attention.h"
#include "kernels/api/rows.h"

namespace degu {

// T tokens in rows, sequence after sequence. In training a sequence is one document's part of a
// packed window (or the window itself), starts at position 0 and has all its keys in the batch;
// when serving it is a request's new tokens, starting where its cache ends.
struct Batch {
  std::span<const int32_t> tokens_T;
  std::span<const int32_t> positions_T;
  Sequences sequences;
  // Copies of tokens and positions in an accelerator's memory, or null. There they count
  // (RowNumbers in kernels/api/rows.h), but for routers that ask for tokens: these read the host's.
  const int32_t* device_tokens_T = nullptr;
  const int32_t* device_positions_T = nullptr;
  std::span<const KvView> kv_L;  // one view per layer, pages for every key of every sequence
  // Attention by kernels/api/packed_attention.h, in training: there are no pages then.
  bool packed_attention = false;

  RowNumbers token_rows() const { return {tokens_T, device_tokens_T}; }
  RowNumbers position_rows() const { return {positions_T, device_positions_T}; }
  int64_t tokens() const { return static_cast<int64_t>(tokens_T.size()); }
  KvView kv(size_t layer) const { return packed_attention ? KvView{} : kv_L[layer]; }
};

// How the rows of a training batch are grouped for sums over tokens; all are whole sequences of the
// data.
struct TokenGroups {
  UnitSegments units;                         // partial sums of gradients, slots = 1
  std::span<const int64_t> balance_offsets;   // [groups + 1]: the auxiliary loss counts over these
  std::span<const int64_t> capacity_offsets;  // [groups + 1]: capacity counts over these

  int64_t balance_groups() const { return static_cast<int64_t>(balance_offsets.size()) - 1; }
};

}  // namespace degu
