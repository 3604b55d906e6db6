#include "cases.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "base/random.h"
#include "comm/agree.h"
#include "comm/mesh.h"
#include "comm/tree.h"
#include "tensor/tensor.h"

namespace degu::test {
namespace {

// Sizes around every boundary: nothing, one, the whole-vector path, shards, several rounds.
constexpr std::array<int64_t, 8> kSizes = {0, 1, 3, 17, 1000, 4096, 5001, 40'001};
// More than a round of the default buffer.
constexpr int64_t kLarge = 300'007;

template <class... Args>
void expect(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) throw std::runtime_error(fmt::format(format, std::forward<Args>(args)...));
}

Context& context() {
  // Two threads where a rank may have them, so that sums are split. Scratch is for rows on their
  // way.
  thread_local Context ctx({.threads = 2, .scratch_bytes = size_t{1} << 24});
  return ctx;
}

// Values whose sums depend on their order: either sign, magnitudes over five decades.
float value(int rank, int64_t i) {
  const uint64_t bits =
      (static_cast<uint64_t>(i) * 1009 + static_cast<uint64_t>(rank)) * 0x9E3779B97F4A7C15ull;
  constexpr std::array<float, 8> kScale = {1e-2f, 1e-1f, 1.0f, 7.0f, 10.0f, 1e2f, 1e3f, 3e3f};
  return static_cast<float>(static_cast<int32_t>(bits >> 32)) * 0x1.0p-31f * kScale[bits >> 29 & 7];
}

// The definition, in recursive form: split at the largest power of two below the count.
template <class T>
T plain_tree(std::span<const T> leaves) {
  if (leaves.size() == 1) return leaves[0];
  const size_t half = std::bit_floor(leaves.size() - 1);
  return plain_tree(leaves.first(half)) + plain_tree(leaves.subspan(half));
}

template <class T>
Tensor filled(int rank, int64_t elements, int64_t offset = 0) {
  Tensor x(dtype_of<T>, {elements});
  for (int64_t i = 0; i < elements; ++i) x.as<T>()[i] = static_cast<T>(value(rank, offset + i));
  return x;
}

template <class T, class Wide = T>
T tree_over_ranks(int ranks, int64_t i) {
  std::vector<Wide> leaves;
  for (int r = 0; r < ranks; ++r) leaves.push_back(static_cast<Wide>(static_cast<T>(value(r, i))));
  return static_cast<T>(plain_tree<Wide>(leaves));
}

template <class T>
bool same_bits(T a, T b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

template <class T, class Wide = T>
void all_reduce_sum(Communicator& comm, int64_t elements) {
  Tensor x = filled<T>(comm.rank(), elements);
  comm.all_reduce(context(), x, Reduce::kSum).wait();
  for (int64_t i = 0; i < elements; ++i) {
    const T expected = tree_over_ranks<T, Wide>(comm.size(), i);
    expect(same_bits(x.as<T>()[i], expected), "{} x {}: element {} on rank {}", elements,
           dtype_name(dtype_of<T>), i, comm.rank());
  }
}

template <class T, class Wide = T>
void all_reduce_sums(Communicator& comm) {
  for (int64_t elements : kSizes) all_reduce_sum<T, Wide>(comm, elements);
}

void all_reduce_tree(Communicator& comm) {
  all_reduce_sums<float>(comm);
  all_reduce_sum<float>(comm, kLarge);
  all_reduce_sums<double>(comm);
  all_reduce_sums<bf16, float>(comm);
  all_reduce_sums<int32_t>(comm);
  all_reduce_sums<int64_t>(comm);
}

void all_reduce_any(Communicator& comm) {
  for (int64_t elements : kSizes) {
    Tensor x = filled<float>(comm.rank(), elements);
    comm.all_reduce(context(), x, Reduce::kSum, Order::kAny).wait();
    for (int64_t i = 0; i < elements; ++i) {
      double exact = 0;
      double magnitude = 0;
      for (int r = 0; r < comm.size(); ++r) {
        exact += value(r, i);
        magnitude += std::abs(value(r, i));
      }
      const double bound = magnitude * comm.size() * 0x1.0p-24;
      expect(std::abs(x.as<float>()[i] - exact) <= bound, "{}: element {}", elements, i);
    }
    Tensor n(DType::kI64, {elements});
    for (int64_t i = 0; i < elements; ++i) n.as<int64_t>()[i] = i * (comm.rank() + 1);
    comm.all_reduce(context(), n, Reduce::kSum, Order::kAny).wait();
    const int64_t factor = int64_t{comm.size()} * (comm.size() + 1) / 2;
    for (int64_t i = 0; i < elements; ++i)
      expect(n.as<int64_t>()[i] == i * factor, "integer {}", i);
  }
}

void all_reduce_extremes(Communicator& comm) {
  for (Order order : {Order::kTree, Order::kAny}) {
    for (int64_t elements : kSizes) {
      Tensor low = filled<float>(comm.rank(), elements);
      Tensor high = filled<float>(comm.rank(), elements);
      comm.all_reduce(context(), low, Reduce::kMin, order).wait();
      comm.all_reduce(context(), high, Reduce::kMax, order).wait();
      for (int64_t i = 0; i < elements; ++i) {
        float least = value(0, i);
        float most = least;
        for (int r = 1; r < comm.size(); ++r) {
          least = std::min(least, value(r, i));
          most = std::max(most, value(r, i));
        }
        expect(low.as<float>()[i] == least && high.as<float>()[i] == most, "element {}", i);
      }
    }
    // One rank's NaN reaches all, whichever rank it is.
    for (int sick = 0; sick < comm.size(); ++sick) {
      Tensor x(DType::kF32, {1});
      x.as<float>()[0] = comm.rank() == sick ? std::numeric_limits<float>::quiet_NaN() : 1.0f;
      comm.all_reduce(context(), x, Reduce::kMax, order).wait();
      expect(std::isnan(x.as<float>()[0]), "NaN of rank {} lost", sick);
    }
  }
}

void reduce_scatter_equal(Communicator& comm) {
  for (int64_t shard : kSizes) {
    Tensor in = filled<float>(comm.rank(), shard * comm.size());
    const AnyView own = in.view().rows(shard * comm.rank(), shard);
    Tensor out(DType::kF32, {shard});
    comm.reduce_scatter(context(), in, out, Reduce::kSum).wait();
    comm.reduce_scatter(context(), in, own, Reduce::kSum).wait();  // in place
    for (int64_t i = 0; i < shard; ++i) {
      const float expected = tree_over_ranks<float>(comm.size(), shard * comm.rank() + i);
      expect(same_bits(out.as<float>()[i], expected), "shard {}: element {}", shard, i);
      expect(same_bits(own.as<float>()[i], expected), "shard {} in place: element {}", shard, i);
    }
    for (int64_t i = 0; i < shard * comm.size(); ++i) {
      if (i / std::max<int64_t>(shard, 1) == comm.rank()) continue;
      expect(same_bits(in.as<float>()[i], value(comm.rank(), i)), "input element {} changed", i);
    }
  }
}

void reduce_scatter_counts(Communicator& comm) {
  std::vector<int64_t> counts;  // an empty shard first, a large one last
  for (int r = 0; r < comm.size(); ++r)
    counts.push_back(r == 0 && comm.size() > 1 ? 0 : 300 + 50'001 * r);
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  const int64_t first = std::accumulate(counts.begin(), counts.begin() + comm.rank(), int64_t{0});
  const auto me = static_cast<size_t>(comm.rank());
  for (Order order : {Order::kTree, Order::kAny}) {
    Tensor in = filled<float>(comm.rank(), total);
    Tensor out(DType::kF32, {counts[me]});
    comm.reduce_scatter(context(), in, counts, out, Reduce::kSum, order).wait();
    for (int64_t i = 0; i < counts[me]; ++i) {
      expect(same_bits(out.as<float>()[i], tree_over_ranks<float>(comm.size(), first + i)),
             "element {}", i);
    }
  }
}

void all_gather_parts(Communicator& comm) {
  for (int64_t part : kSizes) {
    const int64_t total = part * comm.size();
    Tensor in = filled<bf16>(0, part, part * comm.rank());
    Tensor out(DType::kBF16, {total});
    comm.all_gather(context(), in, out).wait();
    Tensor same(DType::kBF16, {total});
    const AnyView own = same.view().rows(part * comm.rank(), part);
    if (part > 0) std::memcpy(own.data, in.view().data, own.bytes());
    comm.all_gather(context(), own, same).wait();
    for (int64_t i = 0; i < total; ++i) {
      expect(out.as<bf16>()[i] == bf16(value(0, i)), "part {}: element {}", part, i);
      expect(same.as<bf16>()[i] == bf16(value(0, i)), "part {} in place: element {}", part, i);
    }
  }
  std::vector<int64_t> counts;
  for (int r = 0; r < comm.size(); ++r) counts.push_back(r == 1 ? 0 : 11 + 7 * r);
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  const int64_t first = std::accumulate(counts.begin(), counts.begin() + comm.rank(), int64_t{0});
  Tensor in = filled<float>(0, counts[static_cast<size_t>(comm.rank())], first);
  Tensor out(DType::kF32, {total});
  comm.all_gather(context(), in, out, counts).wait();
  for (int64_t i = 0; i < total; ++i)
    expect(out.as<float>()[i] == value(0, i), "counts: element {}", i);
}

// Row counts drawn at random, some of them 0; each row says where it came from.
void all_to_all_rows(Communicator& comm) {
  const int n = comm.size();
  for (uint64_t round = 0; round < 20; ++round) {
    const RandomStream stream(11, "rows", round);
    auto rows = [&](int from, int to) {
      const auto draw = stream.below(
          static_cast<uint64_t>(from) * static_cast<uint64_t>(n) + static_cast<uint64_t>(to),
          round < 18 ? 40 : 4000);
      return static_cast<int64_t>(draw < 8 ? 0 : draw);
    };
    std::vector<int64_t> send_rows, recv_rows;
    for (int r = 0; r < n; ++r) {
      send_rows.push_back(rows(comm.rank(), r));
      recv_rows.push_back(rows(r, comm.rank()));
    }
    const int64_t sent = std::accumulate(send_rows.begin(), send_rows.end(), int64_t{0});
    const int64_t received = std::accumulate(recv_rows.begin(), recv_rows.end(), int64_t{0});
    constexpr int64_t kWidth = 5;
    Tensor send(DType::kI64, {sent + 3, kWidth});
    Tensor recv(DType::kI64, {received + 2, kWidth});  // headroom stays untouched
    int64_t row = 0;
    for (int to = 0; to < n; ++to) {
      for (int64_t i = 0; i < send_rows[static_cast<size_t>(to)]; ++i, ++row) {
        for (int64_t j = 0; j < kWidth; ++j) {
          send.as<int64_t>()(row, j) = ((comm.rank() * 100 + to) * 10'000 + i) * 10 + j;
        }
      }
    }
    comm.all_to_all_rows(context(), send, send_rows, recv, recv_rows).wait();
    row = 0;
    for (int from = 0; from < n; ++from) {
      for (int64_t i = 0; i < recv_rows[static_cast<size_t>(from)]; ++i, ++row) {
        for (int64_t j = 0; j < kWidth; ++j) {
          expect(recv.as<int64_t>()(row, j) == ((from * 100 + comm.rank()) * 10'000 + i) * 10 + j,
                 "round {}: row {} column {}", round, row, j);
        }
      }
    }
    for (int64_t j = 0; j < 2 * kWidth; ++j)
      expect(recv.as<int64_t>()[received * kWidth + j] == 0, "headroom");
  }
}

void broadcasts(Communicator& comm) {
  for (int root = 0; root < comm.size(); ++root) {
    for (int64_t elements : kSizes) {
      Tensor x = filled<float>(comm.rank(), elements);
      comm.broadcast(context(), x, root).wait();
      for (int64_t i = 0; i < elements; ++i)
        expect(x.as<float>()[i] == value(root, i), "element {}", i);
    }
    const std::string text = fmt::format("from {}", comm.rank()) + std::string(2, '\0') + "end";
    expect(comm.broadcast_text(text, root) ==
               fmt::format("from {}", root) + std::string(2, '\0') + "end",
           "text of rank {}", root);
    expect(comm.broadcast_text("", root).empty(), "empty text");
  }
}

void texts(Communicator& comm) {
  const std::vector<std::string> all =
      comm.gather_text(std::string(static_cast<size_t>(comm.rank()) * 3, 'x'));
  expect(static_cast<int>(all.size()) == comm.size(), "{} texts", all.size());
  for (size_t r = 0; r < all.size(); ++r) expect(all[r] == std::string(r * 3, 'x'), "text {}", r);
  expect(min_over_ranks(comm, 10 - comm.rank()) == 11 - comm.size(), "min");
  expect(max_over_ranks(comm, comm.rank()) == comm.size() - 1, "max");
}

void splits(Communicator& comm) {
  // Odd and even ranks, in reverse order.
  const std::unique_ptr<Communicator> part = comm.split(comm.rank() % 2, -comm.rank());
  const int members = (comm.size() + 1 - comm.rank() % 2) / 2;
  expect(part->size() == members, "{} members", part->size());
  expect(part->rank() == members - 1 - comm.rank() / 2, "rank {} became {}", comm.rank(),
         part->rank());
  Tensor x(DType::kI64, {1});
  x.as<int64_t>()[0] = comm.rank();
  part->all_reduce(context(), x, Reduce::kSum).wait();
  int64_t expected = 0;
  for (int r = comm.rank() % 2; r < comm.size(); r += 2) expected += r;
  expect(x.as<int64_t>()[0] == expected, "sum in the group");
  const std::unique_ptr<Communicator> first = comm.split(comm.rank() == 0 ? 3 : -1, 0);
  expect((first != nullptr) == (comm.rank() == 0), "negative colors join no group");
  comm.barrier();
}

void counters(Communicator& comm) {
  constexpr int64_t kEach = 200;
  const std::unique_ptr<SharedCounter> counter = comm.make_counter(5);
  std::string taken;  // '1' at the numbers this rank drew
  std::vector<int64_t> mine;
  for (int64_t i = 0; i < kEach; ++i) mine.push_back(counter->fetch_add(1));
  for (int64_t number : mine) taken += std::to_string(number) + " ";
  std::vector<int64_t> drawn;
  for (const std::string& text : comm.gather_text(taken)) {
    for (size_t at = 0; at < text.size(); at = text.find(' ', at) + 1)
      drawn.push_back(std::stoll(text.substr(at)));
  }
  std::sort(drawn.begin(), drawn.end());
  expect(static_cast<int64_t>(drawn.size()) == kEach * comm.size(), "{} numbers drawn",
         drawn.size());
  for (size_t i = 0; i < drawn.size(); ++i) {
    expect(drawn[i] == 5 + static_cast<int64_t>(i), "number {} is {}", i, drawn[i]);
  }
}

void meshes(Communicator& comm) {
  for (int ep = 1; ep <= comm.size(); ++ep) {
    if (comm.size() % ep != 0) continue;
    const Mesh mesh(comm, ep);
    expect(mesh.ep().size() == ep && mesh.ep().rank() == comm.rank() % ep, "ep {}", ep);
    expect(mesh.edp().size() == comm.size() / ep && mesh.edp().rank() == comm.rank() / ep,
           "edp of {}", ep);
    // Ranks of an edp group hold the same experts; those of an ep group hold them all once.
    const Range own = mesh.layout().experts(8 * ep);
    require_equal(mesh.edp(), "experts", fmt::format("{}-{}", own.begin, own.end));
    Tensor held(DType::kI32, {8 * ep});
    for (int64_t e = own.begin; e < own.end; ++e) held.as<int32_t>()[e] = 1;
    mesh.ep().all_reduce(context(), held, Reduce::kSum).wait();
    for (int64_t e = 0; e < 8 * ep; ++e) expect(held.as<int32_t>()[e] == 1, "expert {}", e);
  }
}

// Promise 3: each rank's own tree over its aligned run, then the tree over ranks, is the tree over
// units.
void units_and_ranks_make_one_tree(Communicator& comm) {
  for (int64_t per_rank : {1, 2, 8}) {
    const int64_t units = per_rank * comm.size();
    const Layout layout(comm.rank(), comm.size(), 1);
    expect(layout.aligned(units, 1), "{} units", units);
    const Range run = layout.units(units);
    constexpr int64_t kWidth = 2000;
    Tensor x(DType::kF32, {kWidth});
    for (int64_t i = 0; i < kWidth; ++i) {
      std::vector<float> leaves;
      for (int64_t u = run.begin; u < run.end; ++u) leaves.push_back(value(static_cast<int>(u), i));
      x.as<float>()[i] = plain_tree<float>(leaves);
    }
    comm.all_reduce(context(), x, Reduce::kSum).wait();
    for (int64_t i = 0; i < kWidth; ++i) {
      expect(same_bits(x.as<float>()[i], tree_over_ranks<float>(static_cast<int>(units), i)),
             "{} units: element {}", units, i);
    }
  }
}

void refuses_wrong_arguments(Communicator& comm) {
  auto refused = [&](auto&& call) {
    try {
      call();
    } catch (const ShapeError&) {
      return true;
    }
    return false;
  };
  Tensor x(DType::kF32, {10});
  Tensor bytes(DType::kI8, {10});
  const std::vector<int64_t> short_counts(static_cast<size_t>(comm.size() + 1), 0);
  expect(refused([&] { comm.all_reduce(context(), bytes, Reduce::kSum).wait(); }), "int8 sum");
  expect(refused([&] { comm.all_gather(context(), x, x, short_counts).wait(); }),
         "counts of other length");
  expect(refused([&] { comm.broadcast(context(), x, comm.size()).wait(); }), "root out of range");
  expect(refused([&] { comm.all_to_all_rows(context(), x, short_counts, x, short_counts).wait(); }),
         "rows");
  comm.barrier();
}

void together(Communicator& comm) {
  const int last = comm.size() - 1;
  std::string what;
  try {
    run_together(comm, [&] {
      if (comm.rank() == last) throw IoError("disk of rank {} is full", last);
    });
  } catch (const IoError& error) {
    what = error.what();
  }
  expect(what.find(fmt::format("disk of rank {} is full", last)) != std::string::npos, "got '{}'",
         what);
  run_together(comm, [] {});
  agree_on_isa(comm);
}

constexpr std::array kCases = {
    CommCase{"all_reduce in tree order", all_reduce_tree},
    CommCase{"all_reduce in any order", all_reduce_any},
    CommCase{"all_reduce max and min", all_reduce_extremes},
    CommCase{"reduce_scatter of equal shards", reduce_scatter_equal},
    CommCase{"reduce_scatter of given counts", reduce_scatter_counts},
    CommCase{"all_gather", all_gather_parts},
    CommCase{"all_to_all_rows", all_to_all_rows},
    CommCase{"broadcast", broadcasts},
    CommCase{"gather_text", texts},
    CommCase{"split", splits},
    CommCase{"shared counter", counters},
    CommCase{"mesh", meshes},
    CommCase{"units and ranks make one tree", units_and_ranks_make_one_tree},
    CommCase{"wrong arguments", refuses_wrong_arguments},
    CommCase{"failing together", together},
};

}  // namespace

std::span<const CommCase> comm_cases() {
  return kCases;
}

}  // namespace degu::test
