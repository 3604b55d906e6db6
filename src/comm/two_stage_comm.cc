#include "comm/two_stage_comm.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "comm/checks.h"
#include "comm/relay_communicator.h"
#include "tensor/device.h"

namespace degu {
namespace {

constexpr size_t kPieceAlignment = 256;  // at most, of what an arena gives

int64_t total(Counts counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

std::map<int, std::vector<int>> ranks_by_node(std::span<const int> node_of_rank) {
  std::map<int, std::vector<int>> members;
  for (size_t r = 0; r < node_of_rank.size(); ++r) {
    members[node_of_rank[r]].push_back(static_cast<int>(r));
  }
  return members;
}

// A group as nodes x local indices; `order` lists its ranks node by node.
struct Grid {
  Grid(std::span<const int> node_of_rank, int ranks) {
    if (static_cast<int>(node_of_rank.size()) != ranks) {
      throw ShapeError("two stages: nodes of {} ranks for a group of {}", node_of_rank.size(),
                       ranks);
    }
    const auto members = ranks_by_node(node_of_rank);
    nodes = members.size();
    per_node = node_of_rank.size() / nodes;
    for (const auto& [node, here] : members) {
      if (here.size() != per_node) {
        throw ConfigError("two stages need equally many ranks on each node: {}",
                          two_stage_obstacle(node_of_rank));
      }
      order.insert(order.end(), here.begin(), here.end());
    }
    in_order = std::is_sorted(order.begin(), order.end());
  }
  size_t place(int rank) const {
    return static_cast<size_t>(std::find(order.begin(), order.end(), rank) - order.begin());
  }

  size_t nodes = 1;
  size_t per_node = 1;
  std::vector<int> order;
  bool in_order = true;  // the order of the ranks
};

// The part of `counts` that belongs to one node, when they are in the grid's order.
Counts of_node(const std::vector<int64_t>& counts, const Grid& grid, size_t node) {
  return Counts(counts).subspan(node * grid.per_node, grid.per_node);
}

class TwoStageCommunicator final : public RelayCommunicator {
 public:
  template <class Group>
  TwoStageCommunicator(Group&& group, const Grid& grid, bool verify)
      : RelayCommunicator(std::forward<Group>(group)),
        grid_(grid),
        verify_(verify),
        node_(grid_.place(rank()) / grid_.per_node),
        local_(grid_.place(rank()) % grid_.per_node),
        within_(host().split(static_cast<int>(node_), static_cast<int>(local_))),
        across_(host().split(static_cast<int>(local_), static_cast<int>(node_))) {}

  Work all_reduce(Context& context, AnyView x, Reduce reduce, Order order) override {
    return host().all_reduce(context, x, reduce, order);
  }
  Work reduce_scatter(Context& context, AnyView in, Counts counts, AnyView out, Reduce reduce,
                      Order order) override {
    return host().reduce_scatter(context, in, counts, out, reduce, order);
  }
  Work all_gather(Context& context, AnyView in, AnyView out, Counts counts) override {
    return host().all_gather(context, in, out, counts);
  }
  Work broadcast(Context& context, AnyView x, int root) override {
    return host().broadcast(context, x, root);
  }

  Work all_to_all_rows(Context& context, AnyView send, Counts send_rows, AnyView recv,
                       Counts recv_rows) override {
    check_row_exchange(send, send_rows, recv, recv_rows, size());
    if (send.device != recv.device) {
      throw ShapeError("all_to_all_rows: one view is on the host and one on a device");
    }
    if (verify_) verify_rows(context, send_rows, recv_rows);
    travel(context, send, send_rows, recv, recv_rows);
    return {};
  }

 private:
  std::unique_ptr<Communicator> over(std::unique_ptr<Communicator> group) override { return group; }

  // Memory for so many rows on their way, in up to three pieces. What the last exchange took is
  // free: its work came before in stream order.
  Arena& room_for(AnyView recv, int64_t rows) {
    Arena& room = recv.device == DeviceType::kCpu ? host_room_ : device_room_;
    const size_t row_bytes = static_cast<size_t>(recv.shape.row_elements()) * size_of(recv.dtype);
    const size_t bytes = static_cast<size_t>(rows) * row_bytes + 3 * kPieceAlignment;
    if (room.capacity() < bytes) {
      room = Arena();  // given back first: both might not fit
      room = Arena(bytes + bytes / 4, recv.device);
    }
    room.release(0);
    return room;
  }

  void verify_rows(Context& context, Counts send_rows, Counts recv_rows) {
    const auto n = static_cast<int64_t>(size());
    std::vector<int64_t> mine(send_rows.begin(), send_rows.end());
    mine.insert(mine.end(), recv_rows.begin(), recv_rows.end());
    std::vector<int64_t> all(mine.size() * static_cast<size_t>(n));
    host()
        .all_gather(context, View<int64_t>(mine.data(), {2 * n}),
                    View<int64_t>(all.data(), {2 * n * n}),
                    std::vector<int64_t>(static_cast<size_t>(n), 2 * n))
        .wait();
    compare_row_counts(all, size());
  }

  void travel(Context& context, AnyView send, Counts send_rows, AnyView recv, Counts recv_rows) {
    const std::vector<int64_t> out = in_grid_order(send_rows);
    const std::vector<int64_t> in = in_grid_order(recv_rows);
    const std::vector<int64_t> relayed = tell_counts(context, out);
    const int64_t reordered = grid_.in_order ? 0 : total(out) + total(in);
    Arena& room = room_for(recv, total(relayed) + reordered);
    const auto take = [&](int64_t rows) {
      return room.take(recv.dtype, recv.shape.with_rows(rows));
    };
    // Both ends in the grid's order: the caller's own memory where that is the order of the ranks.
    const AnyView leaving = grid_.in_order ? send : take(total(out));
    const AnyView arriving = grid_.in_order ? recv : take(total(in));
    if (!grid_.in_order) {
      each_run(send_rows, [&](int64_t by_rank, int64_t by_place, int64_t rows) {
        copy(context, send.rows(by_rank, rows), leaving.rows(by_place, rows));
      });
    }
    const AnyView passing = take(total(relayed));
    std::vector<int64_t> passing_rows, arriving_rows;  // by node
    int64_t sent = 0;
    int64_t passed = 0;
    for (size_t node = 0; node < grid_.nodes; ++node) {
      const Counts to = of_node(out, grid_, node);
      const Counts from = of_node(relayed, grid_, node);
      passing_rows.push_back(total(from));
      arriving_rows.push_back(total(of_node(in, grid_, node)));
      stage(*within_, "within a node", context, leaving.rows(sent, total(to)), to,
            passing.rows(passed, total(from)), from);
      sent += total(to);
      passed += total(from);
    }
    stage(*across_, "across nodes", context, passing, passing_rows, arriving, arriving_rows);
    if (!grid_.in_order) {
      each_run(recv_rows, [&](int64_t by_rank, int64_t by_place, int64_t rows) {
        copy(context, arriving.rows(by_place, rows), recv.rows(by_rank, rows));
      });
    }
  }

  // [node * per_node + i]: the rows that the rank of local index i of this node sends to the rank
  // on `node` of this rank's local index. `out`: what this rank sends, in the grid's order.
  std::vector<int64_t> tell_counts(Context& context, const std::vector<int64_t>& out) {
    const size_t n = grid_.nodes;
    const size_t local = grid_.per_node;
    std::vector<int64_t> mine(out.size()), told(out.size()), relayed(out.size());
    for (size_t i = 0; i < local; ++i) {
      for (size_t node = 0; node < n; ++node) mine[i * n + node] = out[node * local + i];
    }
    const Shape shape{static_cast<int64_t>(local), static_cast<int64_t>(n)};
    const std::vector<int64_t> one_each(local, 1);
    within_
        ->all_to_all_rows(context, View<int64_t>(mine.data(), shape), one_each,
                          View<int64_t>(told.data(), shape), one_each)
        .wait();
    for (size_t i = 0; i < local; ++i) {
      for (size_t node = 0; node < n; ++node) relayed[node * local + i] = told[i * n + node];
    }
    return relayed;
  }

  // Ranks in the error of a stage are those of its part of the group.
  void stage(Communicator& part, const char* name, Context& context, AnyView send, Counts send_rows,
             AnyView recv, Counts recv_rows) const {
    try {
      part.all_to_all_rows(context, send, send_rows, recv, recv_rows).wait();
    } catch (const CommError& error) {
      throw CommError("{} (in the stage {}, node {}, local index {})", error.what(), name, node_,
                      local_);
    }
  }

  std::vector<int64_t> in_grid_order(Counts by_rank) const {
    std::vector<int64_t> counts;
    for (int r : grid_.order) counts.push_back(by_rank[static_cast<size_t>(r)]);
    return counts;
  }

  // visit(first row in the order of the ranks, first row in the grid's order, rows) for each rank.
  template <class Visit>
  void each_run(Counts by_rank, const Visit& visit) const {
    std::vector<int64_t> first(by_rank.size() + 1, 0);
    std::partial_sum(by_rank.begin(), by_rank.end(), first.begin() + 1);
    int64_t place = 0;
    for (int r : grid_.order) {
      const auto i = static_cast<size_t>(r);
      visit(first[i], place, by_rank[i]);
      place += by_rank[i];
    }
  }

  Grid grid_;
  bool verify_;
  size_t node_, local_;  // this rank's
  std::unique_ptr<Communicator> within_, across_;
  Arena host_room_, device_room_;
};

}  // namespace

std::string two_stage_obstacle(std::span<const int> node_of_rank) {
  const auto members = ranks_by_node(node_of_rank);
  if (members.size() < 2) return "all are on one node";
  const auto& [least_node, least] = *std::min_element(
      members.begin(), members.end(),
      [](const auto& a, const auto& b) { return a.second.size() < b.second.size(); });
  for (const auto& [node, ranks] : members) {
    if (ranks.size() == least.size()) continue;
    return fmt::format("{} on node {} and {} on node {}", ranks.size(), node, least.size(),
                       least_node);
  }
  return least.size() == 1 ? "each is on a node of its own" : "";
}

std::unique_ptr<Communicator> make_two_stage_communicator(std::unique_ptr<Communicator> group,
                                                          std::span<const int> node_of_rank,
                                                          const CommOptions& options) {
  const Grid grid(node_of_rank, group->size());
  return std::make_unique<TwoStageCommunicator>(std::move(group), grid, options.verify);
}

std::unique_ptr<Communicator> make_two_stage_communicator(Communicator& group,
                                                          std::span<const int> node_of_rank,
                                                          const CommOptions& options) {
  const Grid grid(node_of_rank, group.size());
  return std::make_unique<TwoStageCommunicator>(group, grid, options.verify);
}

}  // namespace degu
