// Rows that stay neighbours between two orders of them (interleave_rows in kernels/api/permute.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace degu {

// Rows [arrived, arrived + rows) of one order are rows [row, row + rows) of the other.
struct RowRun {
  int32_t arrived;
  int32_t row;
  int32_t rows;
};

// From (source, expert, unit) to (expert, source, unit); runs of no rows are left out.
inline std::vector<RowRun> interleaved_runs(std::span<const int64_t> counts_PeU, int64_t experts,
                                            int64_t units) {
  const auto block = static_cast<size_t>(experts * units);  // of one source
  std::vector<int32_t> arrival(counts_PeU.size() + 1, 0);
  for (size_t i = 0; i < counts_PeU.size(); ++i) {
    arrival[i + 1] = arrival[i] + static_cast<int32_t>(counts_PeU[i]);
  }
  std::vector<RowRun> runs;
  int32_t row = 0;
  for (size_t e = 0; e < static_cast<size_t>(experts); ++e) {
    for (size_t source = 0; source < counts_PeU.size(); source += block) {
      const size_t first = source + e * static_cast<size_t>(units);
      for (size_t i = first; i < first + static_cast<size_t>(units); ++i) {
        const auto rows = static_cast<int32_t>(counts_PeU[i]);
        if (rows > 0) runs.push_back({arrival[i], row, rows});
        row += rows;
      }
    }
  }
  return runs;
}

}  // namespace degu
