#include "comm/host_communicator.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "base/random.h"
#include "comm/checks.h"
#include "comm/tree.h"

namespace degu {
namespace {

// Below this an all_reduce is one exchange of whole vectors; above it, shards are reduced and
// gathered.
constexpr size_t kWholeBytes = size_t{16} << 10;
// Shards start on cache lines of their own.
constexpr int64_t kShardAlign = 16;
// Elements below which a sum is not worth waking the pool for.
constexpr int64_t kParallelElements = 1 << 15;

constexpr std::array kKindNames = {"all_reduce", "reduce_scatter", "all_gather",  "all_to_all_rows",
                                   "broadcast",  "barrier",        "gather_text", "broadcast_text",
                                   "split",      "make_counter"};
constexpr std::array kReduceNames = {"sum", "max", "min"};

std::byte* at(AnyView view, int64_t element) {
  return static_cast<std::byte*>(view.data) + static_cast<size_t>(element) * size_of(view.dtype);
}

void require_host(const char* what, AnyView view) {
  if (view.device != DeviceType::kCpu) {
    throw ShapeError("{}: this communicator works on host memory, the view is on a device", what);
  }
}

void require_reducible(const char* what, DType type) {
  if (type == DType::kI8 || type == DType::kU8) {
    throw ShapeError("{} of {}: use fp32, bf16, fp64, int32 or int64", what, dtype_name(type));
  }
}

}  // namespace

Work Communicator::reduce_scatter(Context& ctx, AnyView in, AnyView out, Reduce reduce,
                                  Order order) {
  const std::vector<int64_t> counts(static_cast<size_t>(size()), out.elements());
  return reduce_scatter(ctx, in, counts, out, reduce, order);
}

Work Communicator::all_gather(Context& ctx, AnyView in, AnyView out) {
  const std::vector<int64_t> counts(static_cast<size_t>(size()), in.elements());
  return all_gather(ctx, in, out, counts);
}

// Plain old data: it travels as bytes.
struct HostCommunicator::Call {
  Kind kind = Kind::kBarrier;
  DType dtype = DType::kF32;
  Reduce reduce = Reduce::kSum;
  Order order = Order::kTree;
  uint8_t pad = 0;
  int64_t elements = 0;  // of the whole message; of one row for all_to_all_rows
  int64_t root = -1;
  uint64_t counts = 0;  // a hash of them
  int64_t number = 0;   // calls made before on this communicator

  std::string text() const {
    std::string words = kKindNames[static_cast<size_t>(kind)];
    if (kind == Kind::kAllReduce || kind == Kind::kReduceScatter) {
      words += fmt::format(" {}{}", kReduceNames[static_cast<size_t>(reduce)],
                           order == Order::kTree ? " (tree)" : " (any order)");
    }
    if (kind <= Kind::kBroadcast) words += fmt::format(" of {} x {}", elements, dtype_name(dtype));
    if (root >= 0) words += fmt::format(" from rank {}", root);
    if (counts != 0) words += fmt::format(" with counts #{:08x}", counts & 0xffffffffu);
    return words;
  }
};

namespace {
uint64_t hash_counts(Counts counts) {
  return hash_name({reinterpret_cast<const char*>(counts.data()), counts.size_bytes()});
}
}  // namespace

HostCommunicator::HostCommunicator(int rank, int size, const CommOptions& options)
    : rank_(rank), size_(size), options_(options) {
  const auto n = static_cast<size_t>(size);
  send_pieces_.resize(n);
  recv_pieces_.resize(n);
  sources_.resize(n);
  begins_.resize(n);
  ends_.resize(n);
  // A round needs at least one cache line per rank.
  options_.scratch_bytes = std::max(options_.scratch_bytes, n * kShardAlign * sizeof(double) * 2);
  if (size > 1) scratch_ = Tensor(DType::kU8, {static_cast<int64_t>(options_.scratch_bytes)});
}

bool HostCommunicator::native_all_reduce(const char*, AnyView, Reduce) {
  return false;
}

void HostCommunicator::verify_call(Kind kind) {
  verify({.kind = kind});
}

void HostCommunicator::verify(const Call& mine) {
  Call call = mine;
  call.number = calls_++;
  if (!options_.verify || size_ == 1) return;
  static_assert(std::has_unique_object_representations_v<Call>, "compared as bytes: no padding");
  std::vector<Call> all(static_cast<size_t>(size_));
  std::vector<Piece> pieces(all.size());
  for (size_t r = 0; r < all.size(); ++r)
    pieces[r] = {reinterpret_cast<std::byte*>(&all[r]), sizeof(Call)};
  gather(kKindNames[static_cast<size_t>(mine.kind)],
         {reinterpret_cast<std::byte*>(&call), sizeof(Call)}, pieces);
  for (size_t r = 1; r < all.size(); ++r) {
    if (std::memcmp(&all[0], &all[r], sizeof(Call)) == 0) continue;
    throw CommError(
        "ranks disagree at collective call {}: rank 0 of {} makes {}, rank {} makes {} (its call "
        "{})",
        all[0].number, size_, all[0].text(), r, all[r].text(), all[r].number);
  }
}

void HostCommunicator::verify_rows(Counts send_rows, Counts recv_rows) {
  if (!options_.verify || size_ == 1) return;
  const auto n = static_cast<size_t>(size_);
  std::vector<int64_t> mine(send_rows.begin(), send_rows.end());
  mine.insert(mine.end(), recv_rows.begin(), recv_rows.end());
  std::vector<int64_t> all(n * 2 * n);
  std::vector<Piece> pieces(n);
  const size_t bytes = mine.size() * sizeof(int64_t);
  for (size_t r = 0; r < n; ++r) pieces[r] = {reinterpret_cast<std::byte*>(&all[r * 2 * n]), bytes};
  gather("all_to_all_rows", {reinterpret_cast<std::byte*>(mine.data()), bytes}, pieces);
  compare_row_counts(all, size_);
}

// All sources are in place: sources_[r] for every rank. The tree is per element, so splitting
// elements over threads changes no bit.
void HostCommunicator::sum_sources(Context& ctx, Reduce reduce, DType type, std::byte* dst,
                                   int64_t elements) {
  if (elements < kParallelElements || ctx.threads() == 1) {
    return tree_reduce(reduce, type, sources_, dst, elements);
  }
  const int64_t tasks = ctx.threads();
  ctx.parallel_for(tasks, [&](int64_t task, int) {
    const int64_t begin = elements * task / tasks;
    const int64_t end = elements * (task + 1) / tasks;
    const size_t offset = static_cast<size_t>(begin) * size_of(type);
    std::vector<const void*> sources(sources_.size());
    for (size_t r = 0; r < sources.size(); ++r) {
      sources[r] = static_cast<const std::byte*>(sources_[r]) + offset;
    }
    tree_reduce(reduce, type, sources, dst + offset, end - begin);
  });
}

void HostCommunicator::gather_whole(Context& ctx, AnyView x, Reduce reduce) {
  auto* scratch = static_cast<std::byte*>(scratch_.view().data);
  for (size_t r = 0; r < recv_pieces_.size(); ++r) {
    recv_pieces_[r] = {scratch + r * x.bytes(), x.bytes()};
    sources_[r] = recv_pieces_[r].data;
  }
  gather("all_reduce", {at(x, 0), x.bytes()}, recv_pieces_);
  sum_sources(ctx, reduce, x.dtype, at(x, 0), x.elements());
}

// One round: elements [begins[r], ends[r]) of `in` are rank r's; mine are reduced into `out`.
void HostCommunicator::reduce_parts(Context& ctx, const char* what, AnyView in, Counts begins,
                                    Counts ends, std::byte* out, Reduce reduce) {
  const auto me = static_cast<size_t>(rank_);
  const size_t element = size_of(in.dtype);
  const int64_t mine = ends[me] - begins[me];
  const size_t mine_bytes = static_cast<size_t>(mine) * element;
  auto* slot = static_cast<std::byte*>(scratch_.view().data);
  for (size_t r = 0; r < send_pieces_.size(); ++r) {
    if (r == me) {
      send_pieces_[r] = recv_pieces_[r] = {};
      sources_[r] = at(in, begins[me]);
      continue;
    }
    send_pieces_[r] = {at(in, begins[r]), static_cast<size_t>(ends[r] - begins[r]) * element};
    recv_pieces_[r] = {slot, mine_bytes};
    sources_[r] = slot;
    slot += mine_bytes;
  }
  exchange(what, send_pieces_, recv_pieces_);
  sum_sources(ctx, reduce, in.dtype, out, mine);
}

Work HostCommunicator::all_reduce(Context& ctx, AnyView x, Reduce reduce, Order order) {
  require_host("all_reduce", x);
  require_reducible("all_reduce", x.dtype);
  verify({.kind = Kind::kAllReduce,
          .dtype = x.dtype,
          .reduce = reduce,
          .order = order,
          .elements = x.elements()});
  if (size_ == 1 || x.elements() == 0) return {};
  if (order == Order::kAny && native_all_reduce("all_reduce", x, reduce)) return {};
  const auto n = static_cast<size_t>(size_);
  if (x.bytes() <= std::min(kWholeBytes, options_.scratch_bytes / n)) {
    gather_whole(ctx, x, reduce);
    return {};
  }
  const int64_t round =
      static_cast<int64_t>(options_.scratch_bytes / size_of(x.dtype)) - kShardAlign * size_;
  const int64_t elements = x.elements();
  for (int64_t begin = 0; begin < elements; begin += round) {
    const int64_t count = std::min(round, elements - begin);
    const int64_t shard =
        ((count + size_ - 1) / size_ + kShardAlign - 1) / kShardAlign * kShardAlign;
    for (size_t r = 0; r < n; ++r) {
      begins_[r] = begin + std::min(count, static_cast<int64_t>(r) * shard);
      ends_[r] = begin + std::min(count, static_cast<int64_t>(r + 1) * shard);
    }
    const auto me = static_cast<size_t>(rank_);
    reduce_parts(ctx, "all_reduce", x, begins_, ends_, at(x, begins_[me]), reduce);
    for (size_t r = 0; r < n; ++r) {
      recv_pieces_[r] = {at(x, begins_[r]),
                         static_cast<size_t>(ends_[r] - begins_[r]) * size_of(x.dtype)};
    }
    gather("all_reduce", recv_pieces_[me], recv_pieces_);
  }
  return {};
}

Work HostCommunicator::reduce_scatter(Context& ctx, AnyView in, Counts counts, AnyView out,
                                      Reduce reduce, Order order) {
  require_host("reduce_scatter", in);
  require_host("reduce_scatter", out);
  require_reducible("reduce_scatter", in.dtype);
  const int64_t total = checked_total("reduce_scatter", counts, size_);
  const auto me = static_cast<size_t>(rank_);
  if (in.dtype != out.dtype || in.elements() != total || out.elements() != counts[me]) {
    throw ShapeError("reduce_scatter: {} x {} into {} x {}, but the counts say {} into {}",
                     in.elements(), dtype_name(in.dtype), out.elements(), dtype_name(out.dtype),
                     total, counts[me]);
  }
  verify({.kind = Kind::kReduceScatter,
          .dtype = in.dtype,
          .reduce = reduce,
          .order = order,
          .elements = total,
          .counts = hash_counts(counts)});
  std::vector<int64_t> first(counts.size());
  int64_t largest = 0;
  for (size_t r = 0, sum = 0; r < counts.size(); sum += static_cast<size_t>(counts[r]), ++r) {
    first[r] = static_cast<int64_t>(sum);
    largest = std::max(largest, counts[r]);
  }
  const bool in_place = out.data == at(in, first[me]);
  if (!in_place && overlap(in, out)) {
    throw ShapeError(
        "reduce_scatter: the output overlaps the input and is not this rank's shard of it");
  }
  if (size_ == 1) {
    if (!in_place && total > 0) std::memcpy(out.data, in.data, in.bytes());
    return {};
  }
  const int64_t round = static_cast<int64_t>(options_.scratch_bytes / size_of(in.dtype)) /
                        (size_ - 1) / kShardAlign * kShardAlign;
  for (int64_t begin = 0; begin < largest; begin += round) {
    for (size_t r = 0; r < counts.size(); ++r) {
      begins_[r] = first[r] + std::min(begin, counts[r]);
      ends_[r] = first[r] + std::min(begin + round, counts[r]);
    }
    reduce_parts(ctx, "reduce_scatter", in, begins_, ends_, at(out, std::min(begin, counts[me])),
                 reduce);
  }
  return {};
}

Work HostCommunicator::all_gather(Context&, AnyView in, AnyView out, Counts counts) {
  require_host("all_gather", in);
  require_host("all_gather", out);
  const int64_t total = checked_total("all_gather", counts, size_);
  const auto me = static_cast<size_t>(rank_);
  if (in.dtype != out.dtype || out.elements() != total || in.elements() != counts[me]) {
    throw ShapeError("all_gather: {} x {} into {} x {}, but the counts say {} into {}",
                     in.elements(), dtype_name(in.dtype), out.elements(), dtype_name(out.dtype),
                     counts[me], total);
  }
  verify({.kind = Kind::kAllGather,
          .dtype = in.dtype,
          .elements = total,
          .counts = hash_counts(counts)});
  int64_t first = 0;
  for (size_t r = 0; r < counts.size(); first += counts[r], ++r) {
    recv_pieces_[r] = {at(out, first), static_cast<size_t>(counts[r]) * size_of(in.dtype)};
  }
  if (in.data != recv_pieces_[me].data && overlap(in, out)) {
    throw ShapeError("all_gather: the input overlaps the output and is not this rank's part of it");
  }
  gather("all_gather", {at(in, 0), in.bytes()}, recv_pieces_);
  return {};
}

Work HostCommunicator::all_to_all_rows(Context&, AnyView send, Counts send_rows, AnyView recv,
                                       Counts recv_rows) {
  require_host("all_to_all_rows", send);
  require_host("all_to_all_rows", recv);
  check_row_exchange(send, send_rows, recv, recv_rows, size_);
  const int64_t width = send.shape.row_elements();
  const size_t row_bytes = static_cast<size_t>(width) * size_of(send.dtype);
  verify({.kind = Kind::kAllToAllRows, .dtype = send.dtype, .elements = width});
  verify_rows(send_rows, recv_rows);
  std::byte* from = at(send, 0);
  std::byte* to = at(recv, 0);
  for (size_t r = 0; r < send_rows.size(); ++r) {
    send_pieces_[r] = {from, static_cast<size_t>(send_rows[r]) * row_bytes};
    recv_pieces_[r] = {to, static_cast<size_t>(recv_rows[r]) * row_bytes};
    from += send_pieces_[r].bytes;
    to += recv_pieces_[r].bytes;
  }
  const auto me = static_cast<size_t>(rank_);
  if (send_rows[me] != recv_rows[me]) {
    throw CommError("all_to_all_rows: rank {} sends {} rows to itself and expects {}", rank_,
                    send_rows[me], recv_rows[me]);
  }
  exchange("all_to_all_rows", send_pieces_, recv_pieces_);
  return {};
}

Work HostCommunicator::broadcast(Context&, AnyView x, int root) {
  require_host("broadcast", x);
  if (root < 0 || root >= size_) throw ShapeError("broadcast: root {} of {} ranks", root, size_);
  verify({.kind = Kind::kBroadcast, .dtype = x.dtype, .elements = x.elements(), .root = root});
  if (size_ > 1 && x.elements() > 0) send_from("broadcast", {at(x, 0), x.bytes()}, root);
  return {};
}

void HostCommunicator::barrier() {
  verify_call(Kind::kBarrier);
  wait_for_all("barrier");
}

std::vector<std::string> HostCommunicator::gather_text(std::string_view mine) {
  verify_call(Kind::kGatherText);
  const auto n = static_cast<size_t>(size_);
  std::vector<int64_t> lengths(n);
  auto my_length = static_cast<int64_t>(mine.size());
  for (size_t r = 0; r < n; ++r) {
    recv_pieces_[r] = {reinterpret_cast<std::byte*>(&lengths[r]), sizeof(int64_t)};
  }
  gather("gather_text", {reinterpret_cast<std::byte*>(&my_length), sizeof(int64_t)}, recv_pieces_);
  std::string joined(
      static_cast<size_t>(std::accumulate(lengths.begin(), lengths.end(), int64_t{0})), '\0');
  size_t begin = 0;
  for (size_t r = 0; r < n; begin += recv_pieces_[r].bytes, ++r) {
    recv_pieces_[r] = {reinterpret_cast<std::byte*>(joined.data() + begin),
                       static_cast<size_t>(lengths[r])};
  }
  std::string copy(mine);
  gather("gather_text", {reinterpret_cast<std::byte*>(copy.data()), copy.size()}, recv_pieces_);
  std::vector<std::string> all;
  begin = 0;
  for (int64_t length : lengths) {
    all.push_back(joined.substr(begin, static_cast<size_t>(length)));
    begin += static_cast<size_t>(length);
  }
  return all;
}

std::string HostCommunicator::broadcast_text(std::string_view text, int root) {
  if (root < 0 || root >= size_)
    throw ShapeError("broadcast_text: root {} of {} ranks", root, size_);
  verify({.kind = Kind::kBroadcastText, .root = root});
  std::string copy(rank_ == root ? text : std::string_view());
  if (size_ == 1) return copy;
  auto length = static_cast<int64_t>(copy.size());
  send_from("broadcast_text", {reinterpret_cast<std::byte*>(&length), sizeof(length)}, root);
  copy.resize(static_cast<size_t>(length));
  if (length > 0)
    send_from("broadcast_text", {reinterpret_cast<std::byte*>(copy.data()), copy.size()}, root);
  return copy;
}

}  // namespace degu
