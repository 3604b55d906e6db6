// What collective calls check at their door, whatever carries them.
#pragma once

#include <cstdint>
#include <span>

#include "comm/communicator.h"

namespace degu {

// Whether two views share a byte.
bool overlap(AnyView a, AnyView b);

// The sum of `counts`. ShapeError naming `what` unless there is one for each of `ranks`, none
// negative.
int64_t checked_total(const char* what, Counts counts, int ranks);

// The arguments of all_to_all_rows on one of `ranks` ranks: ShapeError when counts, types, row
// shapes or sizes do not fit together, or when what is sent overlaps what is received.
void check_row_exchange(AnyView send, Counts send_rows, AnyView recv, Counts recv_rows, int ranks);

// `counts_R2R` holds for each rank what it sends to each rank, then what it expects from each.
// CommError naming the first pair that disagrees.
void compare_row_counts(std::span<const int64_t> counts_R2R, int ranks);

}  // namespace degu
