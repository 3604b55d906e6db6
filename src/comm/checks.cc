#include "comm/checks.h"

#include <cstddef>

namespace degu {
bool overlap(AnyView a, AnyView b) {
  const auto* a_begin = static_cast<const std::byte*>(a.data);
  const auto* b_begin = static_cast<const std::byte*>(b.data);
  return a.bytes() > 0 && b.bytes() > 0 && a_begin < b_begin + b.bytes() &&
         b_begin < a_begin + a.bytes();
}

int64_t checked_total(const char* what, Counts counts, int ranks) {
  if (static_cast<int>(counts.size()) != ranks) {
    throw ShapeError("{}: {} counts for {} ranks", what, counts.size(), ranks);
  }
  int64_t total = 0;
  for (int64_t count : counts) {
    if (count < 0) throw ShapeError("{}: negative count {}", what, count);
    total += count;
  }
  return total;
}

void check_row_exchange(AnyView send, Counts send_rows, AnyView recv, Counts recv_rows, int ranks) {
  const int64_t sent = checked_total("all_to_all_rows", send_rows, ranks);
  const int64_t received = checked_total("all_to_all_rows", recv_rows, ranks);
  if (send.dtype != recv.dtype || send.shape.rank() < 1 || recv.shape.rank() < 1 ||
      send.shape.row_elements() != recv.shape.row_elements()) {
    throw ShapeError("all_to_all_rows: rows of {} {} against rows of {} {}", dtype_name(send.dtype),
                     send.shape.str(), dtype_name(recv.dtype), recv.shape.str());
  }
  if (sent > send.dim(0) || received > recv.dim(0)) {
    throw ShapeError("all_to_all_rows: {} rows to send from {}, {} rows to receive into {}", sent,
                     send.shape.str(), received, recv.shape.str());
  }
  if (overlap(send.rows(0, sent), recv.rows(0, received))) {
    throw ShapeError("all_to_all_rows: the buffers overlap");
  }
}

void compare_row_counts(std::span<const int64_t> counts_R2R, int ranks) {
  const auto n = static_cast<size_t>(ranks);
  for (size_t from = 0; from < n; ++from) {
    for (size_t to = 0; to < n; ++to) {
      const int64_t sent = counts_R2R[from * 2 * n + to];
      const int64_t expected = counts_R2R[to * 2 * n + n + from];
      if (sent == expected) continue;
      throw CommError("all_to_all_rows: rank {} sends {} rows to rank {}, which expects {}", from,
                      sent, to, expected);
    }
  }
}

}  // namespace degu
