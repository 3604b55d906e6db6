// The tiles of a product over groups whose sizes only the device knows, in one line: groups in
// order, in each its tiles. A block of a persistent grid takes every gridDim-th. Their number must
// stay below 2^30 (check_tiles).
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.cuh"

namespace degu::cuda {
namespace {

// DeviceError when bounds of the rows make more tiles than that.
inline void check_tiles(int64_t tiles) {
  constexpr int64_t kMost = int64_t{1} << 30;
  if (tiles > kMost) CudaState::refuse("grouped_gemm", "number of tiles", tiles, kMost);
}

struct TilePlace {
  int64_t row;  // first row
  int rows;     // of the group, from there, at most kRows
  int group;
  int column_tile;
};

template <int kRows>
class TileWalk {
 public:
  __device__ TileWalk(const int64_t* offsets, int groups, int column_tiles)
      : offsets_(offsets), groups_(groups), column_tiles_(column_tiles) {}

  // Tile `index`; false when there are fewer. Called by whole warps, with ever larger indices: 32
  // groups are looked at at a time, and none twice that lies before the last tile found.
  __device__ bool find(int index, TilePlace& place) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    for (; first_ < groups_; first_ += 32) {
      const int group = first_ + lane;
      const int64_t begin = group < groups_ ? offsets_[group] : 0;
      const int rows = group < groups_ ? static_cast<int>(offsets_[group + 1] - begin) : 0;
      const int tiles = (rows + kRows - 1) / kRows * column_tiles_;
      int upto = tiles;  // of this group and those before it in the warp
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const int other = __shfl_up_sync(kAllLanes, upto, offset);
        if (lane >= offset) upto += other;
      }
      const unsigned beyond = __ballot_sync(kAllLanes, index - before_ < upto);
      if (beyond != 0) {
        const int owner = __ffs(static_cast<int>(beyond)) - 1;
        const int local = index - before_ - __shfl_sync(kAllLanes, upto - tiles, owner);
        place.group = first_ + owner;
        place_in_group(local, __shfl_sync(kAllLanes, begin, owner),
                       __shfl_sync(kAllLanes, rows, owner), place);
        return true;
      }
      before_ += __shfl_sync(kAllLanes, upto, 31);
    }
    return false;
  }

 private:
  // Tiles that run at the same time should share rows and columns: bands of 16 tiles of rows, in
  // each band column by column.
  static constexpr int kBand = 16;

  __device__ void place_in_group(int local, int64_t begin, int rows, TilePlace& place) {
    const int row_tiles = (rows + kRows - 1) / kRows;
    const int band = local / (kBand * column_tiles_);
    const int height = min(kBand, row_tiles - band * kBand);
    const int rest = local - band * kBand * column_tiles_;
    const int row = (band * kBand + rest % height) * kRows;
    place.row = begin + row;
    place.rows = min(kRows, rows - row);
    place.column_tile = rest / height;
  }

  const int64_t* offsets_;
  int groups_;
  int column_tiles_;
  int first_ = 0;   // the first of the 32 groups in hand
  int before_ = 0;  // tiles of the groups before it
};

}  // namespace
}  // namespace degu::cuda
