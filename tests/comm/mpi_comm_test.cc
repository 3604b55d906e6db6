// Run under mpirun at several sizes: the same table of properties as the other communicators.
#include "comm/mpi_comm.h"

#include <catch2/catch.hpp>

#include "cases.h"
#include "comm/mesh.h"
#include "comm/nodes.h"
#include "comm/two_stage_comm.h"
#include "comm/world.h"
#include "tensor/tensor.h"
#include "tests/support/scoped_environment.h"

namespace degu {
namespace {

// A failure on one rank alone would leave the others waiting: end the job with its reason.
template <class Body>
void on_all_ranks(Communicator& comm, const char* name, Body&& body) {
  try {
    body();
  } catch (const std::exception& error) {
    comm.abort(fmt::format("{}: {}", name, error.what()), ExitCode::kFailure);
  }
}

TEST_CASE("MPI: properties of every communicator") {
  for (bool verify : {false, true}) {
    for (size_t scratch : {size_t{1} << 14, CommOptions{}.scratch_bytes}) {
      const auto comm = make_mpi_communicator({.verify = verify, .scratch_bytes = scratch});
      for (const test::CommCase& check : test::comm_cases()) {
        on_all_ranks(*comm, check.name, [&] { check.run(*comm); });
        SUCCEED(check.name);
      }
    }
  }
}

TEST_CASE("MPI: disagreements are found before the exchange, on all ranks") {
  Communicator& world = world_communicator();
  if (world.size() == 1) return;
  const auto comm = make_mpi_communicator({.verify = true});
  Context ctx({.threads = 1, .scratch_bytes = 4096});
  Tensor x(DType::kF32, {world.rank() == 0 ? 100 : 101});
  CHECK_THROWS_WITH(comm->all_reduce(ctx, x, Reduce::kSum).wait(),
                    Catch::Contains("rank 0 of") && Catch::Contains("of 100 x fp32") &&
                        Catch::Contains("of 101 x fp32"));
  world.barrier();
}

TEST_CASE("MPI: a message of another size than agreed is an error that names both") {
  Communicator& world = world_communicator();
  if (world.size() != 2) return;
  const auto comm = make_mpi_communicator({.verify = false});
  Context ctx({.threads = 1, .scratch_bytes = 4096});
  Tensor rows(DType::kF32, {8, 4});
  Tensor got(DType::kF32, {8, 4});
  const std::vector<int64_t> send = {2, 2};
  // Rank 0 expects one row more, rank 1 one row less, than the other sends.
  const std::vector<int64_t> recv =
      world.rank() == 0 ? std::vector<int64_t>{2, 3} : std::vector<int64_t>{1, 2};
  CHECK_THROWS_AS(comm->all_to_all_rows(ctx, rows, send, got, recv).wait(), CommError);
  world.barrier();
}

TEST_CASE("MPI: properties of every communicator hold in two stages") {
  Communicator& world = world_communicator();
  for (int per_node : {1, 2, 4}) {
    if (world.size() % per_node != 0) continue;
    const test::ScopedEnvironment said("DEGU_RANKS_PER_NODE", std::to_string(per_node));
    for (bool verify : {false, true}) {
      const CommOptions options{.verify = verify};
      const auto stages = make_two_stage_communicator(make_mpi_communicator(options),
                                                      exchange_nodes(world), options);
      for (const test::CommCase& check : test::comm_cases()) {
        on_all_ranks(*stages, check.name, [&] { check.run(*stages); });
        SUCCEED(check.name);
      }
    }
  }
}

TEST_CASE("MPI: a mesh takes two stages over nodes of two ranks, and says why not over one each") {
  Communicator& world = world_communicator();
  const int ranks = world.size();
  if (ranks == 1) return;
  {
    const test::ScopedEnvironment said("DEGU_RANKS_PER_NODE", "2");
    CHECK(Mesh(world, ranks).two_stage() == (ranks == 4));
    CHECK_FALSE(Mesh(world, ranks, AllToAll::kDirect).two_stage());
    if (ranks == 4) CHECK(Mesh(world, ranks, AllToAll::kTwoStage).two_stage());
    if (ranks == 2) {
      CHECK_THROWS_WITH(Mesh(world, ranks, AllToAll::kTwoStage),
                        Catch::Contains("all are on one node"));
    }
  }
  const test::ScopedEnvironment said("DEGU_RANKS_PER_NODE", "1");
  CHECK_FALSE(Mesh(world, ranks).two_stage());
  CHECK_THROWS_WITH(Mesh(world, ranks, AllToAll::kTwoStage),
                    Catch::Contains("each is on a node of its own; use auto or direct"));
  world.barrier();
}

}  // namespace
}  // namespace degu
