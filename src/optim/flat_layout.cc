#include "optim/flat_layout.h"

#include <algorithm>
#include <utility>

#include "kernels/api/adamw.h"

namespace degu {
namespace {

int64_t blocks_of(int64_t elements) {
  return (elements + kNormBlock - 1) / kNormBlock;
}

}  // namespace

FlatLayout::FlatLayout(std::vector<FlatMember> members, int shards)
    : members_(std::move(members)), offsets_{0} {
  std::vector<int64_t> ends;  // of every block held here
  for (const FlatMember& m : members_) {
    block_starts_.push_back(all_blocks_);
    all_blocks_ += m.all_pieces * blocks_of(m.piece_elements);
    const int64_t start = offsets_.back();
    for (int64_t piece = 0; piece < m.pieces; ++piece) {
      for (int64_t b = 0; b < blocks_of(m.piece_elements); ++b) {
        ends.push_back(start + piece * m.piece_elements +
                       std::min((b + 1) * kNormBlock, m.piece_elements));
      }
    }
    offsets_.push_back(start + m.pieces * m.piece_elements);
  }
  const auto blocks = static_cast<int64_t>(ends.size());
  int64_t begin = 0;
  for (int r = 0; r < shards; ++r) {
    const int64_t last = blocks * (r + 1) / shards;
    const int64_t end = last == 0 ? 0 : ends[static_cast<size_t>(last - 1)];
    shards_.push_back({begin, end});
    shard_elements_.push_back(end - begin);
    begin = end;
  }
}

std::vector<FlatLayout::Run> FlatLayout::piece_runs(int rank) const {
  std::vector<Run> runs;
  const FlatRange mine = shard(rank);
  for (size_t i = 0; i < members_.size(); ++i) {
    const FlatMember& m = members_[i];
    for (int64_t piece = 0; piece < m.pieces; ++piece) {
      const int64_t start = offsets_[i] + piece * m.piece_elements;
      const FlatRange range{std::max(start, mine.begin),
                            std::min(start + m.piece_elements, mine.end)};
      if (range.begin >= range.end) continue;
      runs.push_back({.range = range,
                      .member = &m,
                      .member_offset = offsets_[i],
                      .first_block = block_starts_[i] +
                                     (m.first_piece + piece) * blocks_of(m.piece_elements) +
                                     (range.begin - start) / kNormBlock});
    }
  }
  return runs;
}

std::vector<FlatLayout::Run> FlatLayout::member_runs(int rank) const {
  std::vector<Run> runs;
  const FlatRange mine = shard(rank);
  for (size_t i = 0; i < members_.size(); ++i) {
    const FlatRange range{std::max(offsets_[i], mine.begin), std::min(offsets_[i + 1], mine.end)};
    if (range.begin >= range.end) continue;
    runs.push_back(
        {.range = range, .member = &members_[i], .member_offset = offsets_[i], .first_block = -1});
  }
  return runs;
}

}  // namespace degu
