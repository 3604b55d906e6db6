// Rows by way of two stages are those of the direct call, byte for byte, on any grid of nodes.
#include "comm/two_stage_comm.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <memory>
#include <numeric>

#include "base/random.h"
#include "cases.h"
#include "comm/mesh.h"
#include "comm/nodes.h"
#include "comm/relay_communicator.h"
#include "comm/staged_comm.h"
#include "comm/thread_comm.h"
#include "tensor/tensor.h"
#include "tests/support/scoped_environment.h"
#include "thread_ranks.h"

namespace degu {
namespace {

using test::failure;
using test::kVerified;

const CommOptions kUnverified{.verify = false};

Context& context() {
  thread_local Context ctx({.threads = 1, .scratch_bytes = size_t{1} << 26});
  return ctx;
}

void require_done(int ranks, const std::function<void(Communicator&)>& body,
                  const CommOptions& options = kVerified) {
  const std::string reason = failure(ranks, body, options);
  INFO(reason);
  REQUIRE(reason.empty());
}

// kInOrder: the ranks of a node follow one another. kInTurn: neighbours are on different nodes.
enum class Deal { kInOrder, kInTurn, kShuffled };
constexpr Deal kDeals[] = {Deal::kInOrder, Deal::kInTurn, Deal::kShuffled};

std::vector<int> deal(int nodes, int per_node, Deal how) {
  std::vector<int> node_of_rank;
  for (int r = 0; r < nodes * per_node; ++r) {
    node_of_rank.push_back(how == Deal::kInTurn ? r % nodes : r / per_node);
  }
  if (how != Deal::kShuffled) return node_of_rank;
  const RandomStream stream(7, "nodes", static_cast<uint64_t>(10 * nodes + per_node));
  for (size_t i = node_of_rank.size(); i > 1; --i) {
    std::swap(node_of_rank[i - 1], node_of_rank[stream.below(i, i)]);
  }
  return node_of_rank;
}

// Rows that each rank sends to each in one round: ragged, many of them none, some rounds nothing.
std::vector<int64_t> ragged_rows(int ranks, uint64_t round) {
  const RandomStream stream(13, "ragged", round);
  std::vector<int64_t> rows(static_cast<size_t>(ranks * ranks));
  const uint64_t most = round % 6 == 5 ? 1 : round % 6 == 4 ? 600 : 20;
  for (size_t i = 0; i < rows.size(); ++i) {
    const bool none = stream.below(2 * i, 3) == 0;
    rows[i] = none ? 0 : static_cast<int64_t>(stream.below(2 * i + 1, most));
  }
  return rows;
}

// One exchange by way of `one` and of `other`, of random bytes; whether all that either may write
// to is equal, headroom included.
bool same_bytes(Communicator& one, Communicator& other, uint64_t round) {
  constexpr DType kTypes[] = {DType::kI8, DType::kBF16, DType::kF32, DType::kI64, DType::kF64};
  constexpr int64_t kWidths[] = {1, 3, 8, 65};
  const auto n = static_cast<size_t>(one.size());
  const auto me = static_cast<size_t>(one.rank());
  const std::vector<int64_t> rows = ragged_rows(one.size(), round);
  std::vector<int64_t> send_rows, recv_rows;
  for (size_t r = 0; r < n; ++r) {
    send_rows.push_back(rows[me * n + r]);
    recv_rows.push_back(rows[r * n + me]);
  }
  const DType type = kTypes[round % 5];
  const int64_t width = kWidths[round / 5 % 4];
  const auto all = [](const std::vector<int64_t>& counts) {
    return std::accumulate(counts.begin(), counts.end(), int64_t{0});
  };
  Tensor send(type, {all(send_rows) + 2, width});
  Tensor direct(type, {all(recv_rows) + 3, width}), staged(type, {all(recv_rows) + 3, width});
  const RandomStream stream(17, "bytes", round * 100 + me);
  auto* bytes = static_cast<uint8_t*>(send.view().data);
  for (size_t i = 0; i < send.bytes(); ++i) bytes[i] = static_cast<uint8_t>(stream.below(i, 256));
  std::memset(direct.view().data, 0xA5, direct.bytes());
  std::memset(staged.view().data, 0xA5, staged.bytes());
  one.all_to_all_rows(context(), send, send_rows, direct, recv_rows).wait();
  other.all_to_all_rows(context(), send, send_rows, staged, recv_rows).wait();
  return std::memcmp(direct.view().data, staged.view().data, direct.bytes()) == 0;
}

TEST_CASE("two stages: what arrives is what the direct call brings") {
  for (int nodes = 1; nodes <= 4; ++nodes) {
    for (int per_node = 1; per_node <= 4; ++per_node) {
      for (Deal how : kDeals) {
        const std::vector<int> node_of_rank = deal(nodes, per_node, how);
        INFO(nodes << " nodes of " << per_node << ", deal " << static_cast<int>(how));
        const bool verify = per_node % 2 == 0;
        require_done(
            nodes * per_node,
            [&](Communicator& comm) {
              const auto stages =
                  make_two_stage_communicator(comm, node_of_rank, verify ? kVerified : kUnverified);
              const uint64_t rounds = comm.size() > 8 ? 12 : 20;
              for (uint64_t round = 0; round < rounds; ++round) {
                if (!same_bytes(comm, *stages, round)) {
                  throw std::runtime_error(fmt::format("round {}", round));
                }
              }
              if (context().scratch().used() != 0) throw std::runtime_error("scratch kept");
            },
            verify ? kVerified : kUnverified);
      }
    }
  }
}

TEST_CASE("two stages: properties of every communicator") {
  struct Case {
    int nodes, per_node;
    Deal how;
  };
  for (const Case& c : {Case{2, 2, Deal::kInOrder}, Case{3, 2, Deal::kInTurn},
                        Case{1, 3, Deal::kInOrder}, Case{2, 1, Deal::kInOrder}}) {
    const std::vector<int> node_of_rank = deal(c.nodes, c.per_node, c.how);
    for (const test::CommCase& check : test::comm_cases()) {
      INFO(check.name << " on " << c.nodes << " nodes of " << c.per_node);
      require_done(c.nodes * c.per_node, [&](Communicator& comm) {
        check.run(*make_two_stage_communicator(comm.split(0, comm.rank()), node_of_rank));
      });
    }
  }
}

// Views on the host under the context of a device that is not there, and by way of staging.
TEST_CASE("two stages: over staged ranks, and for the host's views under a device's context") {
  const std::vector<int> node_of_rank = deal(2, 2, Deal::kInOrder);
  require_done(4, [&](Communicator& comm) {
    const auto staged = make_staged_communicator(comm);
    const auto stages = make_two_stage_communicator(*staged, node_of_rank);
    for (uint64_t round = 0; round < 10; ++round) {
      if (!same_bytes(comm, *stages, round)) throw std::runtime_error("bytes");
    }
    Context elsewhere(
        {.threads = 1, .scratch_bytes = size_t{1} << 20, .device = DeviceType::kPlan});
    const std::vector<int64_t> one_each(4, 1);
    for (int64_t round = 0; round < 3; ++round) {
      int64_t sent[4], got[4] = {};
      for (int64_t r = 0; r < 4; ++r) sent[r] = 100 * round + 10 * comm.rank() + r;
      stages
          ->all_to_all_rows(elsewhere, View<int64_t>(sent, {4}), one_each, View<int64_t>(got, {4}),
                            one_each)
          .wait();
      for (int64_t r = 0; r < 4; ++r) {
        if (got[r] != 100 * round + 10 * r + comm.rank()) throw std::runtime_error("counts");
      }
    }
  });
}

// Counts the messages with rows that this rank sends to ranks of other nodes.
class Recording final : public RelayCommunicator {
 public:
  template <class Group>
  Recording(Group&& group, std::vector<int> node_of_rank, std::shared_ptr<int64_t> messages)
      : RelayCommunicator(std::forward<Group>(group)),
        node_(std::move(node_of_rank)),
        messages_(std::move(messages)) {}

  Work all_reduce(Context& ctx, AnyView x, Reduce reduce, Order order) override {
    return host().all_reduce(ctx, x, reduce, order);
  }
  Work reduce_scatter(Context& ctx, AnyView in, Counts counts, AnyView out, Reduce reduce,
                      Order order) override {
    return host().reduce_scatter(ctx, in, counts, out, reduce, order);
  }
  Work all_gather(Context& ctx, AnyView in, AnyView out, Counts counts) override {
    return host().all_gather(ctx, in, out, counts);
  }
  Work all_to_all_rows(Context& ctx, AnyView send, Counts send_rows, AnyView recv,
                       Counts recv_rows) override {
    for (size_t r = 0; r < node_.size(); ++r) {
      *messages_ += send_rows[r] > 0 && node_[r] != node_[static_cast<size_t>(rank())];
    }
    return host().all_to_all_rows(ctx, send, send_rows, recv, recv_rows);
  }
  Work broadcast(Context& ctx, AnyView x, int root) override {
    return host().broadcast(ctx, x, root);
  }

 private:
  std::unique_ptr<Communicator> over(std::unique_ptr<Communicator> group) override {
    std::vector<int> nodes;
    const std::string mine = std::to_string(node_[static_cast<size_t>(rank())]);
    for (const std::string& node : group->gather_text(mine)) nodes.push_back(std::stoi(node));
    return std::make_unique<Recording>(std::move(group), nodes, messages_);
  }

  std::vector<int> node_;
  std::shared_ptr<int64_t> messages_;
};

TEST_CASE("two stages: one message from a rank to each other node") {
  for (Deal how : kDeals) {
    const int nodes = 3;
    const int per_node = 4;
    const std::vector<int> node_of_rank = deal(nodes, per_node, how);
    require_done(nodes * per_node, [&](Communicator& comm) {
      const auto messages = std::make_shared<int64_t>(0);
      Recording recording(comm, node_of_rank, messages);
      const auto stages = make_two_stage_communicator(recording, node_of_rank);
      const auto n = static_cast<int64_t>(comm.size());
      const std::vector<int64_t> two_each(static_cast<size_t>(n), 2);
      Tensor send(DType::kF32, {2 * n, 3}), recv(DType::kF32, {2 * n, 3});
      const auto expect = [&](Communicator& way, int64_t expected) {
        *messages = 0;
        way.all_to_all_rows(context(), send, two_each, recv, two_each).wait();
        if (*messages != expected) throw std::runtime_error(std::to_string(*messages));
      };
      expect(recording, (nodes - 1) * per_node);
      expect(*stages, nodes - 1);
    });
  }
}

TEST_CASE("two stages: counts that disagree are found, wrong arguments refused") {
  const std::vector<int> node_of_rank = {0, 0, 1, 1};
  const auto exchange = [&](int64_t from_zero, int64_t from_one, const CommOptions& options) {
    return failure(
        4,
        [&](Communicator& comm) {
          const auto stages = make_two_stage_communicator(comm, node_of_rank, options);
          std::vector<int64_t> send(4, 0), recv(4, 0);
          if (comm.rank() == 0) send[2] = 3;
          if (comm.rank() == 1) send[2] = 2;
          if (comm.rank() == 2) recv = {from_zero, from_one, 0, 0};
          Tensor rows(DType::kF32, {8, 2}), got(DType::kF32, {8, 2});
          stages->all_to_all_rows(context(), rows, send, got, recv).wait();
        },
        kUnverified);
  };
  CHECK_THAT(exchange(3, 2, kVerified), Catch::Equals(""));
  // As many from the node, but not from each rank.
  CHECK_THAT(exchange(2, 3, kVerified),
             Catch::Contains("rank 0 sends 3 rows to rank 2, which expects 2"));
  // Unverified: what a node exchanges in all differs.
  CHECK_THAT(exchange(3, 3, kUnverified), Catch::Contains("in the stage across nodes"));

  CHECK_THAT(failure(4,
                     [&](Communicator& comm) {
                       const auto stages = make_two_stage_communicator(comm, node_of_rank);
                       Tensor rows(DType::kF32, {8, 2});
                       const std::vector<int64_t> one_each(4, 1);
                       stages->all_to_all_rows(context(), rows, one_each, rows, one_each).wait();
                     }),
             Catch::Contains("the buffers overlap"));
}

TEST_CASE("two stages: what is in the way is said") {
  struct Case {
    std::vector<int> node_of_rank;
    const char* obstacle;
  };
  const Case cases[] = {
      {{0, 0, 1, 1}, ""},
      {{4, 9, 4, 9, 9, 4}, ""},
      {{0}, "all are on one node"},
      {{3, 3, 3}, "all are on one node"},
      {{0, 1, 2}, "each is on a node of its own"},
      {{0, 0, 0, 1}, "3 on node 0 and 1 on node 1"},
      {{0, 1, 1}, "2 on node 1 and 1 on node 0"},
  };
  for (const Case& c : cases) CHECK(two_stage_obstacle(c.node_of_rank) == c.obstacle);

  const auto made = [](const std::vector<int>& node_of_rank) {
    run_as_threads(4, [&](Communicator& comm) { make_two_stage_communicator(comm, node_of_rank); });
  };
  CHECK_NOTHROW(made({0, 1, 1, 0}));
  CHECK_THROWS_WITH(made({0, 0, 0, 1}), Catch::Contains("equally many ranks on each node: 3 on"));
  CHECK_THROWS_AS(made({0, 0, 1}), ShapeError);
}

TEST_CASE("mesh: two stages where ranks of an expert group share nodes") {
  struct Case {
    int ranks, per_node, expert_parallel;
    AllToAll way;
    std::string two_stage;  // of each rank; or the error
  };
  const Case cases[] = {
      {4, 2, 4, AllToAll::kAuto, "yyyy"},
      {4, 2, 4, AllToAll::kTwoStage, "yyyy"},
      {4, 2, 4, AllToAll::kDirect, "nnnn"},
      {4, 2, 2, AllToAll::kAuto, "nnnn"},  // each group on one node
      {4, 1, 4, AllToAll::kAuto, "nnnn"},
      {4, 4, 4, AllToAll::kAuto, "nnnn"},
      {4, 3, 4, AllToAll::kAuto, "nnnn"},
      {4, 2, 1, AllToAll::kAuto, "nnnn"},
      {8, 2, 4, AllToAll::kTwoStage, "yyyyyyyy"},
      {12, 6, 4, AllToAll::kAuto, "nnnnyyyynnnn"},
      {12, 6, 4, AllToAll::kTwoStage,
       "in the expert group of ranks 0 to 3: all are on one node; use auto or direct"},
      {4, 1, 4, AllToAll::kTwoStage, "ranks 0 to 3: each is on a node of its own; use auto"},
      {4, 3, 4, AllToAll::kTwoStage, "3 on node 0 and 1 on node 1; use auto or direct"},
      {4, 2, 1, AllToAll::kTwoStage, "with cluster.expert_parallel 1 no rows travel; use auto"},
  };
  for (const Case& c : cases) {
    INFO(c.ranks << " ranks, " << c.per_node << " per node, experts over " << c.expert_parallel);
    const test::ScopedEnvironment per_node("DEGU_RANKS_PER_NODE", std::to_string(c.per_node));
    std::string used(static_cast<size_t>(c.ranks), '?');
    const std::string error = failure(c.ranks, [&](Communicator& comm) {
      const Mesh mesh(comm, c.expert_parallel, c.way);
      used[static_cast<size_t>(comm.rank())] = mesh.two_stage() ? 'y' : 'n';
      const auto whole = comm.split(comm.rank() / c.expert_parallel, comm.rank());
      if (!same_bytes(*whole, mesh.ep(), 3)) throw std::runtime_error("bytes");
    });
    if (error.empty()) {
      CHECK(used == c.two_stage);
    } else {
      CHECK_THAT(error, Catch::Contains(c.two_stage));
      CHECK(c.way == AllToAll::kTwoStage);
    }
  }
}

TEST_CASE("DEGU_RANKS_PER_NODE says who shares a node, or is refused") {
  const auto nodes = [](int ranks) {
    std::vector<int> found;
    run_as_threads(ranks, [&](Communicator& comm) {
      const std::vector<int> mine = exchange_nodes(comm);
      if (comm.rank() == 0) found = mine;
    });
    return found;
  };
  CHECK(nodes(3) == std::vector<int>{0, 0, 0});  // one machine
  const auto said = [&](const std::string& text) {
    const test::ScopedEnvironment per_node("DEGU_RANKS_PER_NODE", text);
    return nodes(5);
  };
  CHECK(said("2") == std::vector<int>{0, 0, 1, 1, 2});
  CHECK(said("9") == std::vector<int>{0, 0, 0, 0, 0});
  CHECK(said("") == std::vector<int>{0, 0, 0, 0, 0});
  for (const char* wrong : {"0", "-2", "two", "2x", "99999999999"}) {
    CHECK_THROWS_WITH(said(wrong), Catch::Contains("must be a number of ranks above 0"));
  }
}

}  // namespace
}  // namespace degu
